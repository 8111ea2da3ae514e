"""Equal questions are asked once, also when the batch that asked first has ended meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from earwitness.build.batch import Batch, RowState, write_segment
from earwitness.build.layout import Build
from earwitness.build.stages import forget_batch, generate_batch
from earwitness.records import Answer
from earwitness.runtime import ShardMemory
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ab" * 32


class CountingEngine:
    """Stands in for the engine: answers at once, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    async def ask(self, _request: Any) -> Answer:
        self.asked += 1
        return Answer("a bell", "stop", 3, 2)


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
    assert late.reused
    assert late.outcome.answer == decided[0].outcome.answer
