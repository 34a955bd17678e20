"""What a checkpoint records of how good its predictions are, as a sentence for people."""

from steval.checkpoints.manifest import Manifest
from steval.wording import counted

NOTHING = "Nothing is on record of how good its predictions are on held-out perturbations: score them before you rely on them."


def evidence_sentence(manifest: Manifest) -> str:
    """The score expected of it beside simple models (0: cell-eval's mean baseline, 100: perfect), and what its network adds."""
    expected = (manifest.calibration or {}).get("expected")
    if expected is None:
        return NOTHING
    error = expected["standard_error"]
    spread = "" if error is None else f" ± {error:.1f}"
    pairs = counted(expected["pairs"], "held-out pair")
    text = (
        f"On {pairs} of perturbation and cell type: score {expected['leaderboard']:.1f}{spread} of 100, where 0 is the mean "
        "over perturbations."
    )
    decoding = manifest.decoding
    if decoding.kind != "carried":
        return text
    if decoding.network_weight == 0:
        return f"{text} Its network added nothing to a simple model there, so predictions are the simple model's."
    return f"{text} Its network has a share of {decoding.network_weight:g} in the predicted effects."
