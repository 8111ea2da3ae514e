"""An engine's faults, one by one, each with what must hold. Seconds each; all against stand-ins."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from earwitness.engine.client import Engine
from earwitness.engine.front import EngineFront
from earwitness.engine.shared import SharedEngine
from earwitness.errors import (
    EarwitnessError,
    EngineStartError,
    EngineUnavailableError,
    ModelIdentityError,
)
from earwitness.identity import ModelIdentity
from earwitness.records import Reason
from earwitness.settings import EngineSettings
from tests.chaos.engine_scene import LOGS, MODEL, ask, check, hold, stopwatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.engine_scene import Scene

POISON, HANGS = "poison", "hangs"
QUICK = {"stall_timeout_s": 2.0}


async def poison_in_two_shards(scene: Scene) -> str:
    """Two flow runs share a worker's engine; both ask the clip that kills it, word for word."""
    flags = ("--crash-on", POISON, "--latency-s", f"{scene.dice.uniform(0.02, 0.1):.3f}")
    async with (
        scene.own(*flags, max_num_seqs=8) as engine,
        EngineFront(engine, scratch=scene.folder) as front,
    ):
        shared = SharedEngine(front.url, front.key, ModelIdentity("local", MODEL, "x"), 8)
        runs = [
            Engine(EngineSettings(), None, scratch=scene.folder, clips_per_prompt=1, shared=shared)
            for _ in range(2)
        ]
        try:
            # both are on their way when it dies
            asked = [[POISON, *scene.texts(60)] for _ in runs]
            heard = await asyncio.gather(*map(ask, runs, asked))
        finally:
            for run in runs:
                await run.close()
    for said in heard:
        check(said, poison=Reason.ENGINE_CRASH)
    hold(scene.starts <= 4, f"{scene.starts} starts")
    return f"{scene.starts - 1} restarts"


async def two_poisons(scene: Scene) -> str:
    """Two clips that kill the engine: two rows, and no more than three restarts for each."""
    texts = scene.put(scene.texts(60), f"{POISON} one", f"{POISON} two")
    async with scene.own("--crash-on", POISON, "--latency-s", "0.02") as engine:
        check(await ask(engine, texts), poison=Reason.ENGINE_CRASH)
    hold(scene.starts <= 7, f"{scene.starts} starts")
    return f"{scene.starts - 1} restarts"


async def a_request_hangs(scene: Scene) -> str:
    """It ends by its time-out, its slot is given back, the others go on, nothing is restarted."""
    texts = scene.put(scene.texts(40), f"{HANGS} for ever")
    settings = {"request_timeout_s": 2, "max_num_seqs": 2 + scene.dice.randrange(4)}
    async with scene.own("--hang-on", HANGS, **settings, stall_timeout_s=4) as engine:
        await engine.start()
        said, took_s = await stopwatch(30, ask(engine, texts))
        check(said, hangs=Reason.ENGINE_TIMEOUT)
        hold(all(r.transient for r in said.values() if hasattr(r, "transient")), "permanent")
        metrics = await engine.metrics()
    hold(metrics["vllm:num_requests_running"] == 0, "its slot was not given back")
    hold(scene.starts == 1, f"{scene.starts} starts")
    return f"{took_s:.1f} s"


async def a_request_hangs_the_engine(scene: Scene) -> str:
    """After it nobody is answered: found, the engine restarted, one row, transient."""
    texts = scene.put(scene.texts(30), f"{HANGS} for ever")
    async with scene.own("--hang-all-on", HANGS, **QUICK) as engine:
        check(await ask(engine, texts), hangs=Reason.ENGINE_TIMEOUT)
    hold(scene.starts <= 3, f"{scene.starts} starts")
    return f"{scene.starts - 1} restarts"


async def the_engine_hangs(scene: Scene) -> str:
    """It takes requests and answers none (`/health` or not): restarted, nothing rejected."""
    after = scene.dice.randrange(8, 30)
    deaf = scene.dice.random() < 0.5
    flags = ("--hang-after", str(after), *(["--hang-health"] if deaf else []))
    texts = scene.texts(after + 6)
    async with scene.own(*flags, **QUICK, max_num_seqs=4) as engine:
        said, took_s = await stopwatch(60, ask(engine, texts))
        check(said)
    hold(scene.starts == 2, f"{scene.starts} starts")
    return f"after {after} answers, {'deaf' if deaf else 'healthy'}: {took_s:.1f} s"


