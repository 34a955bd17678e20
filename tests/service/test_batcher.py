"""The micro-batcher: order, fairness, isolation of bad sets, limits, draining."""

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from steval.errors import ServiceError
from steval.predictor.cells.predicted import PredictedSet
from steval.predictor.sets import PlannedSet
from steval.service.predict.batcher import WINDOW_CELLS, MicroBatcher


def planned(name: str, number: int = 0, num_cells: int = 4) -> PlannedSet:
    return PlannedSet(0, name, "H1", None, number, np.arange(num_cells), 0)


class Network:
    """Records its batches; each set's cells hold its number. Sets named `bad` raise; `gate` holds it back."""

    def __init__(self):
        self.batches: list[list[PlannedSet]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, sets):
        self.entered.set()
        self.gate.wait(10)
        self.batches.append(list(sets))
        for one in sets:
            if one.perturbation == "bad":
                raise ValueError("no such thing")
            yield PredictedSet(one, np.full((one.num_cells, 2), one.number, dtype=np.float32))


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def batcher(network):
    made = MicroBatcher(network, batch_cells=16, max_queued_cells=64, linger=0.0)
    yield made
    network.gate.set()
    made.stop()


def hold(network, batcher):
    """Occupy the network with one set until the gate opens."""
    network.gate.clear()
    network.entered.clear()
    ticket = batcher.accept(1)
    future = ticket.submit(planned("first", num_cells=1))
    assert network.entered.wait(5)
    return ticket, future


def test_results_come_in_the_order_of_the_request(batcher):
    sets = [planned("a", number) for number in range(10)]
    with batcher.accept(40) as ticket:
        numbers = [future.result(5).cells[0, 0] for future in ticket.windows(sets)]
    assert numbers == list(range(10))


def test_a_bad_set_fails_alone(network, batcher):
    hold(network, batcher)
    one, two = batcher.accept(8), batcher.accept(4)
    futures = [one.submit(planned("good", 1)), two.submit(planned("bad")), one.submit(planned("good", 2))]
    network.gate.set()
    assert [futures[0].result(5).cells[0, 0], futures[2].result(5).cells[0, 0]] == [1, 2]
    with pytest.raises(ValueError, match="no such thing"):
        futures[1].result(5)
    assert [one.perturbation for one in network.batches[1]] == ["good", "bad", "good"]


@pytest.mark.parametrize("names", [("good",), ("good", "also good", "good"), ("good", "bad")])
def test_a_batch_is_counted_once_and_before_whoever_asked_could_look(network, names):
    told, futures = [], []

    def observe(num_sets: int, num_cells: int, seconds: float) -> None:
        told.append((num_sets, num_cells, all(future.done() for future in futures)))
        assert seconds >= 0

    made = MicroBatcher(network, batch_cells=16, max_queued_cells=64, linger=0.0, observe=observe)
    hold(network, made)
    with made.accept(12) as ticket:
        futures += [ticket.submit(planned(name)) for name in names]
        network.gate.set()
        for future, name in zip(futures, names, strict=True):
            assert (future.exception(5) is not None) == (name == "bad")
    made.stop()
    counted = [(num_sets, num_cells) for num_sets, num_cells, _ in told]
    assert counted[0] == (1, 1)
    assert sum(num_sets for num_sets, _ in counted[1:]) == len(names)
    assert sum(num_cells for _, num_cells in counted[1:]) == 4 * len(names)
    assert "bad" in names or not told[-1][2]


def test_requests_take_turns(network, batcher):
    hold(network, batcher)
    large, small = batcher.accept(40), batcher.accept(4)
    futures = [large.submit(planned("large", number)) for number in range(10)]
    futures.append(small.submit(planned("small")))
    network.gate.set()
    for future in futures:
        future.result(5)
    assert "small" in [one.perturbation for one in network.batches[1]]


def test_batches_hold_several_requests_and_no_more_cells_than_allowed(network, batcher):
    hold(network, batcher)
    tickets = [batcher.accept(4) for _ in range(6)]
    futures = [ticket.submit(planned(f"p{number}")) for number, ticket in enumerate(tickets)]
    network.gate.set()
    for future in futures:
        future.result(5)
    assert [len(batch) for batch in network.batches] == [1, 4, 2]


def test_a_set_larger_than_a_batch_goes_alone(network, batcher):
    with batcher.accept(40) as ticket:
        assert ticket.submit(planned("huge", num_cells=40)).result(5).cells.shape == (40, 2)


def test_a_full_queue_is_503_with_retry_after_and_lets_go_when_tickets_close(batcher):
    first = batcher.accept(60)
    with pytest.raises(ServiceError, match="queue is full") as caught:
        batcher.accept(5)
    assert (caught.value.http_status, caught.value.code) == (503, "busy")
    assert caught.value.retry_after >= 1
    first.close()
    first.close()
    assert batcher.reserved_cells == 0
    batcher.accept(64).close()


def test_closing_drops_what_waits_and_refuses_more(network, batcher):
    hold(network, batcher)
    ticket = batcher.accept(8)
    waiting = ticket.submit(planned("left"))
    ticket.close()
    network.gate.set()
    with pytest.raises(CancelledError):
        waiting.result(5)
    with pytest.raises(CancelledError):
        ticket.submit(planned("late"))
    with batcher.accept(4) as other:
        other.submit(planned("next")).result(5)
    assert "left" not in [one.perturbation for batch in network.batches for one in batch]


def test_a_slow_reader_keeps_a_bounded_number_of_cells_in_memory(network):
    batcher = MicroBatcher(network, batch_cells=512, max_queued_cells=10**6, linger=0.0)
    sets = [planned("a", number, 64) for number in range(100)]
    with batcher.accept(6400) as ticket:
        futures = ticket.windows(sets)
        next(futures).result(5)
        time.sleep(0.2)
        computed = sum(one.num_cells for batch in network.batches for one in batch)
    batcher.stop()
    assert computed <= WINDOW_CELLS + 64


def test_stop_finishes_what_was_accepted(network):
    batcher = MicroBatcher(network, batch_cells=16, max_queued_cells=640, linger=0.0)
    hold(network, batcher)
    ticket = batcher.accept(400)
    futures = [ticket.submit(planned("a", number)) for number in range(100)]
    stopper = threading.Thread(target=batcher.stop)
    stopper.start()
    network.gate.set()
    stopper.join(10)
    assert not stopper.is_alive()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(ServiceError, match="shutting down"):
        batcher.accept(1)


def test_lingering_gathers_the_clients_of_the_last_batch(network):
    batcher = MicroBatcher(network, batch_cells=64, max_queued_cells=640, linger=60.0)  # until all have come back
    _, first = hold(network, batcher)
    tickets = [batcher.accept(100) for _ in range(3)]
    futures = [ticket.submit(planned("a")) for ticket in tickets]
    network.gate.set()
    for future in (first, *futures):
        future.result(5)
    again = []
    for ticket in tickets:
        again.append(ticket.submit(planned("b")))
        time.sleep(0.02)
    for future in again:
        future.result(5)
    batcher.stop()
    assert [len(batch) for batch in network.batches] == [1, 3, 3]
