"""Valid inputs of every command, changed at random: labels, types, encodings, paths, options, environment, damage.

Whatever the change: the exit code is 0, 2, 3, 4 or 5, with one message where it is not 0 and no traceback; inputs are as they
were; nothing is under the output's name unless the code is 0; no secret is shown. A number is a case, always the same:

    STEVAL_TEST_MUTATIONS=2000 pytest tests/workflows/test_mutated_inputs.py                              # 2,000 for 200
    STEVAL_TEST_FIRST_MUTATION=17 STEVAL_TEST_MUTATIONS=1 pytest tests/workflows/test_mutated_inputs.py   # number 17 again
"""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from steval.cli.app import COMMANDS
from tests.support.mutations.commands import LINES
from tests.support.mutations.running import Bench, running

FIRST = int(os.environ.get("STEVAL_TEST_FIRST_MUTATION", "0"))
NUMBERS = range(FIRST, FIRST + int(os.environ.get("STEVAL_TEST_MUTATIONS", "200")))


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[int, "Future[str]"]]:
    """What is wrong with each case that was chosen: they run beside each other, ahead of the tests that ask."""
    place = tmp_path_factory.mktemp("mutations")
    for name in ("valid", "home", "scratch"):
        (place / name).mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("PROXY") and not name.startswith("STEVAL_")
    }
    environment = kept | {
        "HOME": str(place / "home"), "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True",
        "STEVAL_CACHE_DIR": str(place / "home" / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(place / "home" / "torch"),
    }  # fmt: skip
    chosen = [item for item in request.session.items if getattr(item, "function", None) is test_case]
    numbers = [item.callspec.params["number"] for item in chosen]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bench = Bench(place / "valid", environment, place / "scratch", taken.getsockname()[1])
        with running(bench, numbers) as found:
            yield found


def test_every_command_has_a_line() -> None:
    # push would need a hub: tests/checkpoints/test_hub.py has one
    assert {line.command for line in LINES} == set(COMMANDS) - {"push"}


@pytest.mark.parametrize("number", NUMBERS)
def test_case(outcomes: dict[int, "Future[str]"], number: int) -> None:
    problem = outcomes[number].result()
    assert not problem, problem
