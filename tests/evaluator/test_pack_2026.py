"""Submissions of 2026: what `vcc prep` refuses is refused, what it takes comes out the same."""

import json
import os
import subprocess
import tarfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zstandard

from steval.data.challenge.panel import CELLS_EACH, read_panel
from steval.errors import ConfigError, DataError, OutputError, StevalError
from steval.evaluator.challenge import season2026
from steval.evaluator.challenge.refusals import ValueCheck, label_problems
from steval.evaluator.challenge.season2026 import pack_counts
from support.challenge import CASES, CONTEXTS, GENES, PERTURBATIONS, predictions, write_lists

PEER = os.environ.get("STEVAL_CELL_EVAL2_PYTHON", "")


def packed(path: Path, bundle: Path, out: Path, **options):
    return pack_counts(path, out, genes=bundle / "gene_names.csv", perturbations=bundle / "pert_counts.csv", **options)


def unpacked(path: Path) -> tuple[list[str], dict, ad.AnnData]:
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    target = path.with_suffix(".unpacked.h5ad")
    target.write_bytes(zstandard.ZstdDecompressor().stream_reader(members["pred.h5ad.zst"]).read())
    return list(members), json.loads(members["meta.json"]), ad.read_h5ad(target)


@pytest.mark.parametrize("case", [case for case in CASES if case.is_refused], ids=lambda case: case.name)
def test_what_vcc_prep_refuses_is_refused_and_leaves_nothing(case, tmp_path):
    path, bundle = case.write(tmp_path)
    with pytest.raises(StevalError, match=case.says):
        packed(path, bundle, tmp_path / "out.vcc")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bundle", "pred.h5ad"]


@pytest.mark.parametrize("case", [case for case in CASES if not case.is_refused], ids=lambda case: case.name)
def test_what_it_takes_is_packed_as_it_is(case, tmp_path, monkeypatch):
    monkeypatch.setattr(season2026, "BLOCK_CELLS", 97)
    path, bundle = case.write(tmp_path)
    given = ad.read_h5ad(path)
    given.X = given.X if isinstance(given.X, np.ndarray) else given.X.toarray()
    submission = packed(path, bundle, tmp_path / "out.vcc")
    names, meta, found = unpacked(tmp_path / "out.vcc")
    assert names == ["meta.json", "pred.h5ad.zst"]
    assert found.X.dtype == np.float32
    assert list(found.var_names) == list(GENES)
    np.testing.assert_array_equal(found.X.toarray(), given[:, list(GENES)].X)
    for column in ("target_gene", "context"):
        assert found.obs[column].astype(str).tolist() == given.obs[column].astype(str).tolist()
    assert list(found.obs.columns) == ["target_gene", "context"]
    assert not found.uns and not found.layers and not found.obsm
    assert meta["nnz"] == found.X.nnz == submission.num_values
    assert (meta["n_obs"], meta["n_vars"], meta["contexts"]) == (480, len(GENES), list(CONTEXTS))
    assert meta["panel_id"] == "small"
    assert submission.contexts == dict.fromkeys(CONTEXTS, 160)


def test_all_problems_come_together(tmp_path):
    bundle, cells = write_lists(tmp_path / "bundle"), predictions()
    dense = cells.X.toarray()
    dense[0, 0], dense[1, 1], dense[2, 2], dense[3, 3] = 0.5, -1, np.nan, 2e6
    cells.X = dense
    labels, contexts = cells.obs["target_gene"].to_numpy(dtype=object), cells.obs["context"].to_numpy(dtype=object)
    labels[40], labels[41], contexts[200] = "non-targeting", "GENE0-2", "Z"
    cells.obs["target_gene"], cells.obs["context"] = labels, contexts
    cells[:, 1:].copy().write_h5ad(tmp_path / "pred.h5ad")
    with pytest.raises(DataError) as caught:
        packed(tmp_path / "pred.h5ad", bundle, tmp_path / "out.vcc")
    text = str(caught.value)
    for said in (
        "below 0",
        "NaN or infinite",
        "more than 1,000,000",
        "1 control cell ",
        "names of guides",
        "contexts Z",
        "of the list missing: GENE0",
    ):
        assert said in text
    assert len(caught.value.problems) >= 8


