"""What a request's trouble means: another try, a suspicion, or a verdict.

When an engine dies, every request that was in flight becomes a suspect. Suspects go through the
restarted engine one at a time and alone, so that a record that kills engines is found, and ends
as one rejection; the others get their answers. An engine of our own convicts by its second death
alone with the record. At an engine that others ask, too, each such death is a strike: the next
build asks again, and the third strike convicts.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from earwitness.engine.health import Probe
from earwitness.engine.replies import Setback, Trouble, steady
from earwitness.errors import EngineUnavailableError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from earwitness.engine.endpoints import Endpoint, Endpoints
    from earwitness.engine.keepers import Keeper
    from earwitness.engine.wire import Request

_MOST_FAILURES = 5
_MOST_BREAKS = 5
_BREAKS_OF_A_SUSPECT = 2
_VOUCHED = 2
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 15.0
_CRASHED = "the engine crashed on this request each time, also when no other request was running"
_DIED = (
    "the engine crashed while this request was the only one of this build; requests of other "
    "users may be the cause, so the next build asks again"
)
_HUNG = "the engine hung on this request each time, also when no other request was running"
_UNAVAILABLE = "the engine runs, but this request failed at every attempt ({said})"
_BUSY = "the engine runs, but it was too busy to accept this request"


@dataclass(slots=True)
class Case:
    """One request's history over its tries.

    Attributes:
        home: The endpoint it is a suspect of; None: no suspect.
        digest: What is asked, clips included; known once it is a suspect.
        suspected_of: The deaths it may have caused, by number.
        strikes: See `Rejection.strikes`: those that earlier builds counted.
        deaths_alone: Deaths of an engine that was asked nothing else, by number.
        failures: How often a living engine answered it with nothing of use.
        breaks: How often its connection broke though the engine lives.
        vouched: How often the engine answered us when it was about to be given up.
        backoffs: How often it waited before another try.
        started_s: When it was asked first.
    """

    home: Endpoint | None = None
    digest: bytes = b""
    suspected_of: set[int] = field(default_factory=set)
    strikes: int = 0
    deaths_alone: list[int] = field(default_factory=list)
    failures: int = 0
    breaks: int = 0
    vouched: int = 0
    backoffs: int = 0
    started_s: float = field(default_factory=time.monotonic)

    async def back_off(self) -> None:
        """Waits before another try: longer each time, with jitter."""
        longest_s = min(_FIRST_BACKOFF_S * 2**self.backoffs, _LONGEST_BACKOFF_S)
        self.backoffs += 1
        await asyncio.sleep(longest_s * random.uniform(0.5, 1))  # noqa: S311 - jitter


class Judge:
    """Decides over requests in trouble.

    Args:
        endpoints: All endpoints.
        keeper: Tells whether an engine died, and brings it back.
        busy_timeout_s: How long an engine may go on saying that it has no room.
    """

    def __init__(self, endpoints: Endpoints, keeper: Keeper, *, busy_timeout_s: float) -> None:
        self._endpoints = endpoints
        self._keeper = keeper
        self._busy_timeout_s = busy_timeout_s
        self._explained: set[int] = set()
        self._convicted_s: dict[bytes, tuple[float, Rejection]] = {}

    def heard(self, endpoint: Endpoint) -> None:
        """Takes note that the engine works: it was the convicted records that killed it.

        Args:
            endpoint: Where an answer came from.
        """
        endpoint.heard_s = time.monotonic()
        # an engine that dies on every record never answers, and is given up for broken
        if self._explained:
            self._keeper.explain(self._explained)
            self._explained = set()

    def doubts(self, case: Case) -> bool:
        """True for a suspect, and for who waited while a verdict fell that may be its own, too.

        Args:
            case: A request's history.
        """
        verdicts_s = (convicted_s for convicted_s, _ in self._convicted_s.values())
        return case.home is not None or any(when_s > case.started_s for when_s in verdicts_s)

    async def known(self, request: Request, case: Case) -> Rejection | None:
        """The verdict on a question that was convicted while it waited to be asked.

        Two shards may ask the same: their record need not kill the engine once for each. Who
        asks only later is heard, so that a record can be tried again.

        Args:
            request: What is asked.
            case: Its history.
        """
        if not case.digest:
            sent = await asyncio.to_thread(request.encoded, "", inline=True)
            case.digest = hashlib.sha256(sent).digest()
        convicted_s, verdict = self._convicted_s.get(case.digest, (0.0, None))
        return verdict if convicted_s > case.started_s else None

    async def settle(
        self, setback: Setback, case: Case, endpoint: Endpoint, *, deaths: int
    ) -> Rejection | None:
        """Finds out what the trouble means; call it before the endpoint is left.

        Args:
            setback: What came instead of a reply.
            case: The request's history; made a suspect here when the engine died.
            endpoint: Where it was sent.
            deaths: The endpoint's deaths when it was sent.

        Returns:
            The verdict, or None: try again.

        Raises:
            EngineUnavailableError: The engine has had no room for anybody for too long.
        """
        dead = endpoint.deaths != deaths or await self._keeper.died(endpoint)
        # another request in flight may have seen it first, and the engine may be back by now
        if endpoint.deaths == deaths and not dead:
            verdict = await self._among_the_living(setback, case, endpoint)
            if verdict is not None or endpoint.deaths == deaths:
                return verdict
        elif endpoint.deaths == deaths:
            self._endpoints.mark_down(endpoint)
            self._keeper.restart(endpoint)
        if setback.trouble is Trouble.UNREACHABLE:
            return None
        return self._suspected(case, endpoint)

    def _suspected(self, case: Case, endpoint: Endpoint) -> Rejection | None:
        """The first death makes a suspect; then deaths of an engine alone with it count."""
        before = len(case.suspected_of)
        case.suspected_of.add(endpoint.deaths)
        if case.home is None:
            self._suspect(case, endpoint)
        # who only lost its connections before has seen the engine die for the first time
        if not before:
            return None
        case.deaths_alone.append(endpoint.deaths)
        verdict = self._verdict(case, endpoint)
        if verdict is not None:
            self._explained |= case.suspected_of
            # one record takes no more of the engine's restarts than one
            self._keeper.explain(set(case.deaths_alone[:-1]))
            self._convicted_s[case.digest] = (time.monotonic(), verdict)
        return verdict

    def _verdict(self, case: Case, endpoint: Endpoint) -> Rejection | None:
        """What the deaths of an engine that was alone with a record say; None: not enough yet."""
        if endpoint.hung:
            # it may have been slow: such a record is tried again another day
            return Rejection(Stage.GENERATE, Reason.ENGINE_TIMEOUT, _HUNG)
        shared = self._keeper.shared
        kills = len(case.deaths_alone) + (case.strikes if shared else 0)
        if kills >= self._keeper.kills_to_convict:
            return Rejection(Stage.GENERATE, Reason.ENGINE_CRASH, _CRASHED)
        return Rejection(Stage.GENERATE, Reason.ENGINE_DIED, _DIED, kills) if shared else None

    def _suspect(self, case: Case, endpoint: Endpoint) -> None:
        case.home = endpoint
        self._endpoints.add_suspect(endpoint)

    async def _among_the_living(
        self, setback: Setback, case: Case, endpoint: Endpoint
    ) -> Rejection | None:
        trouble = setback.trouble
        if trouble is Trouble.TIMEOUT:
            return await self._given_up(Reason.ENGINE_TIMEOUT, setback, case, endpoint)
        if trouble is Trouble.BUSY:
            return await self._turned_away(setback, case, endpoint)
        if trouble in {Trouble.BROKEN, Trouble.UNREACHABLE}:
            case.breaks += 1
            # it may die and be back faster than we look, when someone else restarts it
            broken = trouble is Trouble.BROKEN
            if broken and case.breaks == _BREAKS_OF_A_SUSPECT and case.home is None:
                self._suspect(case, endpoint)
        else:
            case.failures += 1
        if case.breaks < _MOST_BREAKS and case.failures < _MOST_FAILURES:
            return None
        return await self._given_up(Reason.ENGINE_UNAVAILABLE, setback, case, endpoint)

    async def _given_up(
        self, reason: Reason, setback: Setback, case: Case, endpoint: Endpoint
    ) -> Rejection | None:
        """A record is given up only by an engine that answers; what does not is brought back."""
        deaths = endpoint.deaths
        if await self._keeper.probe(endpoint) is not Probe.NONE:
            told = str(setback)
            if reason is Reason.ENGINE_UNAVAILABLE:
                case.vouched += 1
                # the engine may be well since a moment ago: this request has to see that, too
                if case.vouched < _VOUCHED:
                    return None
                told = steady(_UNAVAILABLE.format(said=setback))
            return Rejection(Stage.GENERATE, reason, told)
        if endpoint.deaths == deaths and endpoint.up:
            self._endpoints.mark_down(endpoint)
            self._keeper.restart(endpoint, why=f"it does not answer a test request ({setback})")
        case.breaks = case.failures = case.backoffs = case.vouched = 0
        return None

    async def _turned_away(
        self, setback: Setback, case: Case, endpoint: Endpoint
    ) -> Rejection | None:
        if setback.retry_after_s:
            self._endpoints.rest(endpoint, setback.retry_after_s)
        heard_s = max(one.heard_s for one in self._endpoints.all)
        if time.monotonic() - max(case.started_s, heard_s) < self._busy_timeout_s:
            return None
        if await self._keeper.probe(endpoint) is Probe.ANSWERS:
            return Rejection(Stage.GENERATE, Reason.ENGINE_UNAVAILABLE, _BUSY)
        where = f" at {endpoint.address.url}" if endpoint.address else ""
        raise EngineUnavailableError(
            f"the engine{where} has been too busy to accept a request for "
            f"{self._busy_timeout_s:g} s ({setback})"
        )
