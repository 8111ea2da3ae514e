"""Ctrl-C: a build stops at once, cleanly where that is quick, and a build can always go on."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.main import INTERRUPTED
from earwitness import runtime
from earwitness.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_CLEAN_STOP_S = 5.0


class StoppedError(Exception):
    """The build was stopped with Ctrl-C."""


@contextmanager
def stoppable(notice: Callable[[], None], abandon: Callable[[], None]) -> Iterator[None]:
    """Turn Ctrl-C inside the block into `StoppedError`, soon.

    The first Ctrl-C closes the runtime, so that tasks which wait for answers end. What has not
    ended after five seconds, or at a second Ctrl-C, is abandoned: engine and Prefect server are
    under guardians that end with this process, scratch is swept by the next build.

    Args:
        notice: Called at the first Ctrl-C.
        abandon: Called before the process ends by force.

    Raises:
        StoppedError: Ctrl-C was pressed.
    """
    stopped = threading.Event()

    def end_by_force() -> None:
        abandon()
        os._exit(INTERRUPTED)

    deadline = threading.Timer(_CLEAN_STOP_S, end_by_force)
    deadline.daemon = True

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            end_by_force()
        stopped.set()
        deadline.start()
        notice()
        threading.Thread(target=_close_runtime, daemon=True).start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    except BaseException as error:
        # what tasks raise when the runtime closes under them is no news
        if stopped.is_set():
            raise StoppedError from error
        raise
    finally:
        deadline.cancel()
        signal.signal(signal.SIGINT, before)


def _close_runtime() -> None:
    try:
        runtime.current().close()
    except (FatalError, RuntimeError):
        return  # none was open yet, or it is closing already
