"""The engine against stand-ins: balance, trouble, deaths, and clips that kill."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from earwitness.engine.address import EngineAddress
from earwitness.engine.client import AskRequest, Engine
from earwitness.engine.guardian import start_guarded
from earwitness.engine.keepers import ServerKeeper
from earwitness.errors import (
    CredentialsError,
    EngineStartError,
    EngineUnavailableError,
    ModelIdentityError,
)
from earwitness.records import Answer, Reason
from earwitness.settings import EngineSettings, SamplingSettings

STANDIN = (sys.executable, "-m", "tests.support.standin")
POISON = "poison"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def question(text, clips=()):
    parts = [{"type": "audio", "clip": number} for number in range(len(clips))]
    content = [*parts, {"type": "text", "text": text}]
    messages = ({"role": "user", "content": content},)
    return AskRequest(messages, tuple(clips), SamplingSettings(), max_tokens=64, seed=1)


@pytest.fixture
def own(tmp_path):
    """Makes engines that start their own stand-in."""

    def make(*flags, timeout_s=30, **settings):
        return Engine(
            EngineSettings(command=(*STANDIN, *flags), **settings),
            "demo",
            scratch=tmp_path / "scratch",
            clips_per_prompt=2,
            log_path=tmp_path / "engine.log",
            unavailable_timeout_s=timeout_s,
        )

    return make


class RunningStandIn:
    """A stand-in that someone else runs."""

    def __init__(self, log_path, *flags):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.flags = flags
        self.log_path = log_path
        self.start()

    def start(self):
        command = [*STANDIN, "--port", str(self.port), "--model", "demo", *self.flags]
        self.guarded = start_guarded(command, log_path=self.log_path)


@pytest.fixture
def running(tmp_path):
    started = []

    def start(*flags):
        started.append(RunningStandIn(tmp_path / "running.log", *flags))
        return started[-1]

    yield start
    for stand_in in started:
        stand_in.guarded.stop()


@pytest.fixture
def over(tmp_path):
    """Makes engines over given addresses."""

    def make(*stand_ins, timeout_s=30, model="demo", api_key=None, **settings):
        return Engine(
            EngineSettings(url=tuple(stand_in.url for stand_in in stand_ins), **settings),
            model,
            scratch=tmp_path / "scratch",
            clips_per_prompt=2,
            unavailable_timeout_s=timeout_s,
            api_key=api_key,
        )

    return make


async def ask_all(engine, texts):
    return await asyncio.gather(*(engine.ask(question(text)) for text in texts))


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


async def test_the_first_question_starts_the_engine_and_close_ends_it(own):
    engine = own()
    answer = await engine.ask(question("What?"))
    assert isinstance(answer, Answer)
    assert answer.text.startswith("stand-in:")
    pid = engine.server.pid
    await engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_own_and_given_engines_hear_the_same_clips(own, running, over, tmp_path):
    clip = tmp_path / "scratch" / "a b.wav"
    clip.parent.mkdir()
    clip.write_bytes(b"RIFF")
    async with own() as by_address, over(running()) as inline:
        asked = question("What?", [clip])
        assert await by_address.ask(asked) == await inline.ask(asked)


async def test_no_more_than_a_tenth_over_its_slots_is_in_flight(own):
    async with own("--latency-s", "0.02", max_num_seqs=10) as engine:
        await ask_all(engine, [f"question {number}" for number in range(60)])
        metrics = await engine.metrics()
    assert metrics["standin:peak_requests_open"] == 11
    assert metrics["vllm:request_success_total"] == engine.requests_sent == 60


async def test_given_engines_share_the_work(running, over):
    both = running("--latency-s", "0.05"), running("--latency-s", "0.05")
    for stand_in in both:
        await until_healthy(stand_in)
    async with over(*both, max_num_seqs=4) as engine:
        await engine.start()
        before = [0, 0]
        while 0 in before:  # until both are known to answer
            await ask_all(engine, ["first", "second"])
            before = [await received(stand_in) for stand_in in both]
        answers = await ask_all(engine, [f"question {number}" for number in range(40)])
        assert all(isinstance(answer, Answer) for answer in answers)
        after = [await received(stand_in) for stand_in in both]
    counts = [now - then for now, then in zip(after, before, strict=True)]
    assert min(counts) >= 15
    assert sum(counts) == 40


async def until_healthy(stand_in):
    async with aiohttp.ClientSession() as session:
        for _ in range(200):
            try:
                async with session.get(f"http://127.0.0.1:{stand_in.port}/health"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)


async def received(stand_in):
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{stand_in.port}/metrics") as reply,
    ):
        text = await reply.text()
    return int(text.partition("standin:requests_received_total ")[2].split()[0])


async def test_one_that_kills_the_engine_is_one_rejection_and_the_others_are_answered(own):
    async with own("--crash-on", POISON, "--latency-s", "0.05", max_num_seqs=8) as engine:
        texts = [f"question {number}" for number in range(30)]
        texts[13] = POISON
        results = await ask_all(engine, texts)
    rejected = {texts[n]: r.reason for n, r in enumerate(results) if not isinstance(r, Answer)}
    assert rejected == {POISON: Reason.ENGINE_CRASH}


async def test_the_same_question_waiting_behind_it_does_not_kill_the_engine_again(own, tmp_path):
    starts = tmp_path / "starts"
    flags = ("--crash-on", POISON, "--latency-s", "0.05", "--starts-file", str(starts))
    async with own(*flags, max_num_seqs=2) as engine:
        texts = [POISON, *(f"question {number}" for number in range(10)), POISON]
        results = await ask_all(engine, texts)
    rejected = [n for n, result in enumerate(results) if not isinstance(result, Answer)]
    assert rejected == [0, 11]
    assert starts.stat().st_size == 4  # it died once with others, twice alone


async def test_answers_are_the_same_whether_or_not_the_engine_died_meanwhile(own):
    texts = [f"question {number}" for number in range(12)]
    async with own() as undisturbed:
        expected = await ask_all(undisturbed, texts)
    async with own("--crash-on", POISON, "--latency-s", "0.05", max_num_seqs=4) as engine:
        results = await ask_all(engine, [*texts[:6], POISON, *texts[6:]])
    assert [result for result in results if isinstance(result, Answer)] == expected


async def test_more_poison_than_restarts_does_not_end_the_build(own):
    flags = ("--crash-on", POISON, "--latency-s", "0.02")
    async with own(*flags, max_num_seqs=4, max_restarts=3) as engine:
        texts = [POISON + str(n) if n % 4 == 0 else f"question {n}" for n in range(16)]
        results = await ask_all(engine, texts)
    for text, result in zip(texts, results, strict=True):
        assert isinstance(result, Answer) is not text.startswith(POISON)


async def test_an_engine_killed_by_someone_is_restarted_and_nothing_is_lost(own):
    async with own("--latency-s", "0.3", max_num_seqs=4) as engine:
        await engine.start()
        asking = asyncio.create_task(ask_all(engine, [f"question {n}" for n in range(8)]))
        await asyncio.sleep(0.15)
        (leader,) = descendants(engine.server.pid)
        os.kill(leader, signal.SIGKILL)
        assert all(isinstance(result, Answer) for result in await asking)


async def test_an_engine_that_dies_on_everything_is_given_up_with_its_reason(own):
    async with own("--crash-on", "question", max_restarts=1, max_num_seqs=2) as engine:
        with pytest.raises(
            EngineStartError, match=r"it ended unexpectedly 2 times \(it was killed"
        ):
            await ask_all(engine, [f"question {number}" for number in range(9)])


async def test_a_start_that_fails_tells_the_engines_own_reason_at_once(own):
    started = time.monotonic()
    async with own("--fail-start", "no such device") as engine:
        with pytest.raises(EngineStartError, match="no such device") as caught:
            await engine.ask(question("What?"))
    assert caught.value.log.endswith("engine.log")
    assert time.monotonic() - started < 15


async def test_an_engine_that_never_answers_is_given_up_and_stopped(own):
    async with own("--start-delay-s", "60", start_timeout_s=1.5) as engine:
        with pytest.raises(EngineStartError, match=r"did not answer within 1\.5 s"):
            await engine.start()
        assert not engine.server.alive()


async def test_a_busy_or_failing_engine_is_asked_again(own):
    async with own("--busy-rate", "0.3", "--fail-rate", "0.2") as engine:
        results = await ask_all(engine, [f"question {number}" for number in range(20)])
    assert all(isinstance(result, Answer) for result in results)


async def test_a_request_that_always_fails_is_a_transient_rejection(own):
    async with own("--fail-on", "bad") as engine:
        result, other = await ask_all(engine, ["bad", "What?"])
    assert result.reason is Reason.ENGINE_UNAVAILABLE
    assert result.transient
    assert result.detail.endswith("(HTTP 500 Injected failure)")
    assert isinstance(other, Answer)


@pytest.mark.parametrize("fault", [("--fail-rate", "1"), ("--garbage", "reset")])
async def test_an_engine_that_answers_nothing_is_given_up_and_no_record_with_it(own, fault):
    async with own(*fault, max_restarts=1) as engine:
        asking = [engine.ask(question(text)) for text in ("a", "b", "c")]
        results = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(result) for result in results] == [EngineStartError] * 3
    assert "does not answer a test request" in str(results[0])


async def test_a_request_without_end_is_a_transient_rejection_and_blocks_no_other(own):
    async with own("--hang-on", "forever", request_timeout_s=1, max_num_seqs=2) as engine:
        hung, answered = await ask_all(engine, ["forever", "question"])
    assert hung.reason is Reason.ENGINE_TIMEOUT
    assert hung.transient
    assert isinstance(answered, Answer)


async def test_refusals_are_permanent_and_told_apart(own):
    flags = ("--refuse-on", "bad", "--max-model-len", "5")
    async with own(*flags) as engine:
        refused, overflowing = await ask_all(engine, ["bad", "one two three four five six"])
    assert refused.reason is Reason.ENGINE_REFUSED
    assert overflowing.reason is Reason.CONTEXT_OVERFLOW
    assert not refused.transient
    assert not overflowing.transient


async def test_one_address_gone_for_good_leaves_the_work_to_the_others(running, over):
    stays, goes = running("--latency-s", "0.1"), running("--latency-s", "0.1")
    for stand_in in (stays, goes):
        await until_healthy(stand_in)
    # suspects of the one that is gone have to move within the patience
    async with over(stays, goes, max_num_seqs=4, timeout_s=2) as engine:
        asking = asyncio.create_task(ask_all(engine, [f"question {n}" for n in range(24)]))
        await asyncio.sleep(0.3)
        goes.guarded.stop()
        assert all(isinstance(result, Answer) for result in await asking)


@asynccontextmanager
async def kept_running(stand_in):
    """Somebody starts it again each time it dies."""

    async def keep():
        while True:
            await asyncio.sleep(0.1)
            if not stand_in.guarded.alive():
                stand_in.start()

    await until_healthy(stand_in)
    keeping = asyncio.create_task(keep())
    try:
        yield
    finally:
        keeping.cancel()


async def test_an_engine_killed_from_outside_twice_convicts_no_record(own):
    async with own("--latency-s", "0.6", max_num_seqs=4) as engine:
        await engine.start()
        asking = asyncio.create_task(ask_all(engine, [f"question {n}" for n in range(3)]))
        first = await kill_at_work(engine, None)
        await kill_at_work(engine, first)  # one record is alone with it now
        assert all(isinstance(result, Answer) for result in await asking)


async def kill_at_work(engine, earlier):
    """Kills an engine that has requests, once it is another than an earlier one."""
    async with asyncio.timeout(20):
        while True:
            guardian = engine.server.pid
            if guardian not in {None, earlier}:
                with suppress(EngineUnavailableError):
                    if (await engine.metrics()).get("vllm:num_requests_running"):
                        break
            await asyncio.sleep(0.02)
    (leader,) = descendants(guardian)
    os.kill(leader, signal.SIGKILL)
    return guardian


async def test_a_record_that_kills_a_given_engine_is_convicted_by_the_third_build(running, over):
    shared = running("--crash-on", POISON, "--latency-s", "0.05")
    strikes = 0
    async with kept_running(shared):
        for build in (1, 2, 3):
            async with over(shared, max_num_seqs=4) as engine:
                others = [engine.ask(question(text)) for text in ("a", "b", "c", "d")]
                poison = replace(question(POISON), strikes=strikes)
                verdict, *results = await asyncio.gather(engine.ask(poison), *others)
            assert all(isinstance(result, Answer) for result in results)
            expected = Reason.ENGINE_CRASH if build == 3 else Reason.ENGINE_DIED
            assert (verdict.reason, verdict.transient) == (expected, build < 3)
            strikes = verdict.strikes


async def test_two_clients_in_step_at_a_given_engine_convict_no_healthy_record(running, over):
    shared = running("--crash-on", POISON, "--latency-s", "0.3")
    async with (
        kept_running(shared),
        over(shared, max_num_seqs=4) as one,
        over(shared, max_num_seqs=4) as other,
    ):
        await asyncio.gather(one.start(), other.start())
        mine, theirs = await asyncio.gather(
            ask_all(one, [f"{POISON} {n}" for n in range(3)]),
            ask_all(other, ["a", "b", "c"]),
        )
    assert [result.reason for result in mine] == [Reason.ENGINE_DIED] * 3
    for result in theirs:
        assert isinstance(result, Answer) or result.transient, result


@pytest.mark.parametrize("timeout_s", [60.0, 1.5], ids=["by looking", "by a request's time-out"])
async def test_one_replica_that_hangs_is_found_while_the_other_answers(own, tmp_path, timeout_s):
    starts = tmp_path / "starts"
    flags = ("--hang-rank", "1", "--hang-rank-after", "4", "--starts-file", str(starts))
    settings = {"data_parallel_size": 2, "stall_timeout_s": 2.0, "request_timeout_s": timeout_s}
    async with own(*flags, "--latency-s", "0.05", max_num_seqs=2, **settings) as engine:
        await engine.start()
        found = asyncio.Event()

        async def go_on():
            while not found.is_set():
                assert isinstance(await engine.ask(question("What?")), Answer)

        going_on = [asyncio.create_task(go_on()) for _ in range(5)]
        limit = time.monotonic() + 30
        while starts.stat().st_size < 2:
            assert time.monotonic() < limit, "nobody found it"
            await asyncio.sleep(0.05)
        found.set()
        await asyncio.gather(*going_on)


async def test_replicas_that_all_work_are_left_alone(own, tmp_path):
    starts = tmp_path / "starts"
    flags = ("--latency-s", "4", "--starts-file", str(starts))
    settings = {"data_parallel_size": 2, "stall_timeout_s": 1.0}
    async with own(*flags, max_num_seqs=2, **settings) as engine:
        results = await ask_all(engine, ["a", "b", "c"])  # one replica is idle for a while
    assert all(isinstance(result, Answer) for result in results)
    assert starts.stat().st_size == 1


async def test_a_given_engine_with_a_replica_that_hangs_leaves_the_work_to_the_others(
    running, over
):
    hangs = running("--data-parallel-size", "2", "--hang-rank", "0", "--latency-s", "0.02")
    works = running("--latency-s", "0.02")
    for stand_in in (hangs, works):
        await until_healthy(stand_in)
    async with over(hangs, works, max_num_seqs=4, stall_timeout_s=2.0, timeout_s=3) as engine:
        results = await ask_all(engine, [f"question {number}" for number in range(40)])
    assert all(isinstance(result, Answer) for result in results)


async def test_no_engine_at_all_ends_after_the_time_allowed(running, over):
    gone = running()
    gone.guarded.stop()
    async with over(gone, timeout_s=1) as engine:
        with pytest.raises(EngineUnavailableError, match="no engine answered"):
            await engine.ask(question("What?"))


async def test_an_engine_that_goes_away_ends_the_waiting_after_the_time_allowed(running, over):
    only = running()
    await until_healthy(only)
    async with over(only, timeout_s=1) as engine:
        await engine.ask(question("What?"))
        only.guarded.stop()
        with pytest.raises(EngineUnavailableError):
            await engine.ask(question("What else?"))


async def test_another_model_than_the_served_one_is_refused(running, over):
    async with over(running(), model="other") as engine:
        with pytest.raises(ModelIdentityError, match="serves demo, not other"):
            await engine.ask(question("What?"))


async def test_an_engine_that_begins_to_answer_as_another_model_is_not_believed(running):
    changes = running("--any-model")
    await until_healthy(changes)
    address = EngineAddress(f"http://127.0.0.1:{changes.port}")
    assert isinstance(await address.ask(question("What?"), "demo"), Answer)
    changes.guarded.stop()
    changes.flags = ("--any-model", "--model", "other")
    changes.start()
    await until_healthy(changes)
    with pytest.raises(
        ModelIdentityError,
        match="answered with model 'demo' before, and now answers with model 'other'",
    ):
        await address.ask(question("What?"), "demo")
    await address.close()


async def test_a_wrong_key_is_said_so(tmp_path, over, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "right")
    locked = RunningStandIn(tmp_path / "log")
    try:
        async with over(locked, api_key="wrong") as engine:
            with pytest.raises(CredentialsError, match="VLLM_API_KEY"):
                await engine.ask(question("What?"))
    finally:
        locked.guarded.stop()


async def test_a_cancelled_question_gives_its_place_back(own):
    async with own("--hang-on", "forever", max_num_seqs=1) as engine:
        await engine.start()
        hung = [asyncio.create_task(engine.ask(question("forever"))) for _ in range(4)]
        await asyncio.sleep(0.2)
        for task in hung:
            task.cancel()
        await asyncio.wait(hung)
        assert isinstance(await asyncio.wait_for(engine.ask(question("What?")), 5), Answer)


async def test_the_engine_tells_its_model_and_version(own):
    async with own() as engine:
        assert await engine.model_id() == "demo"
        (card,) = await engine.served_models()
        assert (card.id, card.root) == ("demo", "demo")
        assert "standin" in await engine.version()


async def test_a_given_engine_that_is_gone_has_no_version_and_is_not_waited_for(running, over):
    stand_in = running()
    async with over(stand_in) as engine:
        assert isinstance(await engine.ask(question("What?")), Answer)
        stand_in.guarded.stop()
        assert await asyncio.wait_for(engine.version(), 5) == ""


async def test_the_stand_in_notes_when_it_began_and_ended_each_answer(own, tmp_path):
    times = tmp_path / "times"
    async with own("--latency-s", "0.1", "--times-file", str(times)) as engine:
        await asyncio.gather(*(engine.ask(question(f"q{number}")) for number in range(5)))
    noted = [list(map(float, line.split())) for line in times.read_text().splitlines()]
    assert len(noted) == 5
    assert all(0.1 <= ended - began < 5 for began, ended, _ in noted)
    assert [cpu for *_, cpu in noted] == sorted(cpu for *_, cpu in noted)


async def test_closing_while_the_engine_restarts_leaves_nothing(own):
    engine = own("--latency-s", "5")
    await engine.start()
    asking = asyncio.create_task(engine.ask(question("What?")))
    await asyncio.sleep(0.2)
    (leader,) = descendants(engine.server.pid)
    os.kill(leader, signal.SIGKILL)
    await asyncio.sleep(0.1)
    await engine.close()
    with pytest.raises(EngineUnavailableError):
        await asyncio.wait_for(asking, 10)
    assert not engine.server.alive()
    assert isinstance(engine._keeper, ServerKeeper)
