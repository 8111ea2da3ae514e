"""What a build has of its engines' time, and how it is measured.

**An engine** is what answers at one address: an engine of the build's own with all its GPUs and
replicas, each given address, or a worker's engine, which its flow runs share.

**Start** seconds pass while an engine of the build's own is being started or restarted; those of
engines that run already are nobody's, but for a restart while they are needed.

**Engine** seconds pass for each engine that answers, from the first question that needed it (for an
engine of the build's own: from its first sign of life) to the last answer. What lies between two
questions counts, a whole gap between two shards too; what comes after the last answer does not.

**Busy** seconds are engine seconds weighted with the share of the engine's slots that have a
request, 1 at most: ten seconds with half of the slots filled are five. So the head and the tail of
a build, where the slots fill and drain, show as what they are.

**Starved** seconds are all other engine seconds.

**Shared engines.** No second is counted twice: while flow runs share a worker's engine each has the
part that its requests have of all requests there; with no request at all, they share evenly (see
`front`). Who else asks a given address is not known: there a build counts all of the engine's
time from its first question to its last answer.

**Kills.** Time is kept with the checkpoints (the batches' segments, the receipts). What passed
between the last of them and a kill is in no account: a build that was interrupted counts its
engine's time as a lower bound, and says so.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from earwitness.engine.given import slots_of
from earwitness.errors import CredentialsError, EngineUnavailableError, SettingsError
from earwitness.progress import EngineLoad, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from earwitness.engine.address import EngineAddress
    from earwitness.engine.endpoints import Endpoint, Endpoints
    from earwitness.engine.shared import SharedEngine
    from earwitness.records import Json
    from earwitness.settings import EngineSettings


_TELL_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class EngineTime:
    """Time had of engines; see above.

    Attributes:
        start_s: While they were started.
        engine_s: While they answered.
        busy_s: Of that, with their slots filled.
        gpu_s: Start and engine seconds, each times the engine's GPUs; 0 where these are not known.
        prompt_tokens: Tokens that the engines say they read meanwhile, whoever asked; 0: they do
            not say.
        completion_tokens: Tokens that the engines say they wrote meanwhile.
    """

    start_s: float = 0.0
    engine_s: float = 0.0
    busy_s: float = 0.0
    gpu_s: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0

    @property
    def starved_s(self) -> float:
        """Engine seconds without a request in the slots."""
        return max(0.0, self.engine_s - self.busy_s)

    def __add__(self, other: EngineTime) -> EngineTime:
        return EngineTime(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __sub__(self, other: EngineTime) -> EngineTime:
        return self + other * -1

    def __mul__(self, share: float) -> EngineTime:
        return EngineTime(*(value * share for value in self.values()))

    def values(self) -> tuple[float, ...]:
        """All of it, in order."""
        return (
            self.start_s,
            self.engine_s,
            self.busy_s,
            self.gpu_s,
            self.prompt_tokens,
            self.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Engine time as a checkpoint keeps it.

    Attributes:
        attempt: The process that had it; several at one shard: it was interrupted.
        time: What it had since its last checkpoint.
    """

    attempt: str = ""
    time: EngineTime = EngineTime()

    def to_json(self) -> Json:
        """As it is stored."""
        return {"attempt": self.attempt, "time": list(self.time.values())}

    @classmethod
    def from_json(cls, found: Json) -> Self:
        """As it was stored."""
        return cls(str(found["attempt"]), EngineTime(*map(float, found["time"])))


NO_USAGE = Usage()


class _Line:
    """What the meter knows of one engine."""

    __slots__ = ("is_up", "open", "starts")

    def __init__(self) -> None:
        self.is_up = self.starts = False
        self.open = 0


