"""What a batch asks, and in which order: equal questions once, those about a clip together."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from earwitness.audio.fetch import FetchedClip
from earwitness.builds.batch import Batch, ClipState, Decided, RowState, write_segment
from earwitness.builds.layout import Build
from earwitness.builds.stages import fetch_batch, forget_batch, generate_batch
from earwitness.errors import EngineUnavailableError
from earwitness.progress import Advanced, listen
from earwitness.records import Answer, Outcome
from earwitness.runtime import ShardMemory
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ab" * 32


class CountingEngine:
    """Stands in for the engine: answers at once, and counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.questions: list[str] = []
        self.delay_s = 0.0
        self.failures: list[Exception] = []

    async def ask(self, request: Any) -> Answer:
        self.asked += 1
        await asyncio.sleep(self.delay_s)
        if self.failures:
            raise self.failures.pop()
        self.questions += [message["content"] for message in request.messages]
        return Answer(str(self.questions[-1]), "stop", 3, 2)


def asks(row: int) -> Batch:
    return Batch([RowState(row, [], [{"role": "user", "content": []}], cache_key=KEY)])


def test_a_question_answered_since_its_twin_was_fetched_is_not_asked_again(tmp_path: Path):
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    engine, memory = CountingEngine(), ShardMemory()
    runtime: Any = SimpleNamespace(settings=settings, engine=engine)
    build, segment = Build(str(tmp_path), "b"), "work/shard-00000/batch-00000-x.parquet"
    first, twin = asks(0), asks(1)  # both were fetched before either was answered

    decided = asyncio.run(generate_batch(runtime, build, memory, first, tmp_path))
    write_segment(build, segment, decided, [])
    forget_batch(memory, first, segment)
    (late,) = asyncio.run(generate_batch(runtime, build, memory, twin, tmp_path))

    assert engine.asked == 1
    assert late.outcome.answer == decided[0].outcome.answer


def test_a_batch_that_is_tried_again_keeps_its_own_answers_as_new(tmp_path: Path):
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    engine, memory = CountingEngine(), ShardMemory()
    runtime: Any = SimpleNamespace(settings=settings, engine=engine)
    build = Build(str(tmp_path), "b")

    async def twice() -> list[Decided]:
        await generate_batch(runtime, build, memory, asks(0), tmp_path)
        # its segment was not written, and its task is tried again
        return await generate_batch(runtime, build, memory, asks(0), tmp_path)

    (again,) = asyncio.run(twice())
    assert engine.asked == 1
    assert not again.reused


def test_a_batch_does_not_fail_when_the_one_that_asked_its_question_is_cancelled(tmp_path: Path):
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    engine, memory = CountingEngine(), ShardMemory()
    engine.delay_s = 0.05
    runtime: Any = SimpleNamespace(settings=settings, engine=engine)
    build = Build(str(tmp_path), "b")

    async def cancel_the_first() -> list[Decided]:
        first = asyncio.create_task(generate_batch(runtime, build, memory, asks(0), tmp_path))
        await asyncio.sleep(0.01)
        twin = asyncio.create_task(generate_batch(runtime, build, memory, asks(1), tmp_path))
        await asyncio.sleep(0.01)
        first.cancel()
        return await twin

    (answered,) = asyncio.run(cancel_the_first())
    assert answered.row == 1
    assert answered.outcome.answer is not None


def test_a_question_whose_engine_was_unavailable_is_asked_again_by_the_next_attempt(tmp_path: Path):
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    engine, memory = CountingEngine(), ShardMemory()
    engine.failures = [EngineUnavailableError("it does not answer")]
    runtime: Any = SimpleNamespace(settings=settings, engine=engine)
    build = Build(str(tmp_path), "b")

    async def twice() -> list[Decided]:
        with pytest.raises(EngineUnavailableError):
            await generate_batch(runtime, build, memory, asks(0), tmp_path)
        return await generate_batch(runtime, build, memory, asks(0), tmp_path)

    (again,) = asyncio.run(twice())
    assert again.outcome.answer is not None
    assert not again.reused