async def long_answers_are_no_hang(scene: Scene) -> str:
    """No reply for longer than the watchdog's patience, but tokens: left alone."""
    async with scene.own("--latency-s", "5", **QUICK, max_num_seqs=2) as engine:
        check(await ask(engine, scene.texts(3)))
    hold(scene.starts == 1, f"{scene.starts} starts")
    return ""


async def a_given_engine_hangs(scene: Scene) -> str:
    """One of two: the other answers everything. The only one: unavailable, and no row rejected."""
    hangs = await scene.run("--hang-after", str(scene.dice.randrange(4, 12)))
    works = await scene.run("--latency-s", "0.02")
    async with scene.over(hangs, works, **QUICK, timeout_s=3) as engine:
        check(await ask(engine, scene.texts(80)))
    hangs.stop()
    hangs.start()
    async with scene.over(hangs, **QUICK, timeout_s=3) as engine:
        try:
            await stopwatch(60, ask(engine, scene.texts(30)))
        except EngineUnavailableError as error:
            hold("showed no activity" in str(error), error)
            return str(error)
    raise AssertionError


async def garbage_at_times(scene: Scene, kind: str) -> str:
    """Never written as an answer; asked again, and answered or transiently rejected."""
    stand_in = await scene.run("--garbage", kind, "--garbage-rate", "0.3")
    async with scene.over(stand_in) as engine:
        said = await ask(engine, scene.texts(60))
    given_up = {text: r for text, r in said.items() if getattr(r, "transient", False)}
    check({text: r for text, r in said.items() if text not in given_up})
    hold(len(given_up) <= 3, f"{len(given_up)} given up, as {next(iter(given_up.values()), '')}")
    return f"{len(given_up)} given up"


async def garbage_for_a_while(scene: Scene, kind: str) -> str:
    """A proxy's page while the engine is away: waited out, nothing rejected."""
    stand_in = await scene.run("--garbage", kind, "--garbage-s", "6")
    async with scene.over(stand_in, await scene.run(), timeout_s=30) as engine:
        check(await ask(engine, scene.texts(40)))
    async with scene.over(stand_in, timeout_s=30) as engine:
        check(await ask(engine, scene.texts(20)))
    return ""


async def garbage_for_good(scene: Scene, kind: str) -> str:
    """A clear failure, and no row rejected."""
    stand_in = await scene.run("--garbage", kind)
    async with scene.over(stand_in, timeout_s=2) as engine:
        try:
            said, _ = await stopwatch(60, ask(engine, scene.texts(20)))
        except EarwitnessError as error:
            return f"{type(error).__name__}: {error}"
    raise AssertionError(next(iter(said.values())))


async def busy(scene: Scene) -> str:
    """429 or 503 for seconds, with or without Retry-After: nothing rejected, nobody hammers."""
    status, after = scene.dice.choice(("429", "503")), scene.dice.choice((None, "1", "0.5"))
    flags = ["--busy-s", "4", "--busy-status", status, *(["--retry-after", after] if after else [])]
    stand_in = await scene.run(*flags)
    async with scene.over(stand_in, max_num_seqs=4) as engine:
        check(await ask(engine, scene.texts(30)))
        # five in flight at most, each time it may be asked again
        hold(not after or engine.requests_sent <= 30 + 6 * 10, f"{engine.requests_sent} requests")
        sent = engine.requests_sent
    busy_for_good = await scene.run("--busy-rate", "1")
    async with scene.over(busy_for_good, timeout_s=2) as engine:
        try:
            await ask(engine, scene.texts(5))
        except EngineUnavailableError as error:
            hold("too busy to accept" in str(error), error)
            return f"HTTP {status}, Retry-After {after}: {sent} requests for 30"
    raise AssertionError


async def a_slow_start(scene: Scene) -> str:
    """Waited for; not for ever."""
    async with scene.own("--start-delay-s", "3", start_timeout_s=60) as engine:
        check(await ask(engine, scene.texts(5)))
    try:
        async with scene.own("--start-delay-s", "60", start_timeout_s=2) as engine:
            await ask(engine, scene.texts(5))
    except EngineStartError as error:
        hold(error.reason == "it did not answer within 2 s", error)
        return str(error.reason)
    raise AssertionError