class Meter:
    """Adds up how engines are used, in a few operations an event. Lives in one thread.

    Args:
        slots: Requests an engine answers at once.
        gpus: GPUs of an engine; 0: not known.
        restarts: They are ours: one that is down is being started again.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        slots: int = 1,
        *,
        gpus: int = 0,
        restarts: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._gpus = gpus
        self._restarts = restarts
        self._clock = clock
        self._lines: dict[Hashable, _Line] = {}
        self._up = self._starting = self._filled = self._open = 0
        self._start_s = self._engine_s = self._slot_s = 0.0
        self._tokens = (0.0, 0.0)
        self._seen_s = self._told_s = clock()
        self._told = (0.0, 0.0)

    @property
    def idle(self) -> bool:
        """True while nobody asks anything."""
        return self._open == 0

    def starting(self, engine: Hashable) -> None:
        """An engine of ours is being started."""
        self._change(engine, is_up=False, starts=True)

    def up(self, engine: Hashable) -> None:
        """An engine answers."""
        self._change(engine, is_up=True, starts=False)

    def down(self, engine: Hashable) -> None:
        """An engine answers no more."""
        if engine in self._lines:
            self._change(engine, is_up=False, starts=self._restarts)

    def begin(self, engine: Hashable) -> None:
        """A request goes to an engine."""
        self._change(engine, asked=1)

    def end(self, engine: Hashable) -> None:
        """A request is over, whatever came of it."""
        self._change(engine, asked=-1)

    def counted(self, prompt_tokens: float, completion_tokens: float) -> None:
        """Take note of tokens that an engine says it handled."""
        self._tokens = (self._tokens[0] + prompt_tokens, self._tokens[1] + completion_tokens)

    def total(self) -> EngineTime:
        """All time until now, needed or not: for whoever divides it among others."""
        self._advance()
        return self._read()

    def settled(self) -> EngineTime:
        """Time until now, or until the last answer while nobody asks anything."""
        if self._open:
            self._advance()
        return self._read()

    def _change(
        self,
        engine: Hashable,
        *,
        is_up: bool | None = None,
        starts: bool | None = None,
        asked: int = 0,
    ) -> None:
        self._advance()
        line = self._lines.get(engine)
        if line is None:
            line = self._lines[engine] = _Line()
        self._count(line, -1)
        line.is_up = line.is_up if is_up is None else is_up
        line.starts = line.starts if starts is None else starts
        line.open += asked
        self._count(line, 1)

    def _count(self, line: _Line, sign: int) -> None:
        self._open += sign * line.open
        self._starting += sign * line.starts
        if line.is_up:
            self._up += sign
            self._filled += sign * min(line.open, self._slots)

    def _advance(self) -> None:
        now_s = self._clock()
        passed_s = now_s - self._seen_s
        self._seen_s = now_s
        self._start_s += self._starting * passed_s
        self._engine_s += self._up * passed_s
        self._slot_s += self._filled * passed_s
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._tell(now_s)

    def _tell(self, now_s: float) -> None:
        engine_s, slot_s = self._engine_s - self._told[0], self._slot_s - self._told[1]
        self._told_s, self._told = now_s, (self._engine_s, self._slot_s)
        if engine_s:
            tell(EngineLoad(slot_s / self._slots / engine_s))

    def _read(self) -> EngineTime:
        return EngineTime(
            self._start_s,
            self._engine_s,
            self._slot_s / self._slots,
            (self._start_s + self._engine_s) * self._gpus,
            *self._tokens,
        )


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
        endpoints: The client's endpoints, with their meter.
        borrowed: The one endpoint is a worker's front.
    """

    def __init__(self, endpoints: Endpoints, *, borrowed: bool) -> None:
        self._endpoints = endpoints
        self._borrowed = borrowed
        self._begun = False
        self._told = EngineTime()
        self._counters: dict[Endpoint, tuple[float, float]] = {}
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
        return self._endpoints.meter.settled()

    def total(self) -> EngineTime:
        """All that the engines have done until now: what a front divides."""
        return self._endpoints.meter.total()

    async def end(self) -> None:
        """Tell a front that its engine is needed no more."""
        if self._begun and self._borrowed:
            await self._ask_front(last=True)

    async def _ask_front(self, *, last: bool = False) -> None:
        (endpoint,) = self._endpoints.all
        if not endpoint.up or endpoint.address is None:
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                told = await endpoint.address.account(last=last)
            found = EngineTime(**{name: float(value) for name, value in told.items()})
        except (*_UNREADABLE, TypeError, ValueError, AttributeError):
            return
        if found.engine_s >= self._told.engine_s:
            self._told = found

    async def count_tokens(self) -> None:
        """Read the engines' own counters, now and then and when nobody is kept waiting."""
        async with self._reading:
            now_s = time.monotonic()
            if not self._endpoints.meter.idle and now_s - self._sampled_s < _SAMPLE_EVERY_S:
                return
            self._sampled_s = now_s
            for endpoint in self._endpoints.all:
                if endpoint.up and endpoint.address is not None:
                    found = await _tokens(endpoint.address)
                    if found is not None:
                        self._note(endpoint, found)

    def _note(self, endpoint: Endpoint, found: tuple[float, float]) -> None:
        known = self._counters.get(endpoint)
        self._counters[endpoint] = found
        if known is None:
            return
        # counters that went back are those of an engine that was started again
        began = (0.0, 0.0) if found[0] < known[0] else known
        self._endpoints.meter.counted(found[0] - began[0], max(0.0, found[1] - began[1]))


async def _tokens(address: EngineAddress) -> tuple[float, float] | None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            counters = await address.metrics()
    except _UNREADABLE:
        return None
    if any(name not in counters for name in _TOKENS):
        return None
    return counters[_TOKENS[0]], counters[_TOKENS[1]]
