"""Which request goes to which engine, and when: fair, full, and suspects alone.

A lane is one engine's address with room for a fixed number of requests. Requests wait in one
queue, first come first served, and go to the open lane with the fewest in flight. While a lane
has suspects (requests that were in flight when it died) it takes nothing else: they are sent
through it one at a time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import TYPE_CHECKING

from earwitness.engine.usage import Meter

if TYPE_CHECKING:
    from earwitness.engine.address import EngineAddress
    from earwitness.errors import EarwitnessError


_SPREAD_S = 1.0
"""Suspects of a shared engine ask for their turn within this time, in random order."""
_LONGEST_PAUSE_S = 0.5
"""Longest pause between two of them."""


async def _pause(longest_s: float) -> None:
    if longest_s:
        await asyncio.sleep(random.uniform(0, longest_s))  # noqa: S311 - only keeps out of step


class Lane:
    """One engine's address and what is known of it.

    Attributes:
        address: Where it is; None while an engine of our own has not started yet.
        up: It answers, as far as known.
        down_since_s: Since when it has been down, when it is.
        deaths: How often it was seen to die.
        hung: The last time it was not dead but answered nothing any more.
        in_flight: Requests sent and not yet answered.
        suspects: Requests that have to go through it alone first.
        heard_s: When it last gave a reply that says it works.
        resting_until_s: It asked to be left alone until then.
    """

    def __init__(self, address: EngineAddress | None) -> None:
        self.address = address
        self.up = False
        self.down_since_s = time.monotonic()
        self.deaths = 0
        self.hung = False
        self.in_flight = 0
        self.suspects = 0
        self.heard_s = 0.0
        self.resting_until_s = 0.0


class Lanes:
    """The queue before all lanes. Lives in one event loop; no locks, no awaits while it decides.

    Args:
        lanes: All of them, for good.
        room: How many requests a lane holds at once.
        meter: Told which lanes answer.
        shared: Others ask the same engines. Suspects then go in random order, with pauses: two
            clients whose suspects went in step would see each other's deaths each time.

    Attributes:
        all: As given.
        room: As given.
        meter: As given.
        model: The name all of them serve the model under; empty: not known yet.
    """

    def __init__(
        self, lanes: list[Lane], *, room: int, meter: Meter | None = None, shared: bool = False
    ) -> None:
        self.all = lanes
        self.room = room
        self.meter = meter or Meter()
        self.model = ""
        self._waiting: deque[asyncio.Future[Lane]] = deque()
        self._changed = asyncio.Event()
        self._alone = asyncio.Lock()
        self._spread_s = _SPREAD_S if shared else 0.0
        self._longest_pause_s = _LONGEST_PAUSE_S if shared else 0.0
        self._failure: EarwitnessError | None = None

    @property
    def any_up(self) -> bool:
        """True while at least one engine answers."""
        return any(lane.up for lane in self.all)

    @property
    def failure(self) -> EarwitnessError | None:
        """Why no engine will come back; None while there is hope."""
        return self._failure

    async def enter(self) -> Lane:
        """Waits for room in a lane; leave it with `leave`.

        Returns:
            The open lane with the fewest requests in flight.

        Raises:
            EarwitnessError: No engine will come back (see `fail`).
        """
        self.raise_failure()
        turn: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._dispatch()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(turn.result())
            raise

    async def enter_alone(self, lane: Lane, *, patience_s: float) -> Lane:
        """Waits until a suspect has a lane for itself; leave it with `leave_alone`.

        Args:
            lane: The lane the suspect belongs to (`add_suspect`).
            patience_s: How long to wait for a dead lane before trying another one.

        Returns:
            The lane, empty but for this request; the suspect now belongs to it.

        Raises:
            EarwitnessError: No engine will come back (see `fail`).
        """
        holding = False
        try:
            while True:
                lane = await self._up_or_another(lane, patience_s)
                await _pause(self._spread_s)
                holding = await self._alone.acquire()
                await _pause(self._longest_pause_s)
                while lane.up and (lane.in_flight or self._rests(lane)):
                    await self._wait_for_change(1.0)
                if lane.up:
                    break
                # nobody else has to wait until it is back
                self._alone.release()
                holding = False
        except BaseException:
            if holding:
                self._alone.release()
            self.clear_suspect(lane)
            raise
        lane.in_flight += 1
        return lane

    async def _up_or_another(self, lane: Lane, patience_s: float) -> Lane:
        """Waits for a suspect's lane, and moves the suspect when that is down for too long."""
        while not lane.up:
            self.raise_failure()
            left_s = lane.down_since_s + patience_s - time.monotonic()
            if left_s <= 0 and self.any_up:
                dead, lane = lane, next(other for other in self.all if other.up)
                self.add_suspect(lane)
                self.clear_suspect(dead)
                continue
            await self._wait_for_change(left_s if left_s > 0 else 1.0)
        return lane

    def leave(self, lane: Lane) -> None:
        """Gives a request's room back.

        Args:
            lane: The lane it was in.
        """
        lane.in_flight -= 1
        self._dispatch()

    def leave_alone(self, lane: Lane) -> None:
        """Gives a suspect's lane back; it stays a suspect until `clear_suspect`.

        Args:
            lane: The lane it was in.
        """
        self._alone.release()
        self.leave(lane)

    def add_suspect(self, lane: Lane) -> None:
        """Closes a lane to others until this suspect is cleared.

        Args:
            lane: The lane the request was in when it died.
        """
        lane.suspects += 1

    def clear_suspect(self, lane: Lane) -> None:
        """The suspect has its outcome (or left for another lane).

        Args:
            lane: The lane it belonged to.
        """
        lane.suspects -= 1
        self._dispatch()

    def mark_down(self, lane: Lane) -> None:
        """Sends nothing more to a lane.

        Args:
            lane: The one that does not answer.
        """
        if lane.up:
            lane.down_since_s = time.monotonic()
        lane.up = False
        self.meter.down(lane)
        self._dispatch()

    def rest(self, lane: Lane, seconds: float) -> None:
        """Leaves a lane alone for a while; what is in flight there stays.

        Args:
            lane: The one that asked for it.
            seconds: How long.
        """
        lane.resting_until_s = max(lane.resting_until_s, time.monotonic() + seconds)
        asyncio.get_running_loop().call_later(seconds, self._dispatch)

    def mark_up(self, lane: Lane) -> None:
        """Opens a lane again; whatever failed before is forgotten.

        Args:
            lane: The one that answers.
        """
        lane.up = True
        self.meter.up(lane)
        lane.heard_s = time.monotonic()
        self._failure = None
        self._dispatch()

    def fail(self, failure: EarwitnessError) -> None:
        """Ends all waiting, and what comes later, until a lane is up again.

        Args:
            failure: What every waiter is told.
        """
        self._failure = failure
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(failure)
        self._changed.set()

    def raise_failure(self) -> None:
        """Raises what `fail` was told, if it still holds.

        Raises:
            EarwitnessError: No engine will come back.
        """
        if self._failure is not None:
            raise self._failure

    def _dispatch(self) -> None:
        self._changed.set()
        while self._waiting:
            lane = self._emptiest()
            if lane is None:
                return
            turn = self._waiting.popleft()
            if turn.done():
                continue
            lane.in_flight += 1
            turn.set_result(lane)

    def _emptiest(self) -> Lane | None:
        opened = [
            lane
            for lane in self.all
            if lane.up
            and lane.suspects == 0
            and lane.in_flight < self.room
            and not self._rests(lane)
        ]
        return min(opened, key=lambda lane: lane.in_flight, default=None)

    @staticmethod
    def _rests(lane: Lane) -> bool:
        return time.monotonic() < lane.resting_until_s

    async def _wait_for_change(self, timeout_s: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
