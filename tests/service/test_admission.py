"""Admission: cheap, in line, fair between keys, and nothing is lost when clients leave."""

import asyncio
import re

import pytest

from steval.errors import ServiceError
from steval.service.predict.admission import Admission


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_request_that_fits_gets_its_place_at_once_and_one_that_does_not_waits():
    async def scene() -> None:
        admission = Admission(100, seconds=5)
        first = await admission.admit("", 80)
        second = asyncio.ensure_future(admission.admit("", 30))
        await settle()
        assert not second.done()
        first.release()
        first.release()  # a second time changes nothing
        assert (await second).num_cells == 30

    asyncio.run(scene())


def test_a_request_larger_than_the_queue_is_served_when_it_is_empty():
    async def scene() -> None:
        admission = Admission(10, seconds=5)
        (await admission.admit("", 50)).release()
        await settle()
        (await admission.admit("lab", 50)).release()

    asyncio.run(scene())


def test_waiting_too_long_is_503_with_a_time_to_come_back():
    async def scene() -> None:
        admission = Admission(10, seconds=0.05)
        held = await admission.admit("", 10)
        with pytest.raises(
            ServiceError, match="10 cells waiting or computed, 5 more are over the limit of 10;"
        ) as refused:
            await admission.admit("", 5)
        assert (refused.value.http_status, refused.value.code) == (503, "busy")
        assert refused.value.retry_after
        held.release()
        await settle()
        await admission.admit("", 10)

    asyncio.run(scene())


def test_a_key_alone_leaves_half_of_the_places_to_newcomers():
    async def scene() -> None:
        admission = Admission(100, seconds=0.05)
        greedy = [await admission.admit("greedy", 25) for _ in range(2)]
        with pytest.raises(ServiceError, match="of this key"):
            await admission.admit("greedy", 25)
        polite = await admission.admit("polite", 30)
        for place in (*greedy, polite):
            place.release()

    asyncio.run(scene())


def test_what_becomes_free_goes_to_the_key_that_holds_least():
    """Twenty requests of one key in line before the single one of another."""

    async def scene() -> list[str]:
        admission = Admission(100, seconds=5)
        order: list[str] = []

        async def work(owner: str) -> None:
            place = await admission.admit(owner, 30)
            order.append(owner)
            await asyncio.sleep(0.001)
            place.release()

        greedy = [asyncio.ensure_future(work("greedy")) for _ in range(20)]
        await settle()
        await asyncio.gather(*greedy, work("polite"))
        return order

    order = asyncio.run(scene())
    assert order.index("polite") <= 2
    assert len(order) == 21


def test_who_fits_in_later_does_not_overtake_for_ever():
    async def scene() -> None:
        admission = Admission(100, seconds=5)
        small = await admission.admit("", 50)
        large = asyncio.ensure_future(admission.admit("", 90))
        await settle()
        others = [asyncio.ensure_future(admission.admit("", 1)) for _ in range(3)]
        await settle()
        assert not any(other.done() for other in others)
        small.release()
        (await large).release()
        await asyncio.gather(*others)

    asyncio.run(scene())


def test_what_a_key_is_told_of_a_full_queue_says_nothing_of_others():
    async def said(others: int) -> str:
        admission = Admission(1000, seconds=0.01)
        await admission.admit("ada", 40)
        for number in range(others):
            await admission.admit(f"other {number}", 960 // others)
        with pytest.raises(ServiceError) as refused:
            await admission.admit("ada", 70)
        assert (refused.value.code, refused.value.retry_after) == ("busy", 0.005)
        return str(refused.value)

    texts = {asyncio.run(said(others)) for others in (1, 2, 5)}
    assert len(texts) == 1
    assert re.findall("[0-9]+", texts.pop()) == ["40", "70"]


def test_places_of_clients_that_left_come_back():
    async def scene() -> None:
        admission = Admission(10, seconds=5)
        held = await admission.admit("", 10)
        waiting = [asyncio.ensure_future(admission.admit(owner, 10)) for owner in ("", "lab", "lab")]
        await settle()
        held.release()
        await asyncio.sleep(0)  # the first in line has its place, and has not come to take it
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await settle()
        assert (await asyncio.wait_for(admission.admit("", 10), 1)).num_cells == 10

    asyncio.run(scene())


def test_thousands_that_come_and_go_leave_nothing_behind():
    async def scene() -> None:
        admission = Admission(50, seconds=0.02)
        served = 0

        async def one(number: int) -> None:
            nonlocal served
            try:
                place = await admission.admit(f"key{number % 3}", 1 + number % 40)
            except ServiceError:
                return
            served += 1
            await asyncio.sleep(0.0005)
            place.release()

        tasks = [asyncio.ensure_future(one(number)) for number in range(2000)]
        for task in tasks[::7]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settle()
        assert served
        assert not admission._held
        assert not admission._lines

    asyncio.run(scene())
