"""A resumed run sees the files that it was started with, wherever they lie now, and nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steval.data.cells.cellfile import CellFile
from steval.errors import CheckpointError, ConfigError, DataError
from steval.trainer.config import FinetuneConfig
from steval.trainer.run import RunResult
from support.tiny_runs import assert_same_run, run, stop_at, tiny_config

STEPS = ("phases.0.steps=5", "phases.1.steps=3", "checks.save_every=1")


@pytest.fixture
def place(screen_path: Path, tmp_path: Path) -> Path:
    """A directory with two data files, perturbation features and a gene list of one screen."""
    place = tmp_path / "place"
    place.mkdir()
    for name in ("a.h5ad", "b.h5ad"):
        (place / name).write_bytes(screen_path.read_bytes())
    with CellFile.open(screen_path) as cells:
        names = sorted(set(cells.obs["target_gene"].astype(str)))
        (place / "genes.txt").write_text("\n".join(cells.genes))
    generator = np.random.default_rng(0)
    np.savez(place / "features.npz", **{name: generator.normal(size=6).astype(np.float32) for name in names})
    return place


def config(place: Path, *overrides: str) -> FinetuneConfig:
    more = (f"data.features={place / 'features.npz'}", f"data.gene_list={place / 'genes.txt'}")
    return tiny_config(place / "*.h5ad", *STEPS, *more, *overrides)


def stopped(place: Path, run_dir: Path, **options: Any) -> RunResult:
    result = run(config(place), run_dir, on_step=stop_at(2), **options)
    assert not result.finished
    return result


def test_a_moved_run_goes_on_by_content(place: Path, tmp_path: Path) -> None:
    run(config(place), tmp_path / "whole")
    stopped(place, tmp_path / "run")
    (tmp_path / "elsewhere" / "below").mkdir(parents=True)
    for path in place.iterdir():
        path.rename(tmp_path / "elsewhere" / "below" / path.name)
    with pytest.raises(DataError, match="has moved or has changed") as caught:
        run(None, tmp_path / "run", resume=True)
    assert all(name in str(caught.value) for name in ("a.h5ad", "b.h5ad", "features.npz", "genes.txt"))
    first = run(None, tmp_path / "run", resume=True, data_dirs=(tmp_path / "elsewhere",), on_step=stop_at(4))
    assert not first.finished
    assert run(None, tmp_path / "run", resume=True).finished  # where they are now is on record
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_files_may_be_given_under_other_names(place: Path, tmp_path: Path) -> None:
    run(config(place), tmp_path / "whole")
    stopped(place, tmp_path / "run")
    for path in list(place.iterdir()):
        path.rename(place / f"new-{path.name}")
    given = FinetuneConfig.load(
        tmp_path / "run" / "config.yaml",
        [
            f"data.files=['{place}/new-*.h5ad']", f"data.features={place}/new-features.npz",
            f"data.gene_list={place}/new-genes.txt", "data.memory_gb=0", "compute.workers=0",
        ],
    )  # fmt: skip
    assert run(given, tmp_path / "run", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_glob_is_not_read_again(place: Path, screen_path: Path, tmp_path: Path) -> None:
    run(config(place), tmp_path / "whole")
    stopped(place, tmp_path / "run")
    (place / "aa.h5ad").write_bytes(screen_path.read_bytes())
    assert run(None, tmp_path / "run", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_what_changed_or_is_gone_is_refused_and_nothing_touched(place: Path, tmp_path: Path) -> None:
    stopped(place, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    for name in ("a.h5ad", "b.h5ad", "features.npz", "genes.txt"):
        content = (place / name).read_bytes()
        (place / name).write_bytes(content + b"\n")
        with pytest.raises(DataError, match=f"{name}: has another content"):
            run(None, tmp_path / "run", resume=True, data_dirs=(place,))
        (place / name).unlink()
        with pytest.raises(DataError, match=f"{name}: is not there"):
            run(None, tmp_path / "run", resume=True)
        (place / name).write_bytes(content)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


def test_the_checkpoint_that_a_run_started_from_must_be_the_same(place: Path, tmp_path: Path) -> None:
    base = run(config(place), tmp_path / "base").best
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(base.read_bytes())
    network = {"network": {}}
    start = FinetuneConfig.parse(config(place).as_dict() | network)
    assert not run(start, tmp_path / "run", init_from=weights, on_step=stop_at(2)).finished
    weights.write_bytes(run(config(place, "seed=1"), tmp_path / "other").best.read_bytes())
    with pytest.raises(CheckpointError, match="has another content now"):
        run(None, tmp_path / "run", resume=True)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        run(None, tmp_path / "run", resume=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / weights.name).write_bytes(base.read_bytes())
    assert run(None, tmp_path / "run", resume=True, data_dirs=(tmp_path / "kept",)).finished


def test_another_split_file_is_not_read(screen_path: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.toml"
    with CellFile.open(screen_path) as cells:
        names = sorted(set(cells.obs["target_gene"].astype(str)) - {"non-targeting"})
    split.write_text(
        f'[datasets]\nscreen = "{screen_path}"\n[training]\nscreen = "train"\n'
        f'[fewshot."screen.left"]\nval = ["{names[0]}"]\ntest = ["{names[1]}"]\n'
    )
    values = tiny_config(screen_path, *STEPS).as_dict()
    values["data"] = {"split": {"by": "toml", "path": str(split)}}
    start = FinetuneConfig.parse(values)
    run(start, tmp_path / "whole")
    assert not run(start, tmp_path / "run", on_step=stop_at(2)).finished
    split.unlink()
    assert run(None, tmp_path / "run", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_what_would_be_computed_otherwise_is_refused(place: Path, tmp_path: Path) -> None:
    stopped(place, tmp_path / "run")
    for override, named in (
        ("seed=9", "seed: it was started with 42, now given 9"),
        ("phases.0.steps=30", "phases.0.steps: "),
        ("network.hidden_dim=32", "network.hidden_dim: it was started with 16, now given 32"),
        ("data.target_sum=5", "data.target_sum: "),
        ("data.features=null", "data.features: "),
        ("data.evaluation_file=x.h5ad", "data.evaluation_file: "),
    ):
        given = FinetuneConfig.load(tmp_path / "run" / "config.yaml", [override])
        with pytest.raises(ConfigError, match="differs from the one") as caught:
            run(given, tmp_path / "run", resume=True)
        assert named in str(caught.value)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
