"""Keeps an engine of our own running: started again when it dies, and when it hangs."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from earwitness.engine.pulse import Pulse
from earwitness.engine.revivals import Revivals
from earwitness.engine.watchdog import Watchdog
from earwitness.errors import EngineStartError
from earwitness.progress import EngineReady, EngineStarting, tell

if TYPE_CHECKING:
    from earwitness.engine.lanes import Lane, Lanes
    from earwitness.engine.server import EngineServer

_log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0
_WATCH_S = 5.0
_FORGET_S = 3600.0


class ServerKeeper:
    """Keeps the engine of our own running.

    Args:
        lanes: With exactly one lane.
        server: The engine.
        max_restarts: Unexplained deaths after which it gives up.
        stall_s: How long an engine with requests in flight may show no life.
        first_pause_s: Pause before the second restart; doubles.
        watch_s: How often an engine that nobody asks is looked after.
        forget_s: An engine that has run for so long has made up for its earlier deaths: a worker's
            runs for months.
    """

    # nobody else asks it, but the first time somebody may have killed it
    kills_to_convict = 2
    shared = False

    def __init__(
        self,
        lanes: Lanes,
        server: EngineServer,
        *,
        max_restarts: int,
        stall_s: float,
        first_pause_s: float = 1.0,
        watch_s: float = _WATCH_S,
        forget_s: float = _FORGET_S,
    ) -> None:
        self.server = server
        self._lanes = lanes
        self._max_restarts = max_restarts
        self._first_pause_s = first_pause_s
        self._watch_s = watch_s
        self._forget_s = forget_s
        self._watchdog = Watchdog(lanes, stall_s=stall_s)
        self._watches: list[asyncio.Task[None]] = []
        self._unexplained: set[int] = set()
        self._up_since_s = time.monotonic()
        self._revivals = Revivals(lanes)
        self._why = ""

    async def start(self) -> None:
        """Starts the engine.

        Raises:
            EngineStartError: It does not come up.
        """
        lane = self._lanes.all[0]
        self._lanes.meter.starting(lane)
        await self._bring_up(lane)
        self._watches = [
            asyncio.create_task(self._find_deaths(lane)),
            asyncio.create_task(self._watchdog.find_hangs(lane, self.revive)),
        ]

    async def _find_deaths(self, lane: Lane) -> None:
        """Finds an engine that died while nobody asked it."""
        while True:
            await asyncio.sleep(self._watch_s)
            await asyncio.to_thread(self.server.note_memory)
            deaths = lane.deaths
            # whoever asks may see it die while we look, and see to it
            if lane.up and await self.died(lane) and lane.up and lane.deaths == deaths:
                self._lanes.mark_down(lane)
                self.revive(lane)

    async def _bring_up(self, lane: Lane) -> None:
        began_s = time.monotonic()
        tell(EngineStarting(self.server.model, str(self.server.log_path)))
        lane.address = await self.server.start()
        # a record is blamed for the next hang: the engine has to answer without it first
        if lane.hung and await self._watchdog.pulse(lane) is Pulse.NONE:
            await self.server.stop()
            silent = "it started, but does not answer a test request"
            raise EngineStartError(silent, str(self.server.log_path))
        self._up_since_s = time.monotonic()
        tell(EngineReady(self._up_since_s - began_s))
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

    async def pulse(self, lane: Lane) -> Pulse:
        """Whether the engine answers a question of our own.

        Args:
            lane: Its lane.
        """
        return await self._watchdog.pulse(lane)

    def revive(self, lane: Lane, why: str = "") -> None:
        """Restarts the engine, unless that is under way.

        Args:
            lane: Its lane.
            why: What is wrong with it, when it still runs.
        """
        if self._revivals.begin(lane, self._restart):
            lane.hung = bool(why)
            self._why = why
            if time.monotonic() - self._up_since_s >= self._forget_s:
                self._unexplained.clear()
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
            words, self._why = self._why, ""
            if not words:
                await self.server.let_die()
                words = self.server.last_words()
            await self.server.stop()
            lane.address = None
            tries = len(self._unexplained) + failed_starts
            if tries > self._max_restarts:
                died = f"it ended unexpectedly {tries} times ({words})"
                raise EngineStartError(died, str(self.server.log_path))
            _log.warning("the engine is restarted: %s", words)
            await asyncio.sleep(self._pause_s(tries))
            try:
                await self._bring_up(lane)
            except EngineStartError as error:
                failed_starts += 1
                self._why = error.reason
                continue
            return

    def _pause_s(self, tries: int) -> float:
        if tries <= 1:
            return 0.0
        return min(self._first_pause_s * 2.0 ** (tries - 2), _LONGEST_PAUSE_S)

    async def close(self) -> None:
        """Stops the engine."""
        for watch in self._watches:
            watch.cancel()
        if self._watches:
            await asyncio.wait(self._watches)
        await self._watchdog.close()
        await self._revivals.close()
        await self.server.stop()
