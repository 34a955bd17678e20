"""The house stays one that a newcomer finds the way in: its size, and docs/architecture.md against what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "steval"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(place.parent for place in PACKAGE.rglob("__init__.py"))
MOST_MODULES, MOST_LINES = 15, 400


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(ROOT).as_posix())
def test_a_room_is_small_enough_to_be_read(room: Path):
    modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    long = {path.name: lines for path in modules if (lines := path.read_bytes().count(b"\n")) > MOST_LINES}
    assert long == {}


def test_every_room_is_drawn():
    """The tree of the page, by its indents, has every package, and no folder that is not there."""
    tree = re.search(r"^steval/\n((?:  .*\n)+)", PAGE, re.MULTILINE)
    assert tree is not None
    drawn, above = set(), []
    for line in tree.group(1).splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        if name.endswith("/"):
            above = [*above[: depth - 1], name.rstrip("/")]
            drawn.add("/".join(above))
    assert {room.relative_to(PACKAGE).as_posix() for room in ROOMS} - {"."} - drawn == set()
    assert [place for place in drawn if not (PACKAGE / place).is_dir()] == []


def test_what_to_touch_is_there():
    section = re.search(r"^## What to touch\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None
    rows = [line.split("|")[2] for line in section.group(1).splitlines() if line.startswith("| a")]
    assert len(rows) >= 9
    for row in rows:
        places = [place for place in re.findall(r"`([\w/.]+)`", row) if "/" in place]
        assert places, row
        for place in places:
            inside = PACKAGE / place
            # a second place in a row may be named from the room of the first
            near = PACKAGE / places[0].split("/")[0] / place
            outside = PACKAGE.parent / place if place.startswith("client/") else inside  # the client's own distribution
            assert inside.exists() or near.exists() or outside.exists(), place