async def too_little_memory(scene: Scene, log: str, advice: str) -> str:
    """One try, one clear line: the engine's reason, and the setting that helps."""
    try:
        async with scene.own("--fail-start", f"@{LOGS / log}.log") as engine:
            await ask(engine, scene.texts(3))
    except EngineStartError as error:
        hold(advice in error.reason and "\n" not in error.reason, error.reason)
        hold(scene.starts == 1, f"{scene.starts} starts")
        return error.reason
    raise AssertionError


async def dies_in_every_restart(scene: Scene) -> str:
    """It starts once, is killed, and never starts again: given up after the restarts allowed."""
    flags = ("--crash-on", POISON, "--fail-start-from", "2")
    fails = ("--fail-start", f"@{LOGS / 'cuda_out_of_memory'}.log")
    try:
        async with scene.own(*flags, *fails, max_restarts=2) as engine:
            await ask(engine, scene.put(scene.texts(10), POISON))
    except EngineStartError as error:
        hold("CUDA out of memory" in str(error), error)
        hold(scene.starts <= 4, f"{scene.starts} starts")
        return f"{scene.starts} starts: {error.reason}"
    raise AssertionError


async def one_of_two_dies_for_good(scene: Scene) -> str:
    """The other answers everything, and goes on meanwhile."""
    stays, goes = await scene.run("--latency-s", "0.1"), await scene.run("--latency-s", "0.1")
    async with scene.over(stays, goes, timeout_s=2) as engine:
        asking = asyncio.create_task(ask(engine, scene.texts(300)))
        await asyncio.sleep(scene.dice.uniform(0.2, 0.8))
        await asyncio.to_thread(goes.stop)
        said, took_s = await stopwatch(60, asking)
        check(said)
    # its suspects wait for it once, all together, and then each has the other for itself
    hold(took_s < 15, f"{took_s:.1f} s")
    return f"{took_s:.1f} s more"


async def another_model_comes_back(scene: Scene) -> str:
    """Never asked: with another engine that goes on, else the build ends with both names."""
    changes, stays = await scene.run("--latency-s", "0.05"), await scene.run("--latency-s", "0.05")

    async def change() -> None:
        await asyncio.sleep(scene.dice.uniform(0.1, 0.5))
        await asyncio.to_thread(changes.stop)
        changes.model = "other"
        await asyncio.to_thread(changes.start)

    async with scene.over(changes, stays, timeout_s=4) as engine:
        check(await ask(engine, scene.texts(20)))
        await change()  # while nobody asks: nobody sees it
        check(await ask(engine, scene.texts(60)))
    # the second time it answers to any name
    await asyncio.to_thread(changes.stop)
    changes.model, changes.flags = MODEL, (*changes.flags, "--any-model")
    await asyncio.to_thread(changes.start)
    async with scene.over(changes, timeout_s=10) as engine:
        try:
            await asyncio.gather(ask(engine, scene.texts(300)), change())
        except ModelIdentityError as error:
            return str(error)
    raise AssertionError


CASES: dict[str, Callable[[Scene], Awaitable[str]]] = {
    "the same poison in two shards at once: a row each, one conviction": poison_in_two_shards,
    "two poison clips: two rows": two_poisons,
    "a request hangs: one transient row, its slot given back": a_request_hangs,
    "a request hangs the engine: one transient row": a_request_hangs_the_engine,
    "the engine hangs: restarted, nothing rejected": the_engine_hangs,
    "answers that take long are no hang": long_answers_are_no_hang,
    "a given engine hangs: the others go on, else unavailable": a_given_engine_hangs,
    "429 and 503, with and without Retry-After: nothing rejected": busy,
    "a slow start is waited for, not for ever": a_slow_start,
    "an engine that dies in every restart is given up": dies_in_every_restart,
    "one of two dies for good: the other answers everything": one_of_two_dies_for_good,
    "another model after a restart is never asked": another_model_comes_back,
}
MEMORY = {
    "cuda_out_of_memory": "tensor_parallel_size",
    "no_cache_blocks": "raise gpu_memory_utilization",
    "cache_too_small": "lower max_model_len",
    "memory_taken": "lower gpu_memory_utilization",
}