def test_contexts_that_are_named_win_over_the_manifest(tmp_path):
    bundle, cells = write_lists(tmp_path / "bundle"), predictions()
    cells.obs["context"] = cells.obs["context"].astype(str).replace(dict(zip("ABC", "DEF", strict=True)))
    cells.write_h5ad(tmp_path / "pred.h5ad")
    packed(tmp_path / "pred.h5ad", bundle, tmp_path / "out.vcc", contexts=("D", "E", "F"))
    meta = unpacked(tmp_path / "out.vcc")[1]
    assert meta["contexts"] == ["D", "E", "F"]
    assert "panel_id" not in meta  # the manifest's panel is that of other contexts


def test_other_column_names(tmp_path):
    from steval.data.columns import ColumnOptions

    bundle, cells = write_lists(tmp_path / "bundle"), predictions()
    cells.obs.columns = ["gene", "line"]
    cells.write_h5ad(tmp_path / "pred.h5ad")
    packed(
        tmp_path / "pred.h5ad",
        bundle,
        tmp_path / "out.vcc",
        columns=ColumnOptions(perturbation="gene"),
        context_column="line",
    )
    assert list(unpacked(tmp_path / "out.vcc")[2].obs.columns) == ["target_gene", "context"]


def test_cells_without_a_label_are_left_out_when_told(tmp_path, caplog):
    from steval.data.columns import ColumnOptions

    bundle, cells = write_lists(tmp_path / "bundle"), predictions()
    more = cells[:7].copy()
    more.obs_names = [f"more{number}" for number in range(7)]
    more.obs["target_gene"] = [np.nan] * 4 + ["GENE0"] * 3
    more.obs["context"] = ["A"] * 4 + [""] * 3
    ad.concat([cells, more]).write_h5ad(tmp_path / "pred.h5ad")
    options = ColumnOptions(drop_unlabelled=True)
    packed(tmp_path / "pred.h5ad", bundle, tmp_path / "out.vcc", columns=options)
    assert "7 of 487 cells left out" in caplog.text
    cells.write_h5ad(tmp_path / "whole.h5ad")
    packed(tmp_path / "whole.h5ad", bundle, tmp_path / "whole.vcc")
    assert (unpacked(tmp_path / "out.vcc")[2].X != unpacked(tmp_path / "whole.vcc")[2].X).nnz == 0


def test_more_cells_or_values_than_scoring_takes(tmp_path, monkeypatch):
    bundle = write_lists(tmp_path)
    panel = read_panel(bundle / "gene_names.csv", bundle / "pert_counts.csv")
    labels = np.full(400_001, "GENE0", dtype=object)
    assert "400,001 cells; a submission holds at most 400,000" in label_problems(labels, None, panel, "non-targeting")
    check = ValueCheck(np.array(["GENE0", "GENE1"], dtype=object))
    check.row_sizes[:] = 2_375_000_001
    assert "4,750,000,002 stored values; scoring takes at most 4,750,000,000" in check.problems()


def test_the_list_of_2026_has_no_numbers(tmp_path):
    bundle = write_lists(tmp_path)
    (bundle / "pert_counts.csv").write_text("target_gene\nGENE0\nGENE1\n")
    panel = read_panel(bundle / "gene_names.csv", bundle / "pert_counts.csv")
    assert panel.perturbations["B"] == {"GENE0": CELLS_EACH, "GENE1": CELLS_EACH}


def test_the_output_takes_no_input_s_place_and_has_the_archive_s_name(tmp_path):
    bundle = write_lists(tmp_path / "bundle")
    predictions().write_h5ad(tmp_path / "pred.h5ad")
    (tmp_path / "link.vcc").symlink_to(tmp_path / "pred.h5ad")
    for out in (tmp_path / "link.vcc", tmp_path / "out.tar"):
        with pytest.raises(ConfigError):
            packed(tmp_path / "pred.h5ad", bundle, out)


def test_a_directory_in_the_output_s_place(tmp_path):
    bundle = write_lists(tmp_path / "bundle")
    predictions().write_h5ad(tmp_path / "pred.h5ad")
    (tmp_path / "out.vcc").mkdir()
    with pytest.raises(OutputError):
        packed(tmp_path / "pred.h5ad", bundle, tmp_path / "out.vcc")


