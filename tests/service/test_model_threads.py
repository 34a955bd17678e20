"""Where tensors are computed: one thread for every network, and one that loads and ends."""

import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from steval.predictor.engine import Predictor
from steval.predictor.requests import request_names
from steval.service.models.threads import NetworkThread, PassingThread
from support.service_models import write_checkpoint
from support.shelves import taken


@pytest.fixture
def loader():
    thread = PassingThread("test-loader")
    yield thread
    thread.close()


def named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def wait_until(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_networks_run_one_after_another_in_the_order_they_came():
    networks, order, go = NetworkThread(), [], threading.Event()

    def ask(name: str) -> None:
        networks.run(lambda: order.append(name))

    first = threading.Thread(target=networks.run, args=(lambda: go.wait(30),))
    first.start()
    threads = []
    for place, name in enumerate("abcd", start=1):
        threads.append(threading.Thread(target=ask, args=(name,)))
        threads[-1].start()
        wait_until(lambda place=place: networks._executor._work_queue.qsize() >= place)
    assert order == []
    go.set()
    for thread in (first, *threads):
        thread.join(30)
    assert order == list("abcd")


def test_all_networks_run_in_one_thread_and_an_error_is_the_callers():
    networks = NetworkThread()
    assert networks.run(threading.get_ident) == networks.run(threading.get_ident) != threading.get_ident()

    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        networks.run(fail)
    assert networks.run(lambda: 3) == 3


def test_what_is_loaded_waits_its_turn_and_the_thread_ends_after_it(loader):
    order, go = [], threading.Event()
    futures = [loader.submit(lambda: order.append(go.wait(30)))]
    futures += [loader.submit(lambda name=name: order.append(name)) for name in "abc"]
    assert order == []
    assert len(named("test-loader")) == 1
    go.set()
    for future in futures:
        future.result(30)
    assert order == [True, "a", "b", "c"]
    wait_until(lambda: not named("test-loader"))
    assert loader.submit(lambda: order.append("later")).result(30) is None
    assert order[-1] == "later"


def test_what_fails_while_loading_is_told_and_stops_nothing(loader):
    def fail() -> None:
        raise OSError("gone")

    failed, fine = loader.submit(fail), loader.submit(lambda: None)
    with pytest.raises(OSError, match="gone"):
        failed.result(30)
    assert fine.result(30) is None


def test_closing_finishes_what_runs_and_cancels_the_rest(loader):
    started, go = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go.wait(30)

    running = loader.submit(work)
    waiting = loader.submit(lambda: None)
    assert started.wait(30)
    closing = threading.Thread(target=loader.close)
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result(30)
    assert loader.submit(lambda: None).cancelled()
    go.set()
    closing.join(30)
    assert running.done()
    assert running.result() is None


def test_passes_of_several_models_share_a_thread_and_nothing_stays_of_loading(
    shelves, service_cells, tmp_path: Path, monkeypatch
):
    """Each thread that computes with tensors keeps OpenMP's helpers, which slow those of the others while it lives."""
    for seed in (1, 2):
        write_checkpoint(shelves.directory / f"{seed}.safetensors", service_cells, seed=seed)
    threads: list[str] = []
    passes = Predictor.predict_blocks

    def watched(self, *arguments, **options):
        threads.append(threading.current_thread().name)
        return passes(self, *arguments, **options)

    monkeypatch.setattr(Predictor, "predict_blocks", watched)
    shelf = shelves()
    leases = [taken(shelf, name) for name in ("1", "2")]
    loaded, threads[:] = set(threads), []
    for lease in leases:
        model = lease.model
        plan = model.predictor.plan(request_names(["STAT1"], 16, seed=3), model.pool)
        with model.batcher.accept(plan.num_cells) as ticket:
            assert len(ticket.submit(next(plan.sets())).result(30).cells) == 16
    assert loaded == {"steval-loader"}
    assert len(threads) == 2
    assert set(threads) == {"steval-network_0"}
    wait_until(lambda: not named("steval-loader"))
    for lease in leases:
        lease.close()
