"""The queue before the engines: full but never over, fair, suspects alone, no turn lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earwitness.engine.endpoints import Endpoint, Endpoints
from earwitness.errors import EngineUnavailableError


def make(count=1, room=2):
    endpoints = Endpoints([Endpoint(None) for _ in range(count)], room=room)
    for endpoint in endpoints.all:
        endpoints.mark_up(endpoint)
    return endpoints


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_endpoint_takes_no_more_than_its_room():
    endpoints = make(room=2)
    entering = [asyncio.create_task(endpoints.enter()) for _ in range(3)]
    await settled()
    assert [task.done() for task in entering] == [True, True, False]
    endpoints.leave(entering[0].result())
    await settled()
    assert entering[2].done()


async def test_the_emptiest_endpoint_comes_first():
    endpoints = make(count=3, room=5)
    taken = [await endpoints.enter() for _ in range(6)]
    assert [taken.count(endpoint) for endpoint in endpoints.all] == [2, 2, 2]


async def test_a_endpoint_that_is_down_takes_nothing():
    endpoints = make(count=2)
    endpoints.mark_down(endpoints.all[0])
    assert await endpoints.enter() is endpoints.all[1]


async def test_a_suspect_waits_until_it_is_alone_and_others_wait_for_it():
    endpoints = make(room=2)
    other = await endpoints.enter()
    (endpoint,) = endpoints.all
    endpoints.add_suspect(endpoint)
    suspect = asyncio.create_task(endpoints.enter_alone(endpoint, patience_s=60))
    later = asyncio.create_task(endpoints.enter())
    await settled()
    assert not suspect.done()
    endpoints.leave(other)
    await settled()
    assert suspect.done()
    assert not later.done()
    endpoints.leave_alone(endpoint)
    endpoints.clear_suspect(endpoint)
    await settled()
    assert later.done()


async def test_two_suspects_are_never_together():
    endpoints = make(room=5)
    (endpoint,) = endpoints.all
    endpoints.add_suspect(endpoint)
    endpoints.add_suspect(endpoint)
    first, second = (
        asyncio.create_task(endpoints.enter_alone(endpoint, patience_s=60)) for _ in range(2)
    )
    await settled()
    assert (first.done(), second.done()) == (True, False)
    endpoints.leave_alone(endpoint)
    await settled()
    assert second.done()


async def test_a_suspect_of_a_endpoint_gone_for_good_moves_to_another():
    endpoints = make(count=2)
    gone, stays = endpoints.all
    endpoints.add_suspect(gone)
    endpoints.mark_down(gone)
    assert await endpoints.enter_alone(gone, patience_s=0.01) is stays
    assert (gone.suspects, stays.suspects) == (0, 1)


@pytest.mark.parametrize("holding", [True, False])
async def test_a_cancelled_suspect_closes_no_endpoint(*, holding):
    endpoints = make()
    (endpoint,) = endpoints.all
    blocker = None
    if not holding:
        endpoints.add_suspect(endpoint)
        blocker = await endpoints.enter_alone(endpoint, patience_s=60)
    else:
        endpoints.mark_down(endpoint)
    endpoints.add_suspect(endpoint)
    waiting = asyncio.create_task(endpoints.enter_alone(endpoint, patience_s=60))
    await settled()
    waiting.cancel()
    await asyncio.wait([waiting])
    if blocker is not None:
        endpoints.leave_alone(blocker)
        endpoints.clear_suspect(blocker)
    endpoints.mark_up(endpoint)
    assert endpoint.suspects == 0
    assert await endpoints.enter() is endpoint


async def test_failure_ends_all_waiting_until_a_endpoint_is_back():
    endpoints = make()
    (endpoint,) = endpoints.all
    endpoints.mark_down(endpoint)
    waiting = asyncio.create_task(endpoints.enter())
    await settled()
    endpoints.fail(EngineUnavailableError("gone"))
    with pytest.raises(EngineUnavailableError):
        await waiting
    with pytest.raises(EngineUnavailableError):
        await endpoints.enter()
    endpoints.mark_up(endpoint)
    assert await endpoints.enter() is endpoint


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["enter", "leave", "cancel", "down", "up"]), max_size=40),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_whatever_happens_no_room_is_lost(events, count, room):
    asyncio.run(play(make(count, room), events, room))


async def play(endpoints, events, room):
    tasks = []
    for number, event in enumerate(events):
        endpoint = endpoints.all[number % len(endpoints.all)]
        if event == "enter":
            tasks.append(asyncio.create_task(endpoints.enter()))
        elif event == "up":
            endpoints.mark_up(endpoint)
        elif event == "down":
            endpoints.mark_down(endpoint)
        elif tasks:
            end_one(endpoints, tasks, number, cancel=event == "cancel")
        if number % 3 == 0:
            await settled()
        assert all(0 <= endpoint.in_flight <= room for endpoint in endpoints.all)
    for endpoint in endpoints.all:
        endpoints.mark_up(endpoint)
    await settled()
    while tasks:
        end_one(endpoints, tasks, 0, cancel=False)
        await settled()
    assert [endpoint.in_flight for endpoint in endpoints.all] == [0] * len(endpoints.all)


def end_one(endpoints, tasks, number, *, cancel):
    # cancelled maybe in the very moment it is given its turn
    ended = [task for task in tasks if task.done() or cancel]
    if ended:
        task = ended[number % len(ended)]
        tasks.remove(task)
        if task.done():
            endpoints.leave(task.result())
        else:
            task.cancel()


async def test_all_suspects_of_a_endpoint_that_is_gone_wait_for_it_once():
    endpoints = make(count=2)
    gone, stays = endpoints.all
    endpoints.mark_down(gone)
    gone.down_since_s -= 1
    for _ in range(3):
        endpoints.add_suspect(gone)
        async with asyncio.timeout(0.5):
            assert await endpoints.enter_alone(gone, patience_s=0.9) is stays
        endpoints.leave_alone(stays)
        endpoints.clear_suspect(stays)


async def test_a_suspect_that_waits_for_its_endpoint_keeps_no_other_waiting():
    endpoints = make(count=2)
    gone, stays = endpoints.all
    endpoints.mark_down(gone)
    endpoints.add_suspect(gone)
    waiting = asyncio.create_task(endpoints.enter_alone(gone, patience_s=60))
    await settled()
    endpoints.add_suspect(stays)
    async with asyncio.timeout(0.5):
        assert await endpoints.enter_alone(stays, patience_s=60) is stays
    waiting.cancel()


async def test_a_endpoint_that_asks_to_be_left_alone_is():
    endpoints = make(count=2)
    resting, other = endpoints.all
    endpoints.rest(resting, 0.05)
    assert [await endpoints.enter() for _ in range(2)] == [other, other]
    async with asyncio.timeout(0.5):
        assert await endpoints.enter() is resting
