"""Divides a worker's engine among the flow runs that ask it, so that no second counts twice."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from earwitness.engine.usage import EngineTime

if TYPE_CHECKING:
    from collections.abc import Callable

_SETTLE_EVERY_S = 0.1
"""Shares are taken as they stand once in so long: a request costs next to nothing here."""
_GONE_AFTER_S = 60.0
"""Who has asked nothing for so long may have been killed, and has no part in idle time."""
_FORGOTTEN_AFTER_S = 3600.0


class _Run:
    """A flow run's part.

    Attributes:
        open: Its requests that are under way.
        spent: What it has had.
        idle: Its part of the time since nobody asked anything; its own once it asks again.
        uncounted_s: Its busy seconds since the engine's tokens were last read.
        seen_s: When it was last heard of.
    """

    def __init__(self) -> None:
        self.open = 0
        self.spent = EngineTime()
        self.idle = EngineTime()
        self.uncounted_s = 0.0
        self.seen_s = 0.0


class Shares:
    """Who has had how much of an engine. Lives in one thread.

    Args:
        total: The engine's time until now.
        clock: Seconds that only grow.
    """

    def __init__(
        self, total: Callable[[], EngineTime], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._known = EngineTime()
        self._settled_s = clock()
        self._open = 0

    def enter(self, run: str) -> None:
        """A request of a run has come."""
        self._settle(now=not self._open)
        found = self._run(run)
        if found.idle.engine_s or found.idle.start_s:
            found.spent, found.idle = found.spent + found.idle, EngineTime()
        found.open += 1
        self._open += 1

    def leave(self, run: str) -> None:
        """A request of a run is over."""
        self._settle(now=self._open == 1)
        self._run(run).open -= 1
        self._open -= 1

    def spent(self, run: str) -> EngineTime:
        """What a run has had so far; from its first call on it has a part."""
        self._settle(now=True)
        return self._run(run).spent

    def forget(self, run: str) -> None:
        """A run needs the engine no more."""
        self._settle(now=True)
        found = self._runs.get(run)
        if found is not None and not found.open:
            del self._runs[run]

    def _run(self, name: str) -> _Run:
        if name not in self._runs:
            self._runs[name] = _Run()
        found = self._runs[name]
        found.seen_s = self._clock()
        return found

    def _settle(self, *, now: bool) -> None:
        """Divide what has passed since the last time."""
        now_s = self._clock()
        if not now and now_s - self._settled_s < _SETTLE_EVERY_S:
            return
        total = self._total()
        passed, self._known, self._settled_s = total - self._known, total, now_s
        self._divide_time(replace(passed, prompt_tokens=0, completion_tokens=0), now_s)
        if passed.prompt_tokens or passed.completion_tokens:
            self._divide_tokens(passed.prompt_tokens, passed.completion_tokens)

    def _divide_time(self, passed: EngineTime, now_s: float) -> None:
        if self._open:
            for run in self._runs.values():
                if run.open:
                    part = passed * (run.open / self._open)
                    run.spent += part
                    run.uncounted_s += part.busy_s
            return
        self._drop_the_dead(now_s)
        here = [run for run in self._runs.values() if now_s - run.seen_s < _GONE_AFTER_S]
        for run in here:
            run.idle += passed * (1 / len(here))

    def _divide_tokens(self, prompt: float, completion: float) -> None:
        """Tokens are read now and then: they belong to all who were busy since the last time."""
        whole_s = sum(run.uncounted_s for run in self._runs.values())
        for run in self._runs.values():
            if run.uncounted_s:
                part = EngineTime(prompt_tokens=prompt, completion_tokens=completion)
                run.spent += part * (run.uncounted_s / whole_s)
                run.uncounted_s = 0.0

    def _drop_the_dead(self, now_s: float) -> None:
        dead = [name for name, run in self._runs.items() if now_s - run.seen_s > _FORGOTTEN_AFTER_S]
        for name in dead:
            del self._runs[name]
