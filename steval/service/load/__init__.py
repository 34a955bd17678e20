"""`steval load`: how quickly a running service answers, and how much at once."""
