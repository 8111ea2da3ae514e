"""Watches engines that others run, and waits for those that are gone."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from earwitness.engine.pulse import Pulse
from earwitness.engine.revivals import Revivals
from earwitness.engine.watchdog import Watchdog
from earwitness.errors import EngineUnavailableError, FatalError, ModelIdentityError

if TYPE_CHECKING:
    from earwitness.engine.lanes import Lane, Lanes

_log = logging.getLogger(__name__)

_FIRST_PROBE_S = 0.2
_LONGEST_PROBE_S = 5.0


class AddressKeeper:
    """Watches given addresses; whoever runs the engines restarts them.

    Args:
        lanes: One lane an address.
        timeout_s: How long all of them may be down.
        stall_s: How long an engine with requests in flight may show no life.
        borrowed: The one address is a worker's front, which looks after its engine itself.
    """

    # others ask the same engine, and may have killed it each time
    kills_to_convict = 3
    shared = True

    def __init__(
        self, lanes: Lanes, *, timeout_s: float, stall_s: float, borrowed: bool = False
    ) -> None:
        self._lanes = lanes
        self._timeout_s = timeout_s
        self._watchdog = Watchdog(lanes, stall_s=stall_s, asks=not borrowed)
        self._watches: list[asyncio.Task[None]] = []
        self._revivals = Revivals(lanes)
        self._whys: dict[Lane, str] = {}

    async def start(self) -> None:
        """Waits until at least one address answers.

        Raises:
            EngineUnavailableError: None did within the time allowed.
        """
        await self._end_watches()
        healthy = await asyncio.gather(*(self._healthy(lane) for lane in self._lanes.all))
        for lane, is_up in zip(self._lanes.all, healthy, strict=True):
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
        self._watches = [
            asyncio.create_task(self._watchdog.find_hangs(lane, self.revive))
            for lane in self._lanes.all
        ]

    async def died(self, lane: Lane) -> bool:
        """Whether the engine at this address is dead.

        Args:
            lane: Its lane.
        """
        if not lane.up or lane.address is None:
            return True
        return await lane.address.healthy() is False

    async def pulse(self, lane: Lane) -> Pulse:
        """Whether the engine answers a question of our own.

        Args:
            lane: Its lane.
        """
        return await self._watchdog.pulse(lane)

    def revive(self, lane: Lane, why: str = "") -> None:
        """Looks after the address until it answers again.

        Args:
            lane: Its lane.
            why: What is wrong with an engine that still listens.
        """
        if self._revivals.begin(lane, self._wait_for):
            lane.hung = bool(why)
            self._whys[lane] = why
            self._tell(
                "gets no requests until it answers again", lane, why or "it cannot be reached"
            )

    def explain(self, deaths: set[int]) -> None:
        """Deaths are not counted here: whoever runs the engines decides.

        Args:
            deaths: Their numbers.
        """

    async def _wait_for(self, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._timeout_s
        pause_s = _FIRST_PROBE_S
        if lane.hung and lane.address is not None:
            # its requests would wait for nothing until their time is over
            await lane.address.hang_up()
        while not await self._alive(lane):
            if loop.time() > limit and not self._lanes.any_up:
                self._lanes.fail(self._unavailable())
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PROBE_S)
        self._lanes.mark_up(lane)
        self._tell("answers again", lane)

    async def _alive(self, lane: Lane) -> bool:
        """True when it is the engine we knew, and answers more than `/health`."""
        if not await self._healthy(lane) or lane.address is None:
            return False
        if not self._lanes.model:
            return True
        try:
            names = [card.id for card in await lane.address.served_models()]
            if self._lanes.model not in names:
                raise ModelIdentityError(
                    f"the engine at {lane.address.url} now serves {', '.join(names)}, and no "
                    f"longer {self._lanes.model}: start it with the model of this build"
                )
        except EngineUnavailableError:
            return False
        except FatalError as error:
            if not self._lanes.any_up:
                self._lanes.fail(error)
            return False
        return await self._watchdog.pulse(lane) is not Pulse.NONE

    async def _healthy(self, lane: Lane) -> bool:
        return lane.address is not None and bool(await lane.address.healthy())

    def _tell(self, what: str, lane: Lane, why: str = "") -> None:
        if lane.address is not None:
            _log.warning("the engine at %s %s%s", lane.address.url, what, why and f": {why}")

    def _unavailable(self) -> EngineUnavailableError:
        where = ", ".join(
            lane.address.url + (f" ({why})" if (why := self._whys.get(lane)) else "")
            for lane in self._lanes.all
            if lane.address
        )
        return EngineUnavailableError(
            f"no engine answered for {self._timeout_s:g} s at {where}: check the address, and "
            "that the engine runs"
        )

    async def _end_watches(self) -> None:
        for watch in self._watches:
            watch.cancel()
        if self._watches:
            await asyncio.wait(self._watches)

    async def close(self) -> None:
        """Closes all connections."""
        await self._end_watches()
        await self._watchdog.close()
        await self._revivals.close()
        for lane in self._lanes.all:
            if lane.address is not None:
                await lane.address.close()
