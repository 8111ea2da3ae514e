"""One engine for all flow runs of a machine: slots shared, killers found, restarts not seen."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace

import pytest

from earwitness.engine.client import AskRequest, Engine
from earwitness.engine.front import EngineFront
from earwitness.engine.guardian import descendants
from earwitness.engine.shared import SharedEngine
from earwitness.errors import CredentialsError, EngineStartError
from earwitness.identity import ModelIdentity
from earwitness.records import Answer, Reason
from earwitness.settings import EngineSettings, SamplingSettings

STANDIN = (sys.executable, "-m", "tests.support.standin")
MODEL = ModelIdentity("local", "demo", "digest")
POISON = "poison"


def question(text, clips=()):
    parts = [{"type": "audio", "clip": number} for number in range(len(clips))]
    messages = ({"role": "user", "content": [*parts, {"type": "text", "text": text}]},)
    return AskRequest(messages, tuple(clips), SamplingSettings(), max_tokens=64, seed=1)


class Machine:
    """A worker's engine and front, and the flow runs that ask there."""

    def __init__(self, folder, *flags, hand_back_s=0.0, slots=4, **settings):
        self.folder = folder
        self.slots = slots
        self.engine = Engine(
            EngineSettings(command=(*STANDIN, *flags), max_num_seqs=slots, **settings),
            "demo",
            scratch=folder,
            clips_per_prompt=2,
            log_path=folder / "engine.log",
        )
        self.front = EngineFront(self.engine, scratch=folder, hand_back_s=hand_back_s)
        self.clients = []

    def flow_run(self, key=None):
        shared = SharedEngine(self.front.url, key or self.front.key, MODEL, self.slots)
        client = Engine(
            EngineSettings(request_timeout_s=0.1),
            None,
            scratch=self.folder,
            clips_per_prompt=2,
            shared=shared,
            unavailable_timeout_s=30,
        )
        self.clients.append(client)
        return client

    async def counts(self):
        return await self.engine.metrics()

    def kill_engine(self):
        (pid,) = descendants(self.engine.server.pid)
        os.kill(pid, signal.SIGKILL)

    async def __aenter__(self):
        await self.front.start()
        return self

    async def __aexit__(self, *_):
        for client in self.clients:
            await client.close()
        await self.front.close()
        await self.engine.close()


async def ask_all(engine, texts):
    return await asyncio.gather(*(engine.ask(question(text)) for text in texts))


async def test_two_flow_runs_share_the_slots_and_get_their_answers(tmp_path):
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"RIFF")
    # answers take longer than a flow run's own limit: the limit is the front's
    async with Machine(tmp_path, "--latency-s", "0.15") as machine:
        one, other = machine.flow_run(), machine.flow_run()
        first, second = await asyncio.gather(
            ask_all(one, [f"a{number}" for number in range(15)]),
            ask_all(other, [f"b{number}" for number in range(15)]),
        )
        heard = await one.ask(question("and this?", [clip]))
        assert all(isinstance(result, Answer) for result in [*first, *second, heard])
        assert (await machine.counts())["standin:peak_requests_open"] <= 5
        assert await one.metrics() == await machine.counts()
        assert await one.version() == await machine.engine.version()
        assert await one.model_id() == "demo"


async def test_a_clip_that_kills_the_engine_is_found_among_all_flow_runs(tmp_path):
    async with Machine(tmp_path, "--crash-on", POISON, "--latency-s", "0.1") as machine:
        one, other = machine.flow_run(), machine.flow_run()
        first, second = await asyncio.gather(
            ask_all(one, [POISON, "a", "b", "c"]), ask_all(other, [POISON, "d", "e", "f"])
        )
        for results in (first, second):
            assert results[0].reason is Reason.ENGINE_CRASH
            assert all(isinstance(result, Answer) for result in results[1:])


