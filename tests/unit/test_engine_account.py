"""Engine time adds up: busy and waiting seconds make the whole, and none counts twice."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.engine.endpoints import Endpoint, Endpoints
from earwitness.engine.front import Shares
from earwitness.engine.usage import Accountant, EngineTime, Meter, Usage, gpus_of
from earwitness.errors import EngineUnavailableError, SettingsError
from earwitness.progress import EngineLoad, listen
from earwitness.settings import EngineSettings

ENGINES = ("a", "b", "c")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["up", "down", "starting", "begin", "end"]),
        st.sampled_from(ENGINES),
        st.floats(0, 50),
    ),
    max_size=60,
)


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def close(seconds):
    return pytest.approx(seconds, abs=1e-6)


@dataclass
class Ledger:
    """The same sums, taken the slow way: engine by engine, event by event."""

    slots: int
    engine_s: float = 0.0
    busy_s: float = 0.0
    start_s: float = 0.0

    def __post_init__(self):
        self.up, self.starts, self.open = set(), set(), dict.fromkeys(ENGINES, 0)

    def pass_s(self, seconds):
        self.engine_s += seconds * len(self.up)
        self.start_s += seconds * len(self.starts)
        self.busy_s += sum(seconds * min(1, self.open[one] / self.slots) for one in self.up)

    def note(self, event, engine):
        if event in {"up", "down", "starting"}:
            self.up.discard(engine)
            self.starts.discard(engine)
        if event == "up":
            self.up.add(engine)
        elif event == "starting":
            self.starts.add(engine)
        elif event != "down":
            self.open[engine] += 1 if event == "begin" else -1


@given(EVENTS, st.integers(1, 4))
def test_it_is_the_sum_over_engines_of_their_time_and_their_filled_slots(events, slots):
    clock = Clock()
    meter, ledger = Meter(slots, gpus=2, clock=clock), Ledger(slots)
    for event, engine, passed_s in events:
        clock.now_s += passed_s
        ledger.pass_s(passed_s)
        if event != "end" or ledger.open[engine]:
            ledger.note(event, engine)
            getattr(meter, event)(engine)
    found = meter.total()
    assert found.engine_s == close(ledger.engine_s)
    assert found.busy_s == close(ledger.busy_s)
    assert found.start_s == close(ledger.start_s)
    assert found.gpu_s == close(2 * (ledger.start_s + ledger.engine_s))
    assert found.busy_s + found.starved_s == close(found.engine_s)


def test_half_full_is_half_busy_and_more_than_full_is_no_more_than_busy(clock):
    meter = Meter(4, clock=clock)
    meter.up("a")
    for _ in range(2):
        meter.begin("a")
    clock.now_s += 10
    for _ in range(5):
        meter.begin("a")
    clock.now_s += 10
    assert meter.total() == EngineTime(engine_s=20, busy_s=15)


def test_what_comes_after_the_last_answer_counts_only_if_another_question_follows(clock):
    meter = Meter(1, clock=clock)
    meter.up("a")
    meter.begin("a")
    clock.now_s += 3
    meter.end("a")
    clock.now_s += 60
    assert meter.settled() == EngineTime(engine_s=3, busy_s=3)
    meter.begin("a")
    assert meter.settled() == EngineTime(engine_s=63, busy_s=3)


def test_an_engine_of_our_own_starts_until_it_answers_and_again_when_it_died(clock):
    meter = Meter(1, restarts=True, clock=clock)
    meter.starting("a")
    clock.now_s += 40
    meter.up("a")
    clock.now_s += 5
    meter.down("a")
    clock.now_s += 41
    meter.up("a")
    assert meter.settled() == EngineTime(start_s=81, engine_s=5)


def test_a_given_engine_that_is_down_costs_nothing(clock):
    meter = Meter(1, clock=clock)
    meter.up("a")
    meter.down("a")
    clock.now_s += 100
    assert meter.total() == EngineTime()


def test_how_full_the_engine_is_is_told_now_and_then(clock):
    told = []
    unlisten = listen(told.append)
    meter = Meter(2, clock=clock)
    meter.up("a")
    meter.begin("a")
    for _ in range(35):
        clock.now_s += 0.1
        meter.begin("b")
    unlisten()
    assert len(told) == 1
    assert isinstance(told[0], EngineLoad)
    assert told[0].share == close(0.5)


def test_engine_time_is_kept_as_json():
    usage = Usage("a1", EngineTime(1.5, 2.5, 0.5, 4, 10, 20))
    assert Usage.from_json(json.loads(json.dumps(usage.to_json()))) == usage


class Worker:
    """An engine that answers at all times, and the flow runs that share it."""

    def __init__(self, slots=4):
        self.clock = Clock()
        self.meter = Meter(slots, clock=self.clock)
        self.meter.up("a")
        self.shares = Shares(self.meter.total, clock=self.clock)

    def begin(self, run):
        self.shares.enter(run)
        self.meter.begin("a")

    def end(self, run):
        self.meter.end("a")
        self.shares.leave(run)


RUNS = ("one", "other", "third")
TURNS = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "ask"]), st.sampled_from(RUNS), st.floats(0, 30)),
    max_size=60,
)


@given(TURNS)
def test_what_flow_runs_have_of_an_engine_is_never_more_than_there_is(turns):
    worker, under_way = Worker(), dict.fromkeys(RUNS, 0)
    for turn, run, passed_s in turns:
        worker.clock.now_s += passed_s
        if turn == "ask":
            worker.shares.spent(run)
        elif turn == "begin" or under_way[run]:
            getattr(worker, turn)(run)
            under_way[run] += 1 if turn == "begin" else -1
    total = worker.meter.total()
    spent = {run: worker.shares.spent(run) for run in RUNS}
    assert sum(one.engine_s for one in spent.values()) <= total.engine_s + 1e-6
    assert sum(one.busy_s for one in spent.values()) == close(total.busy_s)
    assert all(one.busy_s <= one.engine_s + 1e-6 for one in spent.values())


def test_each_flow_run_has_the_part_its_requests_have():
    worker = Worker()
    for run in ("one", "one", "one", "other"):
        worker.begin(run)
    worker.clock.now_s += 8
    assert worker.shares.spent("one") == EngineTime(engine_s=6, busy_s=6)
    assert worker.shares.spent("other") == EngineTime(engine_s=2, busy_s=2)


def test_time_with_no_request_is_shared_evenly_by_those_who_ask_again():
    worker = Worker()
    worker.shares.spent("one")
    worker.shares.spent("other")
    worker.clock.now_s += 10
    worker.begin("one")
    assert worker.shares.spent("one") == EngineTime(engine_s=5)
    assert worker.shares.spent("other") == EngineTime()


def test_an_engines_tokens_go_to_those_who_kept_it_busy_since_they_were_last_read():
    worker = Worker()
    for run in ("one", "one", "one", "other"):
        worker.begin(run)
    worker.clock.now_s += 8
    for run in ("one", "one", "one", "other"):
        worker.end(run)
    worker.meter.counted(100, 40)
    one, other = worker.shares.spent("one"), worker.shares.spent("other")
    assert (one.prompt_tokens, one.completion_tokens) == (75, 30)
    assert (other.prompt_tokens, other.completion_tokens) == (25, 10)


def test_a_flow_run_that_comes_late_has_no_part_in_what_was_before():
    worker = Worker()
    worker.begin("one")
    worker.clock.now_s += 10
    worker.begin("other")
    assert worker.shares.spent("other") == EngineTime()
    assert worker.shares.spent("one") == EngineTime(engine_s=10, busy_s=2.5)


@pytest.mark.parametrize("way", ["forgotten", "silent"])
def test_a_flow_run_that_is_gone_has_no_part_in_idle_time(way):
    worker = Worker()
    worker.shares.spent("gone")
    worker.clock.now_s += 90 if way == "silent" else 0
    if way == "forgotten":
        worker.shares.forget("gone")
    worker.shares.spent("one")
    worker.clock.now_s += 10
    worker.begin("one")
    assert worker.shares.spent("one").engine_s == close(10)


class Counting:
    """An engine's address as the accountant sees it."""

    def __init__(self, *pages):
        self.pages = list(pages)

    async def metrics(self):
        page = self.pages.pop(0)
        if isinstance(page, Exception):
            raise page
        return dict(zip(("vllm:prompt_tokens_total", "vllm:generation_tokens_total"), page))  # noqa: B905 - some pages lack one


