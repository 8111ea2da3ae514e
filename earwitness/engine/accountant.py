"""What a client has had of its engines' time: by its own meter, or by a worker's front."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from earwitness.engine.account import EngineTime, Meter
from earwitness.engine.given import slots_of
from earwitness.errors import CredentialsError, EngineUnavailableError, SettingsError

if TYPE_CHECKING:
    from earwitness.engine.address import EngineAddress
    from earwitness.engine.lanes import Lane, Lanes
    from earwitness.engine.shared import SharedEngine
    from earwitness.settings import EngineSettings

_SAMPLE_EVERY_S = 10.0
_PATIENCE_S = 5.0
_TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
_UNREADABLE = (EngineUnavailableError, SettingsError, CredentialsError, TimeoutError)


def make_meter(settings: EngineSettings, shared: SharedEngine | None) -> Meter:
    """The meter for an engine's client.

    Args:
        settings: The engine's settings.
        shared: A worker's engine, where it is that one that is asked.
    """
    if shared is not None:
        return Meter(shared.slots)
    return Meter(slots_of(settings), gpus=gpus_of(settings), restarts=not settings.url)


def gpus_of(settings: EngineSettings, devices: Path = Path("/dev")) -> int:
    """GPUs of one engine.

    Args:
        settings: The engine's settings.
        devices: Folder that shows whether this machine has any.

    Returns:
        0 where they are not known (a given engine) or there are none.
    """
    there = any(devices.glob("nvidia[0-9]*")) or (devices / "kfd").exists()
    if settings.url or not there:
        return 0
    return settings.tensor_parallel_size * settings.data_parallel_size


class Accountant:
    """Tells what engines' time a client has had. Lives in the client's loop.

    An engine without metrics, or a front that does not say, costs figures and nothing else.

    Args:
        lanes: The client's lanes, with their meter.
        borrowed: The one lane is a worker's front.
    """

    def __init__(self, lanes: Lanes, *, borrowed: bool) -> None:
        self._lanes = lanes
        self._borrowed = borrowed
        self._begun = False
        self._told = EngineTime()
        self._counters: dict[Lane, tuple[float, float]] = {}
        self._sampled_s = 0.0
        # one after the other: what was read first must not be noted last
        self._reading = asyncio.Lock()

    async def begin(self) -> None:
        """Take note that the engines answer, and are needed from now on."""
        self._begun = True
        await self.spent()

    async def spent(self) -> EngineTime:
        """What the client has had so far; it only grows."""
        if not self._begun:
            return EngineTime()
        if self._borrowed:
            async with self._reading:
                await self._ask_front()
                return self._told
        await self.count_tokens()
        return self._lanes.meter.settled()

    def total(self) -> EngineTime:
        """All that the engines have done until now: what a front divides."""
        return self._lanes.meter.total()

    async def end(self) -> None:
        """Tell a front that its engine is needed no more."""
        if self._begun and self._borrowed:
            await self._ask_front(last=True)

    async def _ask_front(self, *, last: bool = False) -> None:
        (lane,) = self._lanes.all
        if not lane.up or lane.address is None:
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                told = await lane.address.account(last=last)
            found = EngineTime(**{name: float(value) for name, value in told.items()})
        except (*_UNREADABLE, TypeError, ValueError, AttributeError):
            return
        if found.engine_s >= self._told.engine_s:
            self._told = found

    async def count_tokens(self) -> None:
        """Read the engines' own counters, now and then and when nobody is kept waiting."""
        async with self._reading:
            now_s = time.monotonic()
            if not self._lanes.meter.idle and now_s - self._sampled_s < _SAMPLE_EVERY_S:
                return
            self._sampled_s = now_s
            for lane in self._lanes.all:
                if lane.up and lane.address is not None:
                    found = await _tokens(lane.address)
                    if found is not None:
                        self._note(lane, found)

    def _note(self, lane: Lane, found: tuple[float, float]) -> None:
        known = self._counters.get(lane)
        self._counters[lane] = found
        if known is None:
            return
        # counters that went back are those of an engine that was started again
        began = (0.0, 0.0) if found[0] < known[0] else known
        self._lanes.meter.counted(found[0] - began[0], max(0.0, found[1] - began[1]))


async def _tokens(address: EngineAddress) -> tuple[float, float] | None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            counters = await address.metrics()
    except _UNREADABLE:
        return None
    if any(name not in counters for name in _TOKENS):
        return None
    return counters[_TOKENS[0]], counters[_TOKENS[1]]
