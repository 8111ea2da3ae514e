"""Whether an engine answers at all: it is asked a question of our own.

`/health` says that a server listens. vLLM's goes on saying so while the process behind it hangs,
and a proxy's while there is no engine at all.
"""

from __future__ import annotations

import asyncio
import json
from enum import Enum
from typing import TYPE_CHECKING

from earwitness.engine.replies import Setback, Trouble
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


async def feel(address: EngineAddress, model: str, *, patience_s: float) -> Pulse:
    """Finds out whether an engine answers.

    An engine at work on long answers may let a short question wait for its turn: while its
    counters of tokens go up, it lives.

    Args:
        address: Where it is.
        model: The name it serves the model under.
        patience_s: How long it may take.

    Returns:
        What it shows; a refusal of the question is an answer.
    """
    done_before = await work_done(address)
    for number in range(_TRIES):
        if number:
            await asyncio.sleep(_PAUSE_S)
        try:
            said = await address.ask(_Ping(), model, timeout_s=patience_s)
        except (EngineUnavailableError, ModelIdentityError, CredentialsError, SettingsError):
            return Pulse.NONE
        if not isinstance(said, Setback):
            return Pulse.ANSWERS
        if said.trouble is Trouble.BUSY:
            return Pulse.BUSY
        if said.trouble is Trouble.TIMEOUT:
            done = await work_done(address)
            works = done is not None and done_before is not None and done > done_before
            return Pulse.BUSY if works else Pulse.NONE
    return Pulse.NONE


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