def read_by(*pages):
    """What an accountant makes of an engine's counters, read one after the other."""

    async def read():
        endpoint = Endpoint(Counting(*pages))
        endpoints = Endpoints([endpoint], room=1)
        endpoints.mark_up(endpoint)
        accountant = Accountant(endpoints, borrowed=False)
        await accountant.begin()
        for _ in pages[1:]:
            found = await accountant.spent()
        return found.prompt_tokens, found.completion_tokens

    return asyncio.run(read())


def test_an_engines_tokens_count_from_the_first_question_on():
    assert read_by((500, 50), (600, 60), (700, 75)) == (200, 25)


def test_counters_of_an_engine_that_was_started_again_count_from_nothing():
    assert read_by((500, 50), (600, 60), (30, 3)) == (130, 13)


@pytest.mark.parametrize("page", [EngineUnavailableError("x"), SettingsError("x"), (1,)])
def test_an_engine_that_tells_no_tokens_costs_that_figure_alone(page):
    assert read_by((500, 50), page, (700, 75)) == (200, 25)


@pytest.mark.parametrize(
    ("device", "settings", "gpus"),
    [
        ("nvidia0", {"tensor_parallel_size": 2, "data_parallel_size": 3}, 6),
        ("kfd", {}, 1),
        ("nvidiactl", {"tensor_parallel_size": 2}, 0),
        ("nvidia0", {"url": ("http://gpu1:8000/v1",), "tensor_parallel_size": 2}, 0),
    ],
)
def test_gpus_are_counted_where_they_are_known(tmp_path, device, settings, gpus):
    (tmp_path / device).touch()
    assert gpus_of(EngineSettings(**settings), tmp_path) == gpus


async def test_nothing_is_asked_of_engines_that_nobody_needed():
    endpoints = Endpoints([Endpoint(None)], room=1)
    assert await Accountant(endpoints, borrowed=True).spent() == EngineTime()
