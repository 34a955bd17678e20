"""Foreign files: real content comes through, nothing else does, and nothing of a file is ever run."""

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from steval.checkpoints.safe_load import check_tensors, load_foreign
from steval.checkpoints.stand_ins import InertObject
from steval.errors import CheckpointError


class Payload:
    """Unpickling it writes a marker file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "executed"))


class ImportPayload:
    """Unpickling it calls `exec`, whose name is a builtin."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


def _places(payload: object) -> dict[str, object]:
    return {
        "top": payload,
        "hyper-parameters": {"state_dict": {}, "hyper_parameters": {"loss_fn": payload}},
        "state-dict": {"state_dict": OrderedDict(weight=torch.ones(2), other=payload)},
        "nested-map": {"TET1": {"deep": [(1, {"deeper": [payload]})]}},
        "key": {"list": [1, 2], "tail": ({"x": payload},)},
    }


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".torch", ".pkl"])
@pytest.mark.parametrize("place", list(_places(None)))
@pytest.mark.parametrize("kind", [Payload, ImportPayload])
@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle-2", "pickle-5"])
def test_a_payload_leaves_no_marker_and_is_named(tmp_path, suffix, place, kind, writer):
    marker = tmp_path / "marker"
    content = _places(kind(marker))[place]
    path = tmp_path / f"evil{suffix}"
    if writer.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(writer[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="Nothing of the file was executed") as raised:
        load_foreign(path)
    assert not marker.exists()
    assert sorted(tmp_path.iterdir()) == before
    assert raised.value.exit_code == 3
    assert any(name in str(raised.value) for name in ("builtins.exec", "__builtin__.exec", "pathlib", "getattr"))


def test_the_payload_would_run_under_pickle(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301 (shows that the test above tests something)
    assert marker.exists()


def test_a_payload_inside_plainly_pickled_tensor_bytes_is_refused(tmp_path):
    marker = tmp_path / "marker"
    inner = io.BytesIO()
    torch.save({"x": Payload(marker)}, inner, _use_new_zipfile_serialization=False)

    class Wrapped:
        def __reduce__(self):
            return (torch.storage._load_from_bytes, (inner.getvalue(),))

    path = tmp_path / "map.pkl"
    path.write_bytes(pickle.dumps({"TET1": Wrapped()}))
    with pytest.raises(CheckpointError, match="executed"):
        load_foreign(path)
    assert not marker.exists()


def _inner_loader(data: bytes) -> object:
    class Wrapped:
        def __reduce__(self):
            return (torch.storage._load_from_bytes, (data,))

    return Wrapped()


def test_tensor_bytes_nest_once_and_only_as_torch_streams(tmp_path):
    path = tmp_path / "map.pkl"
    path.write_bytes(pickle.dumps(_inner_loader(pickle.dumps({"plain": 1}))))
    with pytest.raises(CheckpointError, match="not a torch stream"):
        load_foreign(path)
    path.write_bytes(pickle.dumps(_inner_loader(pickle.dumps(_inner_loader(b"")))))
    with pytest.raises(CheckpointError, match="_load_from_bytes"):
        load_foreign(path)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (np.array([1.0, 2.0]), "numpy"),
        (np.array(["a"], dtype=object)[0:1], "numpy"),
        (torch.nn.functional.relu, "torch.nn.functional.relu"),
    ],
    ids=["module", "array", "object-array", "function"],
)
def test_types_outside_the_list_are_refused_by_name(tmp_path, value, name):
    path = tmp_path / "model.ckpt"
    torch.save({"hyper_parameters": {"thing": value}}, path)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_foreign(path)


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle-2", "pickle-4", "pickle-5"])
def test_real_content_comes_through_as_plain_values(tmp_path, writer):
    content = {
        "hyper_parameters": {
            "input_dim": np.int64(18_080),
            "lr": np.float32(0.5),
            "flag": np.bool_(True),
            "name": np.str_("TET1é"),
            "loss_fn": torch.nn.MSELoss(),
            "names": ["a", "b"],
        },
        "state_dict": OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(3, dtype=torch.bfloat16)),
        np.str_("key"): torch.arange(6).reshape(2, 3).T,
    }
    path = tmp_path / "model.pt"
    if writer.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(writer[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    loaded = load_foreign(path)
    settings = loaded["hyper_parameters"]
    assert [settings[k] for k in ("input_dim", "lr", "flag", "name")] == [18_080, 0.5, True, "TET1é"]
    assert type(settings["input_dim"]) is int
    assert type(settings["name"]) is str
    assert isinstance(settings["loss_fn"], InertObject)
    for name, tensor in content["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], tensor)
    assert torch.equal(loaded["key"], content["key"])


def test_the_allow_list_does_not_outlive_the_load(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"loss_fn": torch.nn.MSELoss()}, path)
    before = set(torch.serialization.get_safe_globals())
    load_foreign(path)
    assert set(torch.serialization.get_safe_globals()) == before


def _rezip(source: Path, target: Path, compression: int, extra: dict[str, bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for name, data in extra.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new.writestr(name, data)


@pytest.mark.parametrize(
    ("compression", "extra", "message"),
    [
        pytest.param(zipfile.ZIP_DEFLATED, {"model/data/9": bytes(50_000_000)}, "zip bomb", id="bomb"),
        pytest.param(zipfile.ZIP_STORED, {"model/data.pkl": b"\x80\x02}."}, "no entry twice", id="two-pickles"),
        pytest.param(zipfile.ZIP_STORED, {"other/data.pkl": b"\x80\x02}."}, "one folder", id="two-folders"),
        pytest.param(zipfile.ZIP_STORED, {"model/constants.pkl": b"\x80\x02)."}, "not an archive", id="torchscript"),
    ],
)
def test_archives_that_torch_would_not_write_are_refused(tmp_path, compression, extra, message):
    torch.save({"a": torch.ones(3)}, tmp_path / "model.pt")
    _rezip(tmp_path / "model.pt", tmp_path / "odd.pt", compression, extra)
    with pytest.raises(CheckpointError, match=message):
        load_foreign(tmp_path / "odd.pt")


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kept", [0, 3, 40, 0.5, 0.99])
def test_truncated_files_are_clear_errors(tmp_path, writer, kept):
    whole, path = tmp_path / "whole.pt", tmp_path / "cut.pt"
    content = {"a": torch.arange(1000.0)}
    if writer == "pickle":
        whole.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, whole, _use_new_zipfile_serialization=writer == "zip")
    data = whole.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        load_foreign(path)


def test_every_single_damaged_byte_is_an_error_or_harmless(tmp_path):
    """A flipped byte may change a value; it may not raise anything else than `CheckpointError`."""
    path = tmp_path / "map.pkl"
    data = pickle.dumps({np.str_("TET1"): torch.ones(2), "n": np.int64(3)}, protocol=2)
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x15]) + data[position + 1 :])
        try:
            load_foreign(path)
        except CheckpointError as error:
            assert "map.pkl" in str(error)


