"""Whether engines answer, and bringing back those that do not.

`/health` says that a server listens. vLLM's goes on saying so while the process behind it hangs,
and a proxy's while there is no engine at all.
"""

from __future__ import annotations

import asyncio
import json
import time
from enum import Enum
from typing import TYPE_CHECKING

from earwitness.engine.replies import Setback, Trouble, replica_metrics
from earwitness.errors import (
    CredentialsError,
    EarwitnessError,
    EngineUnavailableError,
    ModelIdentityError,
    SettingsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from earwitness.engine.address import EngineAddress
    from earwitness.engine.endpoints import Endpoint, Endpoints


_TRIES = 3
_PAUSE_S = 0.5
_WORK = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:request_success_total")


class Probe(Enum):
    """What an engine shows of life."""

    ANSWERS = "answers"
    BUSY = "busy"
    """It lives, and has no room."""
    NONE = "none"


class _Ping:
    """The shortest question: a word in, a token out."""

    strikes = 0

    def encoded(self, model: str, *, inline: bool) -> bytes:  # noqa: ARG002 - it has no clips
        asked = {
            "model": model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
            "temperature": 0,
            "stream": False,
        }
        return json.dumps(asked).encode()

    def keep(self, reply: bytes) -> None:
        """What it answers is nothing to us."""


async def probe_all(address: EngineAddress, model: str, *, patience_s: float) -> Probe:
    """Finds out whether an engine answers, each of its replicas by itself.

    Args:
        address: Where it is.
        model: The name it serves the model under.
        patience_s: How long it may take.

    Returns:
        What it shows; one replica that shows nothing is enough for `NONE`.
    """
    ranks = list(await replicas_work(address))
    asked = ranks if len(ranks) > 1 else [None]
    shown = await asyncio.gather(
        *(probe_replica(address, model, patience_s=patience_s, rank=rank) for rank in asked)
    )
    return next((probe for probe in (Probe.NONE, Probe.BUSY) if probe in shown), Probe.ANSWERS)


async def probe_replica(
    address: EngineAddress, model: str, *, patience_s: float, rank: int | None = None
) -> Probe:
    """Finds out whether an engine answers.

    An engine at work on long answers may let a short question wait for its turn: while its
    counters of tokens go up, it lives.

    Args:
        address: Where it is.
        model: The name it serves the model under.
        patience_s: How long it may take.
        rank: The replica that is asked. Default: whichever the engine chooses.

    Returns:
        What it shows; a refusal of the question is an answer.
    """
    done_before = await _done(address, rank)
    for number in range(_TRIES):
        if number:
            await asyncio.sleep(_PAUSE_S)
        try:
            said = await address.ask(_Ping(), model, timeout_s=patience_s, rank=rank)
        except (EngineUnavailableError, ModelIdentityError, CredentialsError, SettingsError):
            return Probe.NONE
        if not isinstance(said, Setback):
            return Probe.ANSWERS
        if said.trouble is Trouble.BUSY:
            return Probe.BUSY
        if said.trouble is Trouble.TIMEOUT:
            done = await _done(address, rank)
            works = done is not None and done_before is not None and done > done_before
            return Probe.BUSY if works else Probe.NONE
    # a replica that hangs says nothing at all
    return Probe.NONE if rank is None else Probe.BUSY


async def _done(address: EngineAddress, rank: int | None) -> float | None:
    if rank is None:
        return await work_done(address)
    return (await replicas_work(address)).get(rank)


async def replicas_work(address: EngineAddress) -> dict[int, float]:
    """What each replica behind an address has done so far.

    Args:
        address: Where the engine is.

    Returns:
        By replica; empty where the engine does not say.
    """
    try:
        return replica_metrics(await address.metrics_text(), _WORK)
    except (EngineUnavailableError, SettingsError, CredentialsError):
        return {}


async def work_done(address: EngineAddress) -> float | None:
    """What an engine has done so far; a number that stands still while it does nothing.

    Args:
        address: Where it is.

    Returns:
        None when it does not say.
    """
    try:
        counters = await address.metrics()
    except (EngineUnavailableError, SettingsError, CredentialsError):
        return None
    found = [counters[name] for name in _WORK if name in counters]
    return sum(found) if found else None


_LONGEST_PATIENCE_S = 30.0
_LONGEST_LOOK_S = 5.0
_SEVERAL = 2


class Watchdog:
    """Looks after endpoints that have requests in flight and give no reply.

    An engine that thinks for minutes is no engine that hangs, so three things must come together:
    no reply for a time, counters of tokens that stand still, and a question of our own that is
    not answered either.

    Args:
        endpoints: All endpoints.
        stall_s: How long an endpoint may show nothing.
        asks: Ask a question of our own; False over a worker's front, which says itself how its
            engine is.
    """

    def __init__(self, endpoints: Endpoints, *, stall_s: float, asks: bool = True) -> None:
        self._stall_s = stall_s
        self._endpoints = endpoints
        self._asks = asks
        self._patience_s = min(_LONGEST_PATIENCE_S, stall_s / 2)
        self._look_s = min(_LONGEST_LOOK_S, stall_s / 8)
        self._probing: dict[Endpoint, asyncio.Task[Probe]] = {}

    async def probe(self, endpoint: Endpoint) -> Probe:
        """Finds out whether an endpoint's engine answers; callers at the same time share a reply.

        Args:
            endpoint: The endpoint.
        """
        feeling = self._probing.get(endpoint)
        if feeling is None:
            feeling = self._probing[endpoint] = asyncio.create_task(self._probe(endpoint))
            feeling.add_done_callback(lambda _: self._probing.pop(endpoint, None))
        return await asyncio.shield(feeling)

    async def _probe(self, endpoint: Endpoint) -> Probe:
        if endpoint.address is None:
            return Probe.NONE
        if not self._asks:
            return Probe.ANSWERS if await endpoint.address.healthy() else Probe.NONE
        return await probe_all(endpoint.address, self._endpoints.model, patience_s=self._patience_s)

    async def find_hangs(
        self, endpoint: Endpoint, restart: Callable[[Endpoint, str], None]
    ) -> None:
        """Has an endpoint brought back each time it hangs; ends only by being cancelled.

        Args:
            endpoint: The endpoint.
            restart: Brings it back; is told why.
        """
        while True:
            looks = [asyncio.create_task(self.hang(endpoint))]
            if self._asks:
                looks.append(asyncio.create_task(self.silent_replica(endpoint)))
            try:
                done, _ = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
                what = done.pop().result()
            finally:
                for look in looks:
                    look.cancel()
            self._endpoints.mark_down(endpoint)
            restart(endpoint, f"{what} showed no activity for {self._stall_s:g} s")

    async def silent_replica(self, endpoint: Endpoint) -> str:
        """Waits until one of several replicas behind an endpoint hangs, which may be never.

        The others answer meanwhile, so that the endpoint itself is never quiet. A replica whose
        counters stand still may have nothing to do: it is asked a question of our own.

        Args:
            endpoint: An endpoint that is up, or will be.

        Returns:
            Which replica.
        """
        seen: dict[int, tuple[float, float]] = {}
        alone_since_death = -1
        while True:
            await asyncio.sleep(self._look_s)
            deaths = endpoint.deaths
            works = endpoint.up and endpoint.in_flight and endpoint.address is not None
            if not works or endpoint.address is None or deaths == alone_since_death:
                seen = {}
                continue
            work, now_s = await replicas_work(endpoint.address), time.monotonic()
            if len(work) == 1:  # it stays so until the engine is another one
                alone_since_death = deaths
            if len(work) < _SEVERAL:
                continue
            for rank, done in work.items():
                if seen.get(rank, (None, 0.0))[0] != done:
                    seen[rank] = (done, now_s)
            for rank in [r for r in work if now_s - seen[r][1] >= self._stall_s]:
                model, patience_s = self._endpoints.model, self._patience_s
                shown = await probe_replica(
                    endpoint.address, model, patience_s=patience_s, rank=rank
                )
                if shown is Probe.NONE and endpoint.up and endpoint.deaths == deaths:
                    return f"its replica {rank}"
                seen.pop(rank)

    async def hang(self, endpoint: Endpoint) -> str:
        """Waits until an endpoint hangs, which may be never.

        Args:
            endpoint: An endpoint that is up, or will be.

        Returns:
            What hangs: all of it.
        """
        quiet_since_s, heard_s, done = time.monotonic(), 0.0, None
        while True:
            await asyncio.sleep(self._look_s)
            now_s = time.monotonic()
            if not endpoint.up or not endpoint.in_flight or endpoint.heard_s != heard_s:
                quiet_since_s, heard_s, done = now_s, endpoint.heard_s, None
                continue
            quiet_s = now_s - quiet_since_s
            if endpoint.address is None or quiet_s < self._stall_s / 2:
                continue
            done_before, done = done, await work_done(endpoint.address)
            if done_before is not None and done is not None and done > done_before:
                # at work: half the time again from here
                quiet_since_s = now_s - self._stall_s / 2
            elif quiet_s >= self._stall_s:
                if await self._shows_nothing(endpoint, done):
                    return "it"
                quiet_since_s = now_s

    async def _shows_nothing(self, endpoint: Endpoint, done: float | None) -> bool:
        deaths = endpoint.deaths
        # an engine that listens but has no counters may be at work: its requests' limit decides
        if endpoint.address is None or (
            done is None and await endpoint.address.healthy() is not None
        ):
            return False
        silent = await self.probe(endpoint) is Probe.NONE
        return silent and endpoint.up and endpoint.deaths == deaths

    async def close(self) -> None:
        """Ends what it has begun."""
        for feeling in list(self._probing.values()):
            feeling.cancel()
        if self._probing:
            await asyncio.wait(self._probing.values())


class Restarts:
    """The tasks that bring endpoints back, one an endpoint; if one fails nobody waits for ever.

    Args:
        endpoints: Told when an endpoint will not come back.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}
        self._closed = False

    def begin(
        self, endpoint: Endpoint, bring_back: Callable[[Endpoint], Coroutine[None, None, None]]
    ) -> bool:
        """Begins to bring an endpoint back, unless that is under way or all is over.

        Args:
            endpoint: The dead endpoint.
            bring_back: Does it.

        Returns:
            True if it began.
        """
        task = self._tasks.get(endpoint)
        if self._closed or (task is not None and not task.done()):
            return False
        endpoint.deaths += 1
        task = asyncio.create_task(bring_back(endpoint))
        task.add_done_callback(self._on_done)
        self._tasks[endpoint] = task
        return True

    def _on_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            known = error if isinstance(error, EarwitnessError) else None
            self._endpoints.fail(
                known or EngineUnavailableError(f"the engine cannot be restarted: {error!r}")
            )

    async def close(self) -> None:
        """Ends them all; whoever still waits is told."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        self._endpoints.fail(EngineUnavailableError("the connection to the engine was closed"))