def test_progress_counts_a_row_once_however_often_its_batch_is_tried(tmp_path: Path):
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    engine, memory = CountingEngine(), ShardMemory()
    runtime: Any = SimpleNamespace(settings=settings, engine=engine)
    build = Build(str(tmp_path), "b")
    told: list[Any] = []
    unlisten = listen(told.append)
    try:
        for _ in range(2):
            asyncio.run(generate_batch(runtime, build, memory, asks(0), tmp_path))
    finally:
        unlisten()
    assert told == [Advanced(generated=1)]


class WaitingStore:
    """Stands in for storage that gives a file only once the event loop says so."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.opening = threading.Event()
        self.allowed = threading.Event()

    def open(self, path: str) -> Any:
        self.opening.set()
        assert self.allowed.wait(20), "the event loop stands still while a file is read"
        return self._store.open(path)


def test_reading_what_another_batch_was_answered_does_not_hold_up_the_loop(tmp_path: Path):
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    memory = ShardMemory()
    runtime: Any = SimpleNamespace(settings=settings, engine=CountingEngine())
    build, path = Build(str(tmp_path), "b"), "work/shard-00000/batch-00000-x.parquet"
    known = Outcome(KEY, Answer("known", "stop", 3, 2))
    write_segment(build, path, [Decided(0, known, reused=False)], [])
    memory.answered[bytes.fromhex(KEY)] = path
    store = WaitingStore(build.store)
    waiting: Any = SimpleNamespace(store=store)

    async def allow() -> None:
        await asyncio.to_thread(store.opening.wait)
        store.allowed.set()

    async def both() -> list[Decided]:
        reading = generate_batch(runtime, waiting, memory, asks(1), tmp_path)
        decided, _ = await asyncio.gather(reading, allow())
        return decided

    (answered,) = asyncio.run(both())
    assert answered.outcome == known


def test_questions_about_the_same_clip_are_asked_side_by_side_and_told_in_the_batchs_order(
    tmp_path: Path,
):
    # the third name is the first clip's content once more
    contents = {"a": "1" * 64, "b": "2" * 64, "copy of a": "1" * 64}
    named = ["a", "b", "copy of a", "b", "a"]
    rows = [
        RowState(
            row, [name], [{"role": "user", "content": f"{name} {row}"}], cache_key=f"{row:064}"
        )
        for row, name in enumerate(named)
    ]
    batch = Batch(rows, {name: ClipState(name, sha256=sha) for name, sha in contents.items()})
    engine = CountingEngine()
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    runtime: Any = SimpleNamespace(settings=settings, engine=engine)

    build = Build(str(tmp_path), "b")
    decided = asyncio.run(generate_batch(runtime, build, ShardMemory(), batch, tmp_path))

    assert engine.questions == ["a 0", "copy of a 2", "a 4", "b 1", "b 3"]
    assert [one.row for one in decided] == [0, 1, 2, 3, 4]
    answers = [one.outcome.answer.text for one in decided if one.outcome.answer]
    assert answers == [f"{name} {row}" for row, name in enumerate(named)]


class SlowFetcher:
    """Stands in for the fetcher: each clip takes a while, and is counted."""

    def __init__(self) -> None:
        self.fetched = 0

    async def fetch(self, uri: str, folder: Path, _limit: int) -> FetchedClip:
        self.fetched += 1
        await asyncio.sleep(0.1)
        path = folder / "ab"
        path.write_bytes(b"clip")
        return FetchedClip(uri, "ab", 4, None, path)


def test_a_batch_that_is_cancelled_takes_no_clip_from_a_batch_that_waits_for_it(tmp_path: Path):
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    fetcher, memory = SlowFetcher(), ShardMemory()
    runtime: Any = SimpleNamespace(settings=settings, fetcher=fetcher, downloads=0)

    def fetching(name: str) -> tuple[Batch, asyncio.Task[None]]:
        (tmp_path / name).mkdir()
        batch = Batch([RowState(0, ["a.wav"], [])], {"a.wav": ClipState("a.wav")})
        return batch, asyncio.create_task(fetch_batch(runtime, memory, batch, tmp_path / name))

    async def cancel_the_first() -> Batch:
        _, first = fetching("first")
        second_batch, second = fetching("second")
        await asyncio.sleep(0.05)
        first.cancel()
        await second
        return second_batch

    batch = asyncio.run(cancel_the_first())
    assert batch.clips["a.wav"].sha256 == "ab"
    assert (fetcher.fetched, (tmp_path / "second" / "ab").exists()) == (2, True)
