"""Finds engines that hang: they take requests, and answer nobody any more."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from earwitness.engine.pulse import Pulse, feel, feel_all, replicas_work, work_done

if TYPE_CHECKING:
    from collections.abc import Callable

    from earwitness.engine.lanes import Lane, Lanes

_LONGEST_PATIENCE_S = 30.0
_LONGEST_LOOK_S = 5.0
_SEVERAL = 2


class Watchdog:
    """Looks after lanes that have requests in flight and give no reply.

    An engine that thinks for minutes is no engine that hangs, so three things must come together:
    no reply for a time, counters of tokens that stand still, and a question of our own that is
    not answered either.

    Args:
        lanes: All lanes.
        stall_s: How long a lane may show nothing.
        asks: Ask a question of our own; False over a worker's front, which says itself how its
            engine is.
    """

    def __init__(self, lanes: Lanes, *, stall_s: float, asks: bool = True) -> None:
        self._stall_s = stall_s
        self._lanes = lanes
        self._asks = asks
        self._patience_s = min(_LONGEST_PATIENCE_S, stall_s / 2)
        self._look_s = min(_LONGEST_LOOK_S, stall_s / 8)
        self._feeling: dict[Lane, asyncio.Task[Pulse]] = {}

    async def pulse(self, lane: Lane) -> Pulse:
        """Finds out whether a lane's engine answers; who asks at the same time shares the reply.

        Args:
            lane: The lane.
        """
        feeling = self._feeling.get(lane)
        if feeling is None:
            feeling = self._feeling[lane] = asyncio.create_task(self._feel(lane))
            feeling.add_done_callback(lambda _: self._feeling.pop(lane, None))
        return await asyncio.shield(feeling)

    async def _feel(self, lane: Lane) -> Pulse:
        if lane.address is None:
            return Pulse.NONE
        if not self._asks:
            return Pulse.ANSWERS if await lane.address.healthy() else Pulse.NONE
        return await feel_all(lane.address, self._lanes.model, patience_s=self._patience_s)

    async def find_hangs(self, lane: Lane, revive: Callable[[Lane, str], None]) -> None:
        """Has a lane brought back each time it hangs; ends only by being cancelled.

        Args:
            lane: The lane.
            revive: Brings it back; is told why.
        """
        while True:
            looks = [asyncio.create_task(self.hang(lane))]
            if self._asks:
                looks.append(asyncio.create_task(self.silent_replica(lane)))
            try:
                done, _ = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
                what = done.pop().result()
            finally:
                for look in looks:
                    look.cancel()
            self._lanes.mark_down(lane)
            revive(lane, f"{what} showed no activity for {self._stall_s:g} s")

    async def silent_replica(self, lane: Lane) -> str:
        """Waits until one of several replicas behind a lane hangs, which may be never.

        The others answer meanwhile, so that the lane itself is never quiet. A replica whose
        counters stand still may have nothing to do: it is asked a question of our own.

        Args:
            lane: A lane that is up, or will be.

        Returns:
            Which replica.
        """
        seen: dict[int, tuple[float, float]] = {}
        alone_since_death = -1
        while True:
            await asyncio.sleep(self._look_s)
            deaths = lane.deaths
            works = lane.up and lane.in_flight and lane.address is not None
            if not works or lane.address is None or deaths == alone_since_death:
                seen = {}
                continue
            work, now_s = await replicas_work(lane.address), time.monotonic()
            if len(work) == 1:  # it stays so until the engine is another one
                alone_since_death = deaths
            if len(work) < _SEVERAL:
                continue
            for rank, done in work.items():
                if seen.get(rank, (None, 0.0))[0] != done:
                    seen[rank] = (done, now_s)
            for rank in [r for r in work if now_s - seen[r][1] >= self._stall_s]:
                model, patience_s = self._lanes.model, self._patience_s
                shown = await feel(lane.address, model, patience_s=patience_s, rank=rank)
                if shown is Pulse.NONE and lane.up and lane.deaths == deaths:
                    return f"its replica {rank}"
                seen.pop(rank)

    async def hang(self, lane: Lane) -> str:
        """Waits until a lane hangs, which may be never.

        Args:
            lane: A lane that is up, or will be.

        Returns:
            What hangs: all of it.
        """
        quiet_since_s, heard_s, done = time.monotonic(), 0.0, None
        while True:
            await asyncio.sleep(self._look_s)
            now_s = time.monotonic()
            if not lane.up or not lane.in_flight or lane.heard_s != heard_s:
                quiet_since_s, heard_s, done = now_s, lane.heard_s, None
                continue
            quiet_s = now_s - quiet_since_s
            if lane.address is None or quiet_s < self._stall_s / 2:
                continue
            done_before, done = done, await work_done(lane.address)
            if done_before is not None and done is not None and done > done_before:
                # at work: half the time again from here
                quiet_since_s = now_s - self._stall_s / 2
            elif quiet_s >= self._stall_s:
                if await self._shows_nothing(lane, done):
                    return "it"
                quiet_since_s = now_s

    async def _shows_nothing(self, lane: Lane, done: float | None) -> bool:
        deaths = lane.deaths
        # an engine that listens but has no counters may be at work: its requests' limit decides
        if lane.address is None or (done is None and await lane.address.healthy() is not None):
            return False
        silent = await self.pulse(lane) is Pulse.NONE
        return silent and lane.up and lane.deaths == deaths

    async def close(self) -> None:
        """Ends what it has begun."""
        for feeling in list(self._feeling.values()):
            feeling.cancel()
        if self._feeling:
            await asyncio.wait(self._feeling.values())
