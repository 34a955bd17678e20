"""Checkpoints that predict together in a batch: as `steval predict A B` does, told apart from either alone."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import yaml

from steval.batch.settings import BatchManifest
from steval.data.cells.record import read_record
from steval.data.effects.decoding import DecodingSettings
from steval.errors import ConfigError
from steval.predictor.job import PredictionJob, run_job
from support.batch_cases import CONTROL, real_cells, write_checkpoint, write_manifest
from support.in_process import plan_of, run_in_process

CARRIED = DecodingSettings(kind="carried", effect_cells=16)
DATA = [{"real": "data/packaged.h5ad"}]
PREDICT = [{"name": "all", "do": "predict"}]


@pytest.fixture(scope="module")
def members(case: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints whose cells carry the effects of different networks."""
    place = tmp_path_factory.mktemp("members")
    return [
        write_checkpoint(place / f"{name}.safetensors", seed, real_cells(), decoding=CARRIED)
        for name, seed in (("one", 3), ("other", 4))
    ]


def of_both(case: Path, name: str, *checkpoints: object, **changes: object) -> Path:
    return write_manifest(case, name, checkpoints=list(checkpoints), data=DATA, **{"requests": PREDICT, **changes})


def test_a_list_predicts_as_the_command_with_several_does(case: Path, members: list[Path], tmp_path: Path):
    path = of_both(case, "together", {"path": list(map(str, members)), "name": "both"}, str(members[0]))
    assert not run_in_process(path).failed
    plan = plan_of(path)
    assert [job.checkpoint_name for job in plan.jobs] == ["one", "both"]
    alone, both = (ad.read_h5ad(plan.layout.predictions(job)) for job in plan.jobs)
    real, out = case / "data" / "packaged.h5ad", tmp_path / "both.h5ad"
    run_job(PredictionJob(checkpoint=members[0], others=(members[1],), request=real, out=out, device="cpu"))
    commanded = ad.read_h5ad(out)
    commanded = commanded[(commanded.obs["target_gene"] != CONTROL).to_numpy()]
    for name, part in commanded.obs.groupby("target_gene", observed=True):
        ours, theirs = (cells[(cells.obs["target_gene"] == name).to_numpy()].X.toarray() for cells in (both, commanded))
        assert len(ours) == len(part)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=str(name))
    assert np.abs(both.X - alone.X).max() > 0.01
    digests = [one["digest"] for one in read_record(both.uns)["details"]["predictor"]["ensemble"]]
    assert digests == [stamp.sha256 for stamp in plan.jobs[1].members]


def test_identity_is_that_of_all_members(case: Path, members: list[Path]):
    one, other = map(str, members)
    keys = {
        name: plan_of(of_both(case, "identity", checkpoints)).jobs[0].key
        for name, checkpoints in {
            "one": one,
            "list of one": [one],
            "both": [one, other],
            "turned": [other, one],
        }.items()
    }
    assert keys["one"] != keys["both"] != keys["turned"]
    assert len(set(keys.values())) == 4  # the name is a part of it


def test_what_does_not_fit_together_is_said_before_anything_runs(case: Path, members: list[Path], tmp_path: Path):
    other = write_checkpoint(tmp_path / "scaled.safetensors", 5, real_cells(), decoding=CARRIED, target_sum=1234.0)
    for name, checkpoints, message in (
        ("sum", [str(members[0]), str(other)], "differ in target sum"),
        ("cells", [str(members[0]), "models/a.safetensors"], "as the network puts its cells out"),
        ("absent", [str(members[0]), "nowhere.safetensors"], "no such"),
        ("nothing", ["nowhere/*.safetensors"], "nothing matches"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_of(of_both(case, name, checkpoints))
    with pytest.raises(ConfigError, match="more than one is named ensemble"):
        plan_of(of_both(case, "names", list(map(str, members)), list(map(str, members[::-1]))))
    with pytest.raises(ConfigError, match="name at least one checkpoint"):
        BatchManifest.parse({"checkpoints": [[]], "data": DATA})
    with pytest.raises(ConfigError, match="an adapter goes with one checkpoint"):
        BatchManifest.parse({"checkpoints": [{"path": ["a", "b"], "adapter": "c"}], "data": DATA})


def test_a_glob_in_a_list_takes_all_that_it_finds(case: Path, members: list[Path]):
    pattern = str(members[0].parent / "*.safetensors")
    plan = plan_of(of_both(case, "glob", [pattern]))
    assert [Path(stamp.place).name for stamp in plan.jobs[0].members] == ["one.safetensors", "other.safetensors"]
    assert yaml.safe_load((case / "glob.yaml").read_text())["checkpoints"] == [[pattern]]
