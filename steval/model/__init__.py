"""The ST network and its losses; no AnnData here, and `config` is free of torch."""
