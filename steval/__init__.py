"""steval: fine-tune, serve and score State Transition (ST) models of cell responses."""

__version__ = "0.1.0"