_PREP = """
import contextlib, io, json, pathlib, sys, warnings
warnings.simplefilter("ignore")
from vcc import panel, prep, vccfile
found = {}
for name, path, bundle, ours in json.load(sys.stdin):
    genes, perts = f"{bundle}/gene_names.csv", f"{bundle}/pert_counts.csv"
    try:
        contexts, manifest = panel.resolve_contexts(None, perts=perts, genes=genes)
        prep.run_prep(input_path=path, genes_path=genes, perts_path=perts, output_path=path + ".vcc", required_contexts=contexts,
                      panel_id=manifest.panel_id)
        found[name] = [False, None]
        vccfile.validate_vcc(ours)
        found[name][1] = [vccfile.read_vcc_meta(ours), vccfile.nnz_from_vcc(ours), list(vccfile.contexts_from_vcc(ours))]
    except (prep.PrepError, panel.ContextsError) as error:
        found[name] = [True, str(error).splitlines()[0]]
json.dump(found, sys.stdout)
"""


@pytest.mark.peer
@pytest.mark.skipif(not PEER, reason="STEVAL_CELL_EVAL2_PYTHON names no Python that has vcc-cli")
def test_vcc_prep_refuses_the_same_and_reads_what_is_packed(tmp_path):
    asked, refused, written = [], {}, {}
    for number, case in enumerate(CASES):
        directory = tmp_path / str(number)
        directory.mkdir()
        path, bundle = case.write(directory)
        written[case.name] = path
        ours = directory / "ours.vcc"
        try:
            packed(path, bundle, ours)
            refused[case.name] = False
        except StevalError:
            refused[case.name] = True
        asked.append([case.name, str(path), str(bundle), str(ours)])
    done = subprocess.run([PEER, "-c", _PREP], input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout[done.stdout.index("{") :])
    assert {name: found[0] for name, found in theirs.items()} == refused
    for case in CASES:
        if case.is_refused:
            continue
        path = written[case.name]
        _, their_meta, expected = unpacked(Path(f"{path}.vcc"))
        _, meta, found = unpacked(path.with_name("ours.vcc"))
        pd.testing.assert_frame_equal(found.obs, expected.obs)
        pd.testing.assert_frame_equal(found.var, expected.var)
        assert (found.X != expected.X).nnz == 0 and found.X.dtype == expected.X.dtype
        assert type(found.X) is type(expected.X) or case.name == "a matrix by columns"
        same = [key for key in their_meta if key != "cli_version"]
        assert {key: meta[key] for key in same} == {key: their_meta[key] for key in same}
        assert theirs[case.name][1] == [meta, found.X.nnz, list(CONTEXTS)]


def test_the_frame_s_header_says_how_long_the_cells_are(tmp_path):
    bundle = write_lists(tmp_path)
    predictions().write_h5ad(tmp_path / "pred.h5ad")
    packed(tmp_path / "pred.h5ad", bundle, tmp_path / "out.vcc")
    with tarfile.open(tmp_path / "out.vcc") as tar:
        frame = tar.extractfile("pred.h5ad.zst").read()
    assert len(zstandard.ZstdDecompressor().decompress(frame)) == zstandard.frame_content_size(frame) > 0


def test_a_full_disk_is_one_error_that_leaves_nothing(tmp_path):
    import resource

    bundle = write_lists(tmp_path / "bundle")
    predictions().write_h5ad(tmp_path / "bundle" / "pred.h5ad")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*out\.vcc: File too large$"):
            packed(tmp_path / "bundle" / "pred.h5ad", bundle, tmp_path / "out.vcc")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_perturbations_of_the_lists_are_the_peers_fingerprint(tmp_path):
    """sha256 of the sorted names, one a line, computed by hand."""
    import hashlib

    bundle = write_lists(tmp_path)
    expected = hashlib.sha256("\n".join(sorted(PERTURBATIONS)).encode()).hexdigest()
    assert read_panel(bundle / "gene_names.csv", bundle / "pert_counts.csv").fingerprint == f"sha256:{expected}"