def test_legacy_tar_archives_are_refused_by_name(tmp_path):
    path = tmp_path / "old.pt"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("storages")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(CheckpointError, match="legacy tar format"):
        load_foreign(path)


def test_a_memo_bomb_is_refused_before_it_allocates(tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".")
    with pytest.raises(CheckpointError, match="memo number"):
        load_foreign(path)


@pytest.mark.parametrize(
    "step", [b"\x85", b"q\x00h\x00\x85", b"N0\x85", b"(K\x01t\x86"], ids=["plain", "memo", "junk", "mark"]
)
def test_tuples_nested_until_hashing_them_would_crash_are_refused(tmp_path, step):
    path = tmp_path / "deep.pkl"
    path.write_bytes(b"\x80\x02}K\x01" + step * 200_000 + b"K\x01s.")
    with pytest.raises(CheckpointError, match="nested more than"):
        load_foreign(path)


def test_a_storage_larger_than_the_file_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03N", b"J\xff\xff\xff\x7fN"))
    with pytest.raises(CheckpointError, match="in a file of"):
        load_foreign(path)


def test_an_expanded_view_is_refused(tmp_path):
    path = tmp_path / "view.pt"
    torch.save({"w": torch.ones(1).expand(1_000_000, 1_000_000)}, path)
    with pytest.raises(CheckpointError, match="larger than its data"):
        check_tensors(load_foreign(path), "view.pt")


def test_missing_files_and_folders_are_clear_errors(tmp_path):
    for path, answer in ((tmp_path / "none.ckpt", "no such file"), (tmp_path, "is a directory, not a checkpoint")):
        with pytest.raises(CheckpointError, match=answer):
            load_foreign(path)