async def test_a_restart_is_not_seen(tmp_path):
    async with Machine(tmp_path, "--latency-s", "0.5") as machine:
        client = machine.flow_run()
        await client.start()
        asking = asyncio.create_task(ask_all(client, ["a", "b", "c"]))
        await asyncio.sleep(0.25)
        machine.kill_engine()
        await asyncio.sleep(0.2)
        late = machine.flow_run()  # comes while the engine is down
        results = [*await asking, await late.ask(question("d"))]
        assert all(isinstance(result, Answer) for result in results)


async def test_an_engine_that_dies_while_nobody_asks_is_started_again(tmp_path):
    async with Machine(tmp_path) as machine:
        first = machine.engine.server.pid
        machine.kill_engine()
        limit = time.monotonic() + 20
        while machine.engine.server.pid in {first, None}:
            assert time.monotonic() < limit
            await asyncio.sleep(0.1)


async def test_who_goes_away_is_not_asked_for_any_longer(tmp_path):
    async with Machine(tmp_path, "--hang-on", "never", slots=1) as machine:
        gone, client = machine.flow_run(), machine.flow_run()
        await gone.start()
        asking = [asyncio.create_task(gone.ask(question(f"never {n}"))) for n in range(2)]
        await asyncio.sleep(0.3)
        for task in asking:
            task.cancel()
        # both places were taken
        async with asyncio.timeout(5):
            assert isinstance(await client.ask(question("a")), Answer)


async def test_engines_elsewhere_get_the_clips_themselves(tmp_path, stand_in):
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"RIFF")
    settings = EngineSettings(url=(stand_in.url,))
    async with Engine(settings, None, scratch=tmp_path, clips_per_prompt=1) as given:
        direct = await given.ask(question("?", [clip]))
        async with EngineFront(given, scratch=tmp_path) as front:
            lent = SharedEngine(front.url, front.key, MODEL, 4)
            client = Engine(
                EngineSettings(), None, scratch=tmp_path, clips_per_prompt=1, shared=lent
            )
            async with client:
                assert await client.ask(question("?", [clip])) == direct


async def test_strikes_of_earlier_builds_reach_the_front(tmp_path):
    asked = []

    class Noting(Engine):
        async def ask(self, request):
            asked.append(request.strikes)
            return await super().ask(request)

    settings = EngineSettings(command=STANDIN, max_num_seqs=4)
    noting = Noting(
        settings, "demo", scratch=tmp_path, clips_per_prompt=1, log_path=tmp_path / "engine.log"
    )
    async with noting, EngineFront(noting, scratch=tmp_path) as front:
        lent = SharedEngine(front.url, front.key, MODEL, 4)
        async with Engine(
            EngineSettings(), None, scratch=tmp_path, clips_per_prompt=1, shared=lent
        ) as client:
            await client.ask(replace(question("a"), strikes=2))
            await client.ask(question("b"))
    assert asked == [2, 0]


async def test_a_timeout_is_the_fronts_verdict(tmp_path):
    async with Machine(tmp_path, "--hang-on", "never", request_timeout_s=0.5) as machine:
        result = await machine.flow_run().ask(question("never"))
        assert result.reason is Reason.ENGINE_TIMEOUT


async def test_an_engine_given_up_is_told_after_a_moment_to_hand_back(tmp_path):
    flags = ("--crash-on", "a")
    async with Machine(tmp_path, *flags, max_restarts=0, hand_back_s=1.0) as machine:
        client = machine.flow_run()
        await client.start()
        began = time.monotonic()
        with pytest.raises(EngineStartError, match="it ended unexpectedly"):
            await client.ask(question("a"))
        assert time.monotonic() - began >= 1
        assert isinstance(machine.engine.failure, EngineStartError)


async def test_nobody_asks_without_the_key(tmp_path):
    async with Machine(tmp_path) as machine:
        with pytest.raises(CredentialsError):
            await machine.flow_run(key="wrong").ask(question("a"))
