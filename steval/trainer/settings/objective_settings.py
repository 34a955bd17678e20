"""What is minimised: the loss of both heads and the weights of the optional terms; torch-free (DESIGN §4)."""

from pydantic import Field

from steval.model.loss_settings import LossSettings


class ObjectiveSettings(LossSettings):
    """`total = embedding + decoder_weight · gene + confidence_weight · confidence + batch_weight · batch + change_weight · change`.

    With expression as input there is one head, called gene: `total = gene + ...`.
    """

    decoder_weight: float = Field(default=1.0, ge=0)
    """Weight of the gene decoder's loss beside the embedding loss; a phase may have its own."""
    confidence_weight: float = Field(default=0.0, ge=0)
    """Squared error of the confidence token's guess of the set's own loss."""
    batch_weight: float = Field(default=0.0, ge=0)
    """Cross-entropy of the batch that the batch token names."""
    change_weight: float = Field(default=0.0, ge=0)
    """L1: mean absolute predicted difference from the basal cells."""
