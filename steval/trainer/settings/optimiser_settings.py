"""AdamW's settings; torch-free."""

from pydantic import Field, NonNegativeFloat, PositiveFloat

from steval.settings import Settings


class OptimiserSettings(Settings):
    """AdamW (arXiv:1711.05101) and the clipping before it."""

    weight_decay: NonNegativeFloat = 1e-3
    """On matrices only (none on norms, biases, embeddings, tokens); 1e-3 to 5e-3 is recommended."""
    clip: PositiveFloat = 1.0
    """Largest joint norm of all gradients; above it they are scaled down to it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and square of the gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the running square."""
