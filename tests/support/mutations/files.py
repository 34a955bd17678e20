"""Odd files: damaged, of another kind, under odd names, special ones."""

import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ODD_PARTS = (
    "a b", " lead", "trail ", "é", "e\u0301", "名前", "[ab]", "a*b?", "a'b", 'a"b', "a$HOME", "~", "a;b", "a\nb", "a\tb", "#x",
    "%41",
    "a&b", "\udcff\udcfe", "n" * 150, "{x}", "a:b", "a,b", "a=b", "\x1b[31m", "!important", "@x", "null", "0x10", "..a",
)  # fmt: skip
"""Parts of names that a file system takes; the surrogates are bytes that are no UTF-8."""


def odd_name(name: str, rng: random.Random) -> str:
    """`name` with its suffix, behind or below something odd."""
    part = rng.choice(ODD_PARTS)
    return rng.choice([f"{part}{name}", f"{part}/{name}", f"./{part}/../{name}", f"-{name}"])


def damage(path: Path, rng: random.Random) -> str:
    """Some bytes lost, changed or added."""
    content = bytearray(path.read_bytes())
    way = rng.choice(["cut", "cut", "flip", "flip", "flip many", "empty", "tail", "zeros"])
    if way == "cut":
        del content[rng.randrange(1 + len(content)) :]
    elif way == "empty":
        content.clear()
    elif way == "tail":
        content += rng.randbytes(500)
    elif way == "zeros":
        start = rng.randrange(1 + len(content))
        content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    else:
        for _ in range(1 if way == "flip" else 50):
            if content:  # half of the changes fall into the first kilobytes, where formats describe themselves
                place = rng.randrange(len(content) if rng.random() < 0.5 else min(len(content), 4096))
                content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"{path.name}: {way}"


def foreign(path: Path, rng: random.Random) -> str:
    """Another format under the name."""
    buffer = io.BytesIO()
    kind = rng.choice(
        ["text", "zip", "npz", "gzip", "pickle", "png", "json", "yaml", "csv", "safetensors", "bytes", "pdf", "utf-16"]
    )
    if kind in ("zip", "npz"):
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("data.pkl" if kind == "zip" else "x.npy", b"\x80\x02N.")
    made = {
        "text": b"hello\n", "gzip": gzip.compress(path.read_bytes()[:10_000]), "png": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "pickle": pickle.dumps({"state_dict": [1, 2], "x": np.zeros(3)}), "json": b'{"a": [1, 2, null]}',
        "yaml": b"a: 1\nb: [1, 2]\n",
        "csv": b"perturbation,num_cells\nSTAT1,3\n", "bytes": rng.randbytes(3000), "pdf": b"%PDF-1.4\n%\xe2\xe3",
        "utf-16": "a: é".encode("utf-16"),
        "safetensors": struct.pack("<Q", 60)
        + b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust(60) + bytes(4),
    }  # fmt: skip
    path.write_bytes(made.get(kind, buffer.getvalue()))
    return f"{path.name}: is {kind}"


def special(path: Path, rng: random.Random) -> str:
    """No plain file under the name."""
    kind = rng.choice(["pipe", "directory", "loop", "broken link", "device", "nothing", "link", "socket"])
    moved = path.with_name(f"moved-{rng.randrange(10**6)}-{path.name}"[:200])
    path.rename(moved)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind in ("loop", "broken link", "device", "link"):
        targets = {
            "loop": path.name,
            "broken link": "nowhere",
            "device": rng.choice(["/dev/null", "/dev/zero"]),
            "link": moved.name,
        }
        path.symlink_to(targets[kind])  # fmt: skip
    elif kind == "socket":
        os.mknod(path, 0o140644)
    return f"{path.name}: {kind}"


def change_text(path: Path, rng: random.Random) -> str:
    """A text file in another encoding, with other lines."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    way = rng.choice(
        ["bom", "utf-16", "latin-1", "crlf", "nul", "drop", "repeat", "shuffle", "blank", "cell", "long", "invalid"]
    )
    if way in ("drop", "repeat", "blank", "shuffle", "cell") and lines:
        place = rng.randrange(len(lines))
        if way == "drop":
            del lines[place]
        elif way == "repeat":
            lines.insert(place, lines[place])
        elif way == "blank":
            lines.insert(place, rng.choice(["", " ", ",", "\t", ",,,", "#"]))
        elif way == "shuffle":
            rng.shuffle(lines)
        else:
            cells = lines[place].split(",")
            odd = [
                "",
                " ",
                "-1",
                "nan",
                "inf",
                "1e20",
                "9" * 25,
                "x",
                '"',
                "'a,b'",
                "1.5",
                "é",
                "=1",
                "NA",
                "0",
                "\x1b[2J",
                "true",
            ]
            cells[rng.randrange(len(cells))] = rng.choice(odd)
            lines[place] = ",".join(cells)
        text = "\n".join(lines)
    elif way == "long":
        text += "x" * 300_000
    elif way == "nul":
        text = text.replace("\n", "\x00\n", 1)
    content = text.replace("\n", "\r\n") if way == "crlf" else text
    encoding = {"bom": "utf-8-sig", "utf-16": "utf-16", "latin-1": "latin-1"}.get(way, "utf-8")
    if way == "latin-1":
        content += "\u00e9\u00ff"
    path.write_bytes(content.encode(encoding) + (b"\xff\xfe" if way == "invalid" else b""))
    return f"{path.name}: {way}"


ODD_SETTINGS: tuple[Any, ...] = (
    None, "", " ", 0, -1, 1, 10**6, 2**24, 10**12, 10**30,
    1e308, float("nan"), float("inf"), True, [], [[]], {}, {"a": 1}, "nan", "x", "é", ["x"],
    [None],
    "1e400", "../..", "/", "/dev/null", "a\x00b", 0.5, "9" * 40, "\x1b[31m", [1, 2, 3], "~", "*", "[",
)  # fmt: skip


def change_settings(path: Path, rng: random.Random) -> str:
    """One value somewhere in a YAML file replaced, removed, or given another name."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError("changed before into what is no YAML") from error
    places = list(_places(values))
    holder, key = rng.choice(places)
    way = rng.choice(["value", "value", "value", "remove", "rename"])
    odd = rng.choice(ODD_SETTINGS)
    if way == "value" or isinstance(holder, list):
        holder[key] = odd
    elif way == "remove":
        del holder[key]
    else:
        holder[rng.choice([f"{key}s", f"{key}"[:-1] or "x", "é", "1"])] = holder.pop(key)
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")
    return f"{path.name}: {key}: {way} {odd if way == 'value' else ''!r}"


def change_description(path: Path, rng: random.Random) -> str:
    """One value of what a checkpoint says about itself, or about a tensor, replaced; its length stays right."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    described = json.loads(metadata["steval"])
    whole = rng.random() < 0.25
    holder, key = rng.choice(list(_places(header if whole else described)))
    odd = rng.choice([one for one in ODD_SETTINGS if one == one])
    holder[key] = odd
    if not whole:
        metadata["steval"] = json.dumps(described)
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    return f"{path.name}: {key} = {odd!r}"


def _places(value: Any) -> Any:
    """Every `(container, key)` in nested plain values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)
