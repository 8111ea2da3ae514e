"""The engine with the real vLLM and the demo model, on the CPU."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from earwitness.engine.client import AskRequest, Engine
from earwitness.errors import EngineStartError
from earwitness.records import Answer, Reason
from earwitness.settings import EngineSettings, SamplingSettings

MODEL = Path(os.environ.get("EARWITNESS_TEST_MODEL", "demo_model/weights")).resolve()

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def write_tone(path, hertz, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(16_000 * seconds)) / 16_000
    samples = (8_000 * np.sin(2 * np.pi * hertz * times)).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 16_000, len(samples), "NONE", ""))
        out.writeframes(samples.tobytes())
    return path


@pytest.fixture
def engine_with(tmp_path):
    def make(model=MODEL, **settings):
        settings = {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 8, **settings}
        return Engine(
            EngineSettings(**settings),
            str(model),
            scratch=tmp_path / "scratch",
            clips_per_prompt=2,
            log_path=tmp_path / "engine.log",
        )

    return make


def questions(scratch, count=12):
    for number in range(count):
        clips = (write_tone(scratch / f"{number}.wav", 200 + 50 * number),)
        if number % 4 == 0:
            clips = (*clips, write_tone(scratch / f"{number}b.wav", 900, seconds=2))
        parts = [{"type": "audio", "clip": index} for index in range(len(clips))]
        parts.append({"type": "text", "text": f"听到什么? What is sound {number}?"})
        messages = (
            {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
            {"role": "user", "content": parts},
        )
        yield AskRequest(messages, clips, SamplingSettings(), max_tokens=16, seed=number)


async def ask_all(engine, asked):
    return await asyncio.gather(*map(engine.ask, asked))


def family(pid):
    """Ids and names of all processes that descend from one."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        found += [(child, Path(f"/proc/{child}/comm").read_text().strip()), *family(child)]
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_two_gpus_worth_of_workers_answer_the_same_bytes_as_one(engine_with, tmp_path):
    asked = list(questions(tmp_path / "scratch"))
    async with engine_with() as alone:
        expected = await ask_all(alone, asked)
        assert all(isinstance(answer, Answer) for answer in expected)
        assert (await alone.metrics())["vllm:request_success_total"] == len(asked)
        too_long = next(questions(tmp_path / "scratch", 1))
        text = {"type": "text", "text": "word " * 4000}
        messages = ({"role": "user", "content": [text]},)
        refused = await alone.ask(
            AskRequest(messages, (), too_long.sampling, max_tokens=16, seed=0)
        )
        assert refused.reason is Reason.CONTEXT_OVERFLOW
    async with engine_with(tensor_parallel_size=2) as both:
        assert await ask_all(both, asked) == expected


async def test_several_api_servers_really_run_and_a_killed_core_is_replaced(engine_with, tmp_path):
    asked = list(questions(tmp_path / "scratch", 6))
    async with engine_with(api_server_count=2) as engine:
        expected = await ask_all(engine, asked)
        before = family(engine.server.pid)
        names = [name for _, name in before]
        assert sum("ApiServer" in name or "APIServer" in name for name in names) >= 2, names
        core = next(pid for pid, name in before if "EngineCor" in name)
        os.kill(core, signal.SIGKILL)
        assert await ask_all(engine, asked) == expected
        living = {pid for pid, _ in family(engine.server.pid)}
        assert living.isdisjoint(pid for pid, _ in before)
    assert not any(map(is_running, living))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "/no/such/folder"}, "there is no model folder /no/such/folder"),
        ({"vllm_args": ("--no-such-flag", "3")}, "unrecognized arguments: --no-such-flag 3"),
        ({"max_model_len": 100_000_000}, "User-specified max_model_len"),
        ({"python": "/usr/bin/python3-that-is-not-there"}, "cannot start"),
    ],
)
async def test_a_failed_start_shows_vllms_own_reason_in_a_line(engine_with, settings, reason):
    started = time.monotonic()
    async with engine_with(**settings) as engine:
        with pytest.raises(EngineStartError, match=reason) as caught:
            await engine.start()
    assert len(caught.value.reason) <= 400
    assert time.monotonic() - started < 120


async def test_a_folder_that_holds_no_model_is_named(engine_with, tmp_path):
    async with engine_with(model=tmp_path) as engine:
        with pytest.raises(EngineStartError, match="Invalid repository ID or local directory"):
            await engine.start()
