"""What a batch asks, and in which order: equal questions once, those about a clip together."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from earwitness.build.batch import Batch, ClipState, RowState, write_segment
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
        self.questions: list[str] = []

    async def ask(self, request: Any) -> Answer:
        self.asked += 1
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
    assert late.reused
    assert late.outcome.answer == decided[0].outcome.answer


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
