"""The queue before the engines: full but never over, fair, suspects alone, no turn lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earwitness.engine.lanes import Lane, Lanes
from earwitness.errors import EngineUnavailableError


def make(count=1, room=2):
    lanes = Lanes([Lane(None) for _ in range(count)], room=room)
    for lane in lanes.all:
        lanes.mark_up(lane)
    return lanes


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lane_takes_no_more_than_its_room():
    lanes = make(room=2)
    entering = [asyncio.create_task(lanes.enter()) for _ in range(3)]
    await settled()
    assert [task.done() for task in entering] == [True, True, False]
    lanes.leave(entering[0].result())
    await settled()
    assert entering[2].done()


async def test_the_emptiest_lane_comes_first():
    lanes = make(count=3, room=5)
    taken = [await lanes.enter() for _ in range(6)]
    assert [taken.count(lane) for lane in lanes.all] == [2, 2, 2]


async def test_a_lane_that_is_down_takes_nothing():
    lanes = make(count=2)
    lanes.mark_down(lanes.all[0])
    assert await lanes.enter() is lanes.all[1]


async def test_a_suspect_waits_until_it_is_alone_and_others_wait_for_it():
    lanes = make(room=2)
    other = await lanes.enter()
    (lane,) = lanes.all
    lanes.add_suspect(lane)
    suspect = asyncio.create_task(lanes.enter_alone(lane, patience_s=60))
    later = asyncio.create_task(lanes.enter())
    await settled()
    assert not suspect.done()
    lanes.leave(other)
    await settled()
    assert suspect.done()
    assert not later.done()
    lanes.leave_alone(lane)
    lanes.clear_suspect(lane)
    await settled()
    assert later.done()


async def test_two_suspects_are_never_together():
    lanes = make(room=5)
    (lane,) = lanes.all
    lanes.add_suspect(lane)
    lanes.add_suspect(lane)
    first, second = (asyncio.create_task(lanes.enter_alone(lane, patience_s=60)) for _ in range(2))
    await settled()
    assert (first.done(), second.done()) == (True, False)
    lanes.leave_alone(lane)
    await settled()
    assert second.done()


async def test_a_suspect_of_a_lane_gone_for_good_moves_to_another():
    lanes = make(count=2)
    gone, stays = lanes.all
    lanes.add_suspect(gone)
    lanes.mark_down(gone)
    assert await lanes.enter_alone(gone, patience_s=0.01) is stays
    assert (gone.suspects, stays.suspects) == (0, 1)


@pytest.mark.parametrize("holding", [True, False])
async def test_a_cancelled_suspect_closes_no_lane(*, holding):
    lanes = make()
    (lane,) = lanes.all
    blocker = None
    if not holding:
        lanes.add_suspect(lane)
        blocker = await lanes.enter_alone(lane, patience_s=60)
    else:
        lanes.mark_down(lane)
    lanes.add_suspect(lane)
    waiting = asyncio.create_task(lanes.enter_alone(lane, patience_s=60))
    await settled()
    waiting.cancel()
    await asyncio.wait([waiting])
    if blocker is not None:
        lanes.leave_alone(blocker)
        lanes.clear_suspect(blocker)
    lanes.mark_up(lane)
    assert lane.suspects == 0
    assert await lanes.enter() is lane


async def test_failure_ends_all_waiting_until_a_lane_is_back():
    lanes = make()
    (lane,) = lanes.all
    lanes.mark_down(lane)
    waiting = asyncio.create_task(lanes.enter())
    await settled()
    lanes.fail(EngineUnavailableError("gone"))
    with pytest.raises(EngineUnavailableError):
        await waiting
    with pytest.raises(EngineUnavailableError):
        await lanes.enter()
    lanes.mark_up(lane)
    assert await lanes.enter() is lane


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["enter", "leave", "cancel", "down", "up"]), max_size=40),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_whatever_happens_no_room_is_lost(events, count, room):
    asyncio.run(play(make(count, room), events, room))


async def play(lanes, events, room):
    tasks = []
    for number, event in enumerate(events):
        lane = lanes.all[number % len(lanes.all)]
        if event == "enter":
            tasks.append(asyncio.create_task(lanes.enter()))
        elif event == "up":
            lanes.mark_up(lane)
        elif event == "down":
            lanes.mark_down(lane)
        elif tasks:
            end_one(lanes, tasks, number, cancel=event == "cancel")
        if number % 3 == 0:
            await settled()
        assert all(0 <= lane.in_flight <= room for lane in lanes.all)
    for lane in lanes.all:
        lanes.mark_up(lane)
    await settled()
    while tasks:
        end_one(lanes, tasks, 0, cancel=False)
        await settled()
    assert [lane.in_flight for lane in lanes.all] == [0] * len(lanes.all)


def end_one(lanes, tasks, number, *, cancel):
    # cancelled maybe in the very moment it is given its turn
    ended = [task for task in tasks if task.done() or cancel]
    if ended:
        task = ended[number % len(ended)]
        tasks.remove(task)
        if task.done():
            lanes.leave(task.result())
        else:
            task.cancel()


async def test_all_suspects_of_a_lane_that_is_gone_wait_for_it_once():
    lanes = make(count=2)
    gone, stays = lanes.all
    lanes.mark_down(gone)
    gone.down_since_s -= 1
    for _ in range(3):
        lanes.add_suspect(gone)
        async with asyncio.timeout(0.5):
            assert await lanes.enter_alone(gone, patience_s=0.9) is stays
        lanes.leave_alone(stays)
        lanes.clear_suspect(stays)


async def test_a_suspect_that_waits_for_its_lane_keeps_no_other_waiting():
    lanes = make(count=2)
    gone, stays = lanes.all
    lanes.mark_down(gone)
    lanes.add_suspect(gone)
    waiting = asyncio.create_task(lanes.enter_alone(gone, patience_s=60))
    await settled()
    lanes.add_suspect(stays)
    async with asyncio.timeout(0.5):
        assert await lanes.enter_alone(stays, patience_s=60) is stays
    waiting.cancel()


async def test_a_lane_that_asks_to_be_left_alone_is():
    lanes = make(count=2)
    resting, other = lanes.all
    lanes.rest(resting, 0.05)
    assert [await lanes.enter() for _ in range(2)] == [other, other]
    async with asyncio.timeout(0.5):
        assert await lanes.enter() is resting
