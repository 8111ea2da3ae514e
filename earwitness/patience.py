"""How long storage that fails is asked again.

Every call is repeated with growing pauses that do not fall in step, for about a minute. What is
remembered over the calls is whether anything works at all: once nothing has for that long, storage
is down, and every further call is made once, so that an outage costs a minute and not a minute for
each of a million clips. The first call that works ends that.

A call that goes on failing while others work is about one object that cannot be had. It is given up
sooner, and still made about ten times: its task waits for it, and is tried again itself.
"""

from __future__ import annotations

import os
import random
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "EARWITNESS_STORAGE_PATIENCE_S"
"""Environment variable with another number of seconds."""

FIRST_PAUSE_S = 0.2
MOST_ATTEMPTS = 12
"""More do not fit into a minute."""

_LIMIT_S = 60.0
_FORGOTTEN_S = 600.0
_LONGEST_PAUSE_S = 10.0
_ALONE_S, _LONGEST_PAUSE_ALONE_S = 20.0, 3.0
"""For how long, and with which pauses, a call is repeated while others work."""


class Patience:
    """What is known of one storage, shared by all threads and tasks that ask it.

    Args:
        limit_s: For how long a call that fails is repeated. Default: a minute, or `VARIABLE`.
        clock: Seconds that only grow.
    """

    def __init__(
        self, limit_s: float | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit_s = float(os.environ.get(VARIABLE, _LIMIT_S)) if limit_s is None else limit_s
        self.clock = clock
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._worked_at: float | None = None

    def worked(self) -> None:
        """Note that storage answered."""
        self._failing_since = None
        self._worked_at = self.clock()

    def worked_since(self, moment_s: float) -> bool:
        """True when a call has worked since a moment of the clock."""
        return self._worked_at is not None and self._worked_at > moment_s

    @property
    def works(self) -> bool:
        """True when a call has worked about as lately as a call may take."""
        return self.worked_since(self.clock() - 2 * self.limit_s)

    def failed(self) -> None:
        """Note that it did not."""
        now = self.clock()
        with self._lock:
            # a failure long ago that nothing followed says nothing about now
            if self._failing_since is None or now - self._failed_at > _FORGOTTEN_S:
                self._failing_since = now
            self._failed_at = now

    @property
    def spent(self) -> bool:
        """True when nothing has worked for too long."""
        since = self._failing_since
        return since is not None and self.clock() - since > self.limit_s


class Attempts:
    """The attempts at one call.

    Args:
        patience: What is known of the storage it is made to.
        first_pause_s: The longest pause after the first failure; each later one is twice that.
    """

    def __init__(self, patience: Patience, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._patience = patience
        self._pause_s = first_pause_s
        self._begun = patience.clock()
        self._alone_since: float | None = None
        self.failures = 0

    def worked(self) -> None:
        """The call worked."""
        self._patience.worked()

    def failed(self) -> float | None:
        """The call failed: how many seconds to wait before the next attempt; None: give up."""
        self._patience.failed()
        self.failures += 1
        now, limit_s, longest_pause_s = (
            self._patience.clock(),
            self._patience.limit_s,
            _LONGEST_PAUSE_S,
        )
        if self._alone_since is None and self._patience.worked_since(self._begun):
            # from now on: while nothing worked, it was not this call's fault
            self._alone_since = now
        if self._alone_since is not None:
            limit_s, longest_pause_s = min(limit_s, _ALONE_S), _LONGEST_PAUSE_ALONE_S
        upper_s = min(self._pause_s, longest_pause_s)
        pause_s = random.uniform(upper_s / 2, upper_s)  # noqa: S311 - only spreads load
        self._pause_s = 2 * upper_s
        late = now + pause_s - (self._alone_since or self._begun) > limit_s
        # one slow attempt may take the whole time: it is repeated all the same
        if self._patience.spent or (late and self.failures > 1):
            return None
        return pause_s
