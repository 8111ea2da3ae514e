"""Who brings a dead lane back: by restarting our own engine, or by waiting for a given one."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

from earwitness.errors import EarwitnessError, EngineStartError, EngineUnavailableError
from earwitness.progress import EngineReady, EngineStarting, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from earwitness.engine.lanes import Lane, Lanes
    from earwitness.engine.server import EngineServer

_log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0
_FIRST_PROBE_S = 0.2
_LONGEST_PROBE_S = 5.0


class Keeper(Protocol):
    """Starts lanes, says whether one died, and brings it back.

    Attributes:
        kills_to_convict: How often a request must kill an engine while alone with it.
    """

    kills_to_convict: int

    async def start(self) -> None:
        """Brings the first lane up, or raises."""

    async def died(self, lane: Lane) -> bool:
        """Whether a lane that gave trouble is dead.

        Args:
            lane: The lane.
        """

    def revive(self, lane: Lane) -> None:
        """Begins to bring a dead lane back; does nothing if that is under way.

        Args:
            lane: The lane.
        """

    def explain(self, deaths: set[int]) -> None:
        """Takes note that records are known to have caused these deaths.

        Args:
            deaths: Numbers of deaths (`Lane.deaths` as each left it).
        """

    async def close(self) -> None:
        """Ends what it started."""


class _Revivals:
    """The tasks that bring lanes back, one a lane; if one fails nobody waits for ever."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._tasks: dict[Lane, asyncio.Task[None]] = {}
        self._closed = False

    def begin(self, lane: Lane, bring_back: Callable[[Lane], Coroutine[None, None, None]]) -> bool:
        """Begins, unless it is under way or all is over; True if it did."""
        task = self._tasks.get(lane)
        if self._closed or (task is not None and not task.done()):
            return False
        lane.deaths += 1
        task = asyncio.create_task(bring_back(lane))
        task.add_done_callback(self._on_done)
        self._tasks[lane] = task
        return True

    def _on_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            known = error if isinstance(error, EarwitnessError) else None
            self._lanes.fail(known or EngineUnavailableError(f"it cannot be restarted: {error!r}"))

    async def close(self) -> None:
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        self._lanes.fail(EngineUnavailableError("the engine was closed"))


class ServerKeeper:
    """Keeps the engine of our own running.

    Args:
        lanes: With exactly one lane.
        server: The engine.
        max_restarts: Unexplained deaths after which it gives up.
        first_pause_s: Pause before the second restart; doubles.
    """

    # nobody else uses it, so who was alone with it did it
    kills_to_convict = 1

    def __init__(
        self, lanes: Lanes, server: EngineServer, *, max_restarts: int, first_pause_s: float = 1.0
    ) -> None:
        self.server = server
        self._lanes = lanes
        self._max_restarts = max_restarts
        self._first_pause_s = first_pause_s
        self._unexplained: set[int] = set()
        self._revivals = _Revivals(lanes)

    async def start(self) -> None:
        """Starts the engine.

        Raises:
            EngineStartError: It does not come up.
        """
        await self._bring_up(self._lanes.all[0])

    async def _bring_up(self, lane: Lane) -> None:
        began_s = time.monotonic()
        tell(EngineStarting(self.server.model, str(self.server.log_path)))
        lane.address = await self.server.start()
        tell(EngineReady(time.monotonic() - began_s))
        self._lanes.mark_up(lane)

    async def died(self, lane: Lane) -> bool:
        """Whether the engine is dead or dying.

        Args:
            lane: Its lane.
        """
        if not lane.up or not self.server.alive() or lane.address is None:
            return True
        # vLLM tells requests first that its engine process is gone, then ends itself
        return await lane.address.healthy() is False

    def revive(self, lane: Lane) -> None:
        """Restarts the engine, unless that is under way.

        Args:
            lane: Its lane.
        """
        if self._revivals.begin(lane, self._restart):
            self._unexplained.add(lane.deaths)

    def explain(self, deaths: set[int]) -> None:
        """Deaths that records caused do not count against the engine.

        Args:
            deaths: Their numbers.
        """
        self._unexplained -= deaths

    async def _restart(self, lane: Lane) -> None:
        failed_starts = 0
        while True:
            await self.server.let_die()
            words = self.server.last_words()
            await self.server.stop()
            lane.address = None
            tries = len(self._unexplained) + failed_starts
            if tries > self._max_restarts:
                died = f"it died {tries} times ({words})"
                raise EngineStartError(died, str(self.server.log_path))
            _log.warning("the engine died and is started again: %s", words)
            await asyncio.sleep(self._pause_s(tries))
            try:
                await self._bring_up(lane)
            except EngineStartError:
                failed_starts += 1
                continue
            return

    def _pause_s(self, tries: int) -> float:
        if tries <= 1:
            return 0.0
        return min(self._first_pause_s * 2.0 ** (tries - 2), _LONGEST_PAUSE_S)

    async def close(self) -> None:
        """Stops the engine."""
        await self._revivals.close()
        await self.server.stop()


class AddressKeeper:
    """Watches given addresses; whoever runs the engines restarts them.

    Args:
        lanes: One lane an address.
        timeout_s: How long all of them may be down.
    """

    # others may use the same engine, and may have killed it: one death proves nothing
    kills_to_convict = 2

    def __init__(self, lanes: Lanes, *, timeout_s: float) -> None:
        self._lanes = lanes
        self._timeout_s = timeout_s
        self._revivals = _Revivals(lanes)

    async def start(self) -> None:
        """Waits until at least one address answers.

        Raises:
            EngineUnavailableError: None did within the time allowed.
        """
        alive = await asyncio.gather(*(self._alive(lane) for lane in self._lanes.all))
        for lane, is_up in zip(self._lanes.all, alive, strict=True):
            if is_up:
                self._lanes.mark_up(lane)
            else:
                self.revive(lane)
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._timeout_s
        while not self._lanes.any_up:
            if loop.time() > limit:
                raise self._unavailable()
            await asyncio.sleep(_FIRST_PROBE_S)

    async def died(self, lane: Lane) -> bool:
        """Whether the engine at this address is dead.

        Args:
            lane: Its lane.
        """
        if not lane.up or lane.address is None:
            return True
        return await lane.address.healthy() is False

    def revive(self, lane: Lane) -> None:
        """Looks after the address until it answers again.

        Args:
            lane: Its lane.
        """
        self._revivals.begin(lane, self._wait_for)

    def explain(self, deaths: set[int]) -> None:
        """Deaths are not counted here: whoever runs the engines decides.

        Args:
            deaths: Their numbers.
        """

    async def _wait_for(self, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._timeout_s
        pause_s = _FIRST_PROBE_S
        while not await self._alive(lane):
            if loop.time() > limit and not self._lanes.any_up:
                self._lanes.fail(self._unavailable())
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PROBE_S)
        self._lanes.mark_up(lane)

    async def _alive(self, lane: Lane) -> bool:
        return lane.address is not None and bool(await lane.address.healthy())

    def _unavailable(self) -> EngineUnavailableError:
        where = ", ".join(lane.address.url for lane in self._lanes.all if lane.address)
        return EngineUnavailableError(f"no engine answered for {self._timeout_s:g} s at {where}")

    async def close(self) -> None:
        """Closes all connections."""
        await self._revivals.close()
        for lane in self._lanes.all:
            if lane.address is not None:
                await lane.address.close()
