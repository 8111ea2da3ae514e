"""Whether an engine answers at all: it is asked a question of our own.

`/health` says that a server listens. vLLM's goes on saying so while the process behind it hangs,
and a proxy's while there is no engine at all.
"""

from __future__ import annotations

import asyncio
import json
from enum import Enum
from typing import TYPE_CHECKING

from earwitness.engine.replies import Setback, Trouble, replica_metrics
from earwitness.errors import (
    CredentialsError,
    EngineUnavailableError,
    ModelIdentityError,
    SettingsError,
)

if TYPE_CHECKING:
    from earwitness.engine.address import EngineAddress

_TRIES = 3
_PAUSE_S = 0.5
_WORK = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:request_success_total")


class Pulse(Enum):
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


async def feel_all(address: EngineAddress, model: str, *, patience_s: float) -> Pulse:
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
        *(feel(address, model, patience_s=patience_s, rank=rank) for rank in asked)
    )
    return next((pulse for pulse in (Pulse.NONE, Pulse.BUSY) if pulse in shown), Pulse.ANSWERS)


async def feel(
    address: EngineAddress, model: str, *, patience_s: float, rank: int | None = None
) -> Pulse:
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
            return Pulse.NONE
        if not isinstance(said, Setback):
            return Pulse.ANSWERS
        if said.trouble is Trouble.BUSY:
            return Pulse.BUSY
        if said.trouble is Trouble.TIMEOUT:
            done = await _done(address, rank)
            works = done is not None and done_before is not None and done > done_before
            return Pulse.BUSY if works else Pulse.NONE
    # a replica that hangs says nothing at all
    return Pulse.NONE if rank is None else Pulse.BUSY


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
