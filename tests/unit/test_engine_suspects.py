"""Verdicts: who killed it alone did it, who asks the same shares the verdict, others do not."""

from __future__ import annotations

import time

import pytest

from earwitness.engine.endpoints import Endpoint, Endpoints
from earwitness.engine.health import Probe
from earwitness.engine.replies import Setback, Trouble
from earwitness.engine.suspects import Case, Judge
from earwitness.errors import EngineUnavailableError
from earwitness.records import Reason


class Keeper:
    """A keeper that is told how its engine is."""

    kills_to_convict = 2
    shared = False

    def __init__(self, endpoints, probe=Probe.ANSWERS, *, dead=False):
        self.endpoints, self.shows, self.dead = endpoints, probe, dead
        self.restarted = []
        self.explained = set()

    async def start(self):
        raise NotImplementedError

    async def died(self, _endpoint):
        return self.dead

    async def probe(self, _endpoint):
        return self.shows

    def restart(self, endpoint, why=""):
        self.restarted.append(why)
        endpoint.hung = bool(why)
        endpoint.deaths += 1

    def explain(self, deaths):
        self.explained |= deaths

    async def close(self):
        raise NotImplementedError


class Question:
    def __init__(self, text):
        self.text = text

    def encoded(self, _model, *, inline):
        assert inline, "two runs keep the same clip in two places"
        return self.text


@pytest.fixture
def court():
    endpoints = Endpoints([Endpoint(None)], room=4)
    endpoints.mark_up(endpoints.all[0])
    keeper = Keeper(endpoints)
    return Judge(endpoints, keeper, busy_timeout_s=0.0), keeper, endpoints.all[0]


async def settle(court, case, trouble):
    judge, _, endpoint = court
    return await judge.settle(Setback(trouble), case, endpoint, deaths=endpoint.deaths)


async def alone(court, case, trouble=Trouble.BROKEN, *, deaths=2):
    """A death with others there, then some with nobody else there; what the last one means."""
    assert await settle(court, case, trouble) is None
    assert case.home is court[2]
    await court[0].known(Question(b"poison"), case)
    for _ in range(deaths - 1):
        court[2].up = True
        assert await settle(court, case, trouble) is None
    court[2].up = True
    return await settle(court, case, trouble)


async def test_who_kills_it_alone_did_it(court):
    court[1].dead = True
    verdict = await alone(court, Case())
    assert (verdict.reason, verdict.transient) == (Reason.ENGINE_CRASH, False)


async def test_one_death_alone_may_be_somebody_elses_doing(court):
    court[1].dead = True
    assert await alone(court, Case(), deaths=1) is None


async def test_the_deaths_of_one_convicted_record_count_as_one_against_the_engine(court):
    court[1].dead = True
    await alone(court, Case())
    assert court[1].explained == {2}
    court[0].heard(court[2])
    assert court[1].explained == {1, 2, 3}


@pytest.mark.parametrize(("before", "reason"), [(0, "engine_died"), (1, "engine_died")])
async def test_where_others_ask_too_a_death_alone_is_a_strike_and_asked_again(
    court, before, reason
):
    court[1].dead, court[1].shared, court[1].kills_to_convict = True, True, 3
    verdict = await alone(court, Case(strikes=before), deaths=1)
    assert (verdict.reason, verdict.transient, verdict.strikes) == (reason, True, before + 1)


async def test_where_others_ask_too_the_third_strike_convicts(court):
    court[1].dead, court[1].shared, court[1].kills_to_convict = True, True, 3
    verdict = await alone(court, Case(strikes=2), deaths=1)
    assert (verdict.reason, verdict.transient) == (Reason.ENGINE_CRASH, False)


async def test_who_hangs_it_alone_is_tried_again_another_day(court):
    court[1].shows = Probe.NONE
    verdict = await alone(court, Case(), Trouble.TIMEOUT, deaths=1)
    assert (verdict.reason, verdict.transient) == (Reason.ENGINE_TIMEOUT, True)
    assert len(court[1].restarted) == 2


async def test_who_only_lost_its_connections_before_is_not_blamed_for_the_first_death(court):
    case = Case()
    for _ in range(2):
        assert await settle(court, case, Trouble.BROKEN) is None
    assert case.home is court[2]
    court[1].dead = True
    for _ in range(2):
        assert await settle(court, case, Trouble.BROKEN) is None
    assert (await settle(court, case, Trouble.BROKEN)).reason is Reason.ENGINE_CRASH


async def test_who_asked_the_same_before_the_verdict_shares_it(court):
    court[1].dead = True
    same, other = Case(), Case()
    verdict = await alone(court, Case())
    assert await court[0].known(Question(b"poison"), same) == verdict
    assert await court[0].known(Question(b"innocent"), other) is None


async def test_only_who_waited_while_a_verdict_fell_is_looked_up(court):
    court[1].dead = True
    waited, judge = Case(), court[0]
    assert not judge.doubts(waited)
    await alone(court, Case())
    assert judge.doubts(waited)
    assert not judge.doubts(Case())


async def test_who_asks_after_the_verdict_is_heard(court):
    court[1].dead = True
    await alone(court, Case())
    assert await court[0].known(Question(b"poison"), Case()) is None


async def test_a_time_out_is_the_records_fault_only_where_the_engine_answers(court):
    verdict = await settle(court, Case(), Trouble.TIMEOUT)
    assert verdict.reason is Reason.ENGINE_TIMEOUT
    assert court[1].restarted == []


@pytest.mark.parametrize("trouble", [Trouble.GARBAGE, Trouble.SERVER_ERROR])
async def test_no_record_is_given_up_by_an_engine_that_answers_nobody(court, trouble):
    court[1].shows = Probe.NONE
    case = Case()
    for _ in range(5):
        assert await settle(court, case, trouble) is None
    assert len(court[1].restarted) == 1


async def test_a_request_that_failed_tries_once_more_when_the_engine_answers(court):
    case = Case()
    for _ in range(5):
        assert await settle(court, case, Trouble.GARBAGE) is None
    verdict = await settle(court, case, Trouble.GARBAGE)
    assert (verdict.reason, verdict.transient) == (Reason.ENGINE_UNAVAILABLE, True)


async def test_an_engine_without_room_for_anybody_is_unavailable(court):
    court[1].shows = Probe.BUSY
    with pytest.raises(EngineUnavailableError, match="too busy"):
        await settle(court, Case(), Trouble.BUSY)


async def test_a_busy_engine_is_left_alone_as_long_as_it_asks(court):
    judge, _, endpoint = court
    busy = Setback(Trouble.BUSY, retry_after_s=30)
    await judge.settle(busy, Case(), endpoint, deaths=0)
    assert 25 < endpoint.resting_until_s - time.monotonic() <= 30


async def test_one_for_whom_alone_there_is_no_room_is_a_transient_rejection(court):
    verdict = await settle(court, Case(), Trouble.BUSY)
    assert (verdict.reason, verdict.transient) == (Reason.ENGINE_UNAVAILABLE, True)
