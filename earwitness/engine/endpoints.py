"""Which request goes to which engine, and when: fair, full, and suspects alone.

An endpoint is one engine's address with room for a fixed number of requests. Requests wait in one
queue, first come first served, and go to the open endpoint with the fewest in flight. While an
endpoint has suspects (requests that were in flight when it died) it takes nothing else: they are
sent through it one at a time.
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


class Endpoint:
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


class Endpoints:
    """The queue before all endpoints. Lives in one event loop: no locks, no awaits to decide.

    Args:
        endpoints: All of them, for good.
        room: How many requests an endpoint holds at once.
        meter: Told which endpoints answer.
        shared: Others ask the same engines. Suspects then go in random order, with pauses: two
            clients whose suspects went in step would see each other's deaths each time.

    Attributes:
        all: As given.
        room: As given.
        meter: As given.
        model: The name all of them serve the model under; empty: not known yet.
    """

    def __init__(
        self,
        endpoints: list[Endpoint],
        *,
        room: int,
        meter: Meter | None = None,
        shared: bool = False,
    ) -> None:
        self.all = endpoints
        self.room = room
        self.meter = meter or Meter()
        self.model = ""
        self._waiting: deque[asyncio.Future[Endpoint]] = deque()
        self._changed = asyncio.Event()
        self._alone = asyncio.Lock()
        self._spread_s = _SPREAD_S if shared else 0.0
        self._longest_pause_s = _LONGEST_PAUSE_S if shared else 0.0
        self._failure: EarwitnessError | None = None

    @property
    def any_up(self) -> bool:
        """True while at least one engine answers."""
        return any(endpoint.up for endpoint in self.all)

    @property
    def failure(self) -> EarwitnessError | None:
        """Why no engine will come back; None while there is hope."""
        return self._failure

    async def enter(self) -> Endpoint:
        """Waits for room in an endpoint; leave it with `leave`.

        Returns:
            The open endpoint with the fewest requests in flight.

        Raises:
            EarwitnessError: No engine will come back (see `fail`).
        """
        self.raise_failure()
        turn: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._dispatch()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(turn.result())
            raise

    async def enter_alone(self, endpoint: Endpoint, *, patience_s: float) -> Endpoint:
        """Waits until a suspect has an endpoint for itself; leave it with `leave_alone`.

        Args:
            endpoint: The endpoint the suspect belongs to (`add_suspect`).
            patience_s: How long to wait for a dead endpoint before trying another one.

        Returns:
            The endpoint, empty but for this request; the suspect now belongs to it.

        Raises:
            EarwitnessError: No engine will come back (see `fail`).
        """
        holding = False
        try:
            while True:
                endpoint = await self._up_or_another(endpoint, patience_s)
                await _pause(self._spread_s)
                holding = await self._alone.acquire()
                await _pause(self._longest_pause_s)
                while endpoint.up and (endpoint.in_flight or self._rests(endpoint)):
                    await self._wait_for_change(1.0)
                if endpoint.up:
                    break
                # nobody else has to wait until it is back
                self._alone.release()
                holding = False
        except BaseException:
            if holding:
                self._alone.release()
            self.clear_suspect(endpoint)
            raise
        endpoint.in_flight += 1
        return endpoint

    async def _up_or_another(self, endpoint: Endpoint, patience_s: float) -> Endpoint:
        """Waits for a suspect's endpoint, and moves the suspect when that is down for too long."""
        while not endpoint.up:
            self.raise_failure()
            left_s = endpoint.down_since_s + patience_s - time.monotonic()
            if left_s <= 0 and self.any_up:
                dead, endpoint = endpoint, next(other for other in self.all if other.up)
                self.add_suspect(endpoint)
                self.clear_suspect(dead)
                continue
            await self._wait_for_change(left_s if left_s > 0 else 1.0)
        return endpoint

    def leave(self, endpoint: Endpoint) -> None:
        """Gives a request's room back.

        Args:
            endpoint: The endpoint it was in.
        """
        endpoint.in_flight -= 1
        self._dispatch()

    def leave_alone(self, endpoint: Endpoint) -> None:
        """Gives a suspect's endpoint back; it stays a suspect until `clear_suspect`.

        Args:
            endpoint: The endpoint it was in.
        """
        self._alone.release()
        self.leave(endpoint)

    def add_suspect(self, endpoint: Endpoint) -> None:
        """Closes an endpoint to others until this suspect is cleared.

        Args:
            endpoint: The endpoint the request was in when it died.
        """
        endpoint.suspects += 1

    def clear_suspect(self, endpoint: Endpoint) -> None:
        """The suspect has its outcome (or left for another endpoint).

        Args:
            endpoint: The endpoint it belonged to.
        """
        endpoint.suspects -= 1
        self._dispatch()

    def mark_down(self, endpoint: Endpoint) -> None:
        """Sends nothing more to an endpoint.

        Args:
            endpoint: The one that does not answer.
        """
        if endpoint.up:
            endpoint.down_since_s = time.monotonic()
        endpoint.up = False
        self.meter.down(endpoint)
        self._dispatch()

    def rest(self, endpoint: Endpoint, seconds: float) -> None:
        """Leaves an endpoint alone for a while; what is in flight there stays.

        Args:
            endpoint: The one that asked for it.
            seconds: How long.
        """
        endpoint.resting_until_s = max(endpoint.resting_until_s, time.monotonic() + seconds)
        asyncio.get_running_loop().call_later(seconds, self._dispatch)

    def mark_up(self, endpoint: Endpoint) -> None:
        """Opens an endpoint again; whatever failed before is forgotten.

        Args:
            endpoint: The one that answers.
        """
        endpoint.up = True
        self.meter.up(endpoint)
        endpoint.heard_s = time.monotonic()
        self._failure = None
        self._dispatch()

    def fail(self, failure: EarwitnessError) -> None:
        """Ends all waiting, and what comes later, until an endpoint is up again.

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
            endpoint = self._emptiest()
            if endpoint is None:
                return
            turn = self._waiting.popleft()
            if turn.done():
                continue
            endpoint.in_flight += 1
            turn.set_result(endpoint)

    def _emptiest(self) -> Endpoint | None:
        opened = [
            endpoint
            for endpoint in self.all
            if endpoint.up
            and endpoint.suspects == 0
            and endpoint.in_flight < self.room
            and not self._rests(endpoint)
        ]
        return min(opened, key=lambda endpoint: endpoint.in_flight, default=None)

    @staticmethod
    def _rests(endpoint: Endpoint) -> bool:
        return time.monotonic() < endpoint.resting_until_s

    async def _wait_for_change(self, timeout_s: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
