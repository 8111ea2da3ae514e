"""What a request's trouble means: another try, a suspicion, or a verdict.

When an engine dies, every request that was in flight becomes a suspect. Suspects go through the
restarted engine one at a time and alone, so that a record that kills engines is found, and ends
as one rejection; the others get their answers.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from earwitness.engine.wire import Trouble
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from earwitness.engine.keeper import Keeper
    from earwitness.engine.lanes import Lane, Lanes

_MOST_SERVER_ERRORS = 5
_MOST_BREAKS = 5
_BREAKS_OF_A_SUSPECT = 2
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 15.0
_CRASHED = "the engine died on this record each time, also when asked nothing else meanwhile"
_UNAVAILABLE = "the engine lives but went on failing this request ({trouble})"


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(slots=True)
class Case:
    """One request's history over its tries.

    Attributes:
        home: The lane it is a suspect of; None: no suspect.
        suspected_of: The deaths it may have caused, by number.
        kills: How often an engine died while alone with it.
        server_errors: How often it was answered 5xx by a living engine.
        breaks: How often its connection broke though the engine lives.
        backoffs: How often it waited before another try.
        started_s: When it was asked first.
    """

    home: Lane | None = None
    suspected_of: set[int] = field(default_factory=set)
    kills: int = 0
    server_errors: int = 0
    breaks: int = 0
    backoffs: int = 0
    started_s: float = field(default_factory=_now)

    async def back_off(self) -> None:
        """Waits before another try: longer each time, with jitter."""
        longest_s = min(_FIRST_BACKOFF_S * 2**self.backoffs, _LONGEST_BACKOFF_S)
        self.backoffs += 1
        await asyncio.sleep(longest_s * random.uniform(0.5, 1))  # noqa: S311 - jitter


class Judge:
    """Decides over requests in trouble.

    Args:
        lanes: All lanes.
        keeper: Tells whether an engine died, and brings it back.
        busy_timeout_s: How long an engine may go on saying that it has no room.
    """

    def __init__(self, lanes: Lanes, keeper: Keeper, *, busy_timeout_s: float) -> None:
        self._lanes = lanes
        self._keeper = keeper
        self._busy_timeout_s = busy_timeout_s
        self._explained: set[int] = set()

    def heard_answer(self) -> None:
        """Takes note that the engine works: it was the convicted records that killed it."""
        # an engine that dies on every record never answers, and is given up for broken
        if self._explained:
            self._keeper.explain(self._explained)
            self._explained = set()

    async def settle(
        self, trouble: Trouble, case: Case, lane: Lane, *, deaths: int
    ) -> Rejection | None:
        """Finds out what the trouble means; call it before the lane is left.

        Args:
            trouble: What came instead of a reply.
            case: The request's history; made a suspect here when the engine died.
            lane: Where it was sent.
            deaths: The lane's deaths when it was sent.

        Returns:
            The verdict, or None: try again.
        """
        dead = lane.deaths != deaths or await self._keeper.died(lane)
        # another request in flight may have seen it first, and the engine may be back by now
        seen = lane.deaths != deaths
        if not (dead or seen):
            return self._among_the_living(trouble, case, lane)
        if not seen:
            self._lanes.mark_down(lane)
            self._keeper.revive(lane)
        if trouble is Trouble.UNREACHABLE or not self._convicted(case, lane):
            return None
        self._explained |= case.suspected_of
        return Rejection(Stage.GENERATE, Reason.ENGINE_CRASH, _CRASHED)

    def _convicted(self, case: Case, lane: Lane) -> bool:
        """True when it killed the engine alone; the first time it only becomes a suspect."""
        case.suspected_of.add(lane.deaths)
        if case.home is None:
            self._suspect(case, lane)
            return False
        case.kills += 1
        return case.kills >= self._keeper.kills_to_convict

    def _suspect(self, case: Case, lane: Lane) -> None:
        case.home = lane
        self._lanes.add_suspect(lane)

    def _among_the_living(self, trouble: Trouble, case: Case, lane: Lane) -> Rejection | None:
        if trouble is Trouble.BROKEN:
            case.breaks += 1
            # it may die and be back faster than we look, when someone else restarts it
            if case.breaks == _BREAKS_OF_A_SUSPECT and case.home is None:
                self._suspect(case, lane)
            given_up = case.breaks >= _MOST_BREAKS
        elif trouble is Trouble.SERVER_ERROR:
            case.server_errors += 1
            given_up = case.server_errors >= _MOST_SERVER_ERRORS
        else:
            given_up = _now() - case.started_s > self._busy_timeout_s
        if not given_up:
            return None
        detail = _UNAVAILABLE.format(trouble=trouble.value)
        return Rejection(Stage.GENERATE, Reason.ENGINE_UNAVAILABLE, detail)
