"""What a checkpoint says of itself: nothing on record, a score, a network that adds nothing."""

import pytest

from steval.checkpoints.evidence import NOTHING, evidence_sentence
from steval.data.effects.anchors import AnchorSettings
from steval.data.effects.decoding import DecodingSettings
from support.predictor_models import lognorm_cells, manifest_for, tiny_config

SCORED = {"leaderboard": 40.04, "standard_error": 3.0, "pairs": 12, "kind": "validation"}
CARRIED = {"kind": "carried", "anchor": AnchorSettings()}


@pytest.mark.parametrize(
    ("decoding", "expected", "words"),
    [
        ({}, None, NOTHING),
        (
            {},
            {**SCORED, "standard_error": None, "pairs": 1},
            "On 1 held-out pair of perturbation and cell type: score 40.0 of 100",
        ),
        ({**CARRIED, "network_weight": 0.0}, SCORED, "score 40.0 ± 3.0 of 100"),
        ({**CARRIED, "network_weight": 0.0}, SCORED, "network added nothing to a simple model"),
        ({**CARRIED, "network_weight": 0.5}, SCORED, "share of 0.5"),
    ],
    ids=["nothing", "one pair", "score", "no network", "a share"],
)
def test_the_sentence(decoding, expected, words):
    calibration = None if expected is None else {"expected": expected}
    manifest = manifest_for(
        tiny_config(), lognorm_cells(), decoding=DecodingSettings(**decoding), calibration=calibration
    )
    assert words in evidence_sentence(manifest)
