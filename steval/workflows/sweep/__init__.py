"""Many runs over a space of settings, on Optuna: each trial an ordinary run in a process of its own."""
