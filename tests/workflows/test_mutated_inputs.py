"""Valid inputs of every command, changed at random: labels, types, encodings, paths, options, environment, damage.

Whatever the change: the exit code is 0, 2, 3, 4 or 5, with one message where it is not 0 and no traceback; inputs are as they
were; nothing is under the output's name unless the code is 0; no secret is shown. A number is a case, always the same:

    STEVAL_TEST_MUTATIONS=2000 pytest tests/workflows/test_mutated_inputs.py                              # 2,000 for 200
    STEVAL_TEST_FIRST_MUTATION=17 STEVAL_TEST_MUTATIONS=1 pytest tests/workflows/test_mutated_inputs.py   # number 17 again
"""

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from steval.cli.app import COMMANDS
from tests.support.mutations.cases import make_case
from tests.support.mutations.commands import LINES, write_valid_inputs
from tests.support.mutations.forking import CommandServer
from tests.support.mutations.judge import contents, problems_of

FIRST = int(os.environ.get("STEVAL_TEST_FIRST_MUTATION", "0"))
NUMBERS = range(FIRST, FIRST + int(os.environ.get("STEVAL_TEST_MUTATIONS", "200")))


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    valid: Path
    server: CommandServer
    environment: dict[str, str]
    temporary: Path
    taken_port: int


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    place = tmp_path_factory.mktemp("mutations")
    for name in ("valid", "temporary", "home", "streams"):
        (place / name).mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("PROXY") and not name.startswith("STEVAL_")
    }
    environment = kept | {
        "TMPDIR": str(place / "temporary"), "HOME": str(place / "home"), "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True",
        "STEVAL_CACHE_DIR": str(place / "home" / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(place / "home" / "torch"),
    }  # fmt: skip
    with socket.socket() as taken, CommandServer(place / "streams") as server:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        write_valid_inputs(place / "valid", server, environment)
        yield Bench(place / "valid", server, environment, place / "temporary", taken.getsockname()[1])


def test_every_command_has_a_line() -> None:
    # push would need a hub: tests/checkpoints/test_hub.py has one
    assert {line.command for line in LINES} == set(COMMANDS) - {"push"}


@pytest.mark.parametrize("number", NUMBERS)
def test_case(bench: Bench, tmp_path: Path, number: int) -> None:
    place = tmp_path / "place"
    case = make_case(number, bench.valid, place, bench.environment, bench.taken_port)
    before = contents(place)
    ended = bench.server.run(case.started)
    problems = problems_of(case, ended, before, place, bench.temporary)
    shutil.rmtree(place)
    for left in bench.temporary.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert not problems, (
        f"{problems}\nsteval {' '.join(map(repr, case.started.arguments))}\n"
        + "\n".join(f"  {change}" for change in case.told)
        + f"\nexit code {ended.code}\n{ended.stdout[-1500:]}\n{ended.stderr[-4000:]}"
    )
