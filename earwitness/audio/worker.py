"""The inside of a decode worker: what the process does that `DecodePool` asks.

It ends with its owner, may not eat the machine's memory, and keeps native libraries' chatter to
itself.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
import traceback
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any, TypeVar

from earwitness.errors import BadRecordError, EarwitnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from earwitness.records import Rejection

T = TypeVar("T")

MEMORY_LIMIT_BYTES = 4 * 2**30
"""Address space of one worker: a header that lies about its size cannot take the machine."""
_PR_SET_PDEATHSIG = 1


def serve(pipe: Connection) -> None:
    """A worker's life: answer calls until the owner is gone.

    Args:
        pipe: Brings functions with their arguments, takes errors or results.
    """
    _protect()
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[Exception | None, Any]
        try:
            answer = (None, function(*arguments))
        except Exception as error:  # noqa: BLE001 - goes to the caller
            answer = (_sendable(error), None)
        pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """An error that the owner can read, with the trace it cannot see."""
    if isinstance(error, EarwitnessError):
        return error
    trace = traceback.format_exc()
    plain = all(isinstance(one, str | bytes | int | float | None) for one in error.args)
    if plain and type(error).__module__ == "builtins":
        error.add_note(trace)
        return error
    # the pipe may not carry it, or its class may not be made again from what it carries
    return RuntimeError(trace)


def call_each(
    function: Callable[..., T], many: Sequence[tuple[Any, ...]], budget_s: float
) -> list[T | Rejection]:
    """Call a function once for each of several clips, for as long as the time given lasts.

    Args:
        function: What is called.
        many: The arguments of each call.
        budget_s: No call begins once this much time has gone by; the first always does.

    Returns:
        Results, or rejections, in order; of the first calls alone when the time ran out.
    """
    started_s = time.monotonic()
    found: list[T | Rejection] = []
    for arguments in many:
        if found and time.monotonic() - started_s > budget_s:
            break
        try:
            found.append(function(*arguments))
        except BadRecordError as error:
            found.append(error.rejection)
    return found


def _protect() -> None:
    # The parent is the fork server, which ends when nobody holds its pipe any more. multiprocessing
    # lets every child hold it; without this line workers would keep it, and so themselves, alive.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # noqa: SLF001
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # mpg123 and others write warnings there, past Python; errors travel as exceptions
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    os.close(silent)
