"""Errors that nobody foresaw, wherever one record or clip is worked on: the job ends whole."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import operator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.registry import _registry, known_implementations
from workbench import Published, clip_bytes, record, tone, write_clip, write_manifest

from earwitness import storage_calls
from earwitness.audio.pool import DecodePool
from earwitness.builds.batch import Batch, RowState
from earwitness.builds.layout import Build
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.stages import generate_batch
from earwitness.check import check_clips, lint_manifest
from earwitness.errors import EngineUnavailableError, ManifestError, ShardFailedError
from earwitness.manifest import clips as manifest_clips
from earwitness.records import Answer, Reason, Rejection
from earwitness.runtime import ShardMemory
from earwitness.settings import BuildSettings, LayoutSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ODD = [ZeroDivisionError("odd"), KeyError("odd"), RuntimeError("odd"), AssertionError(), OSError()]


class OddError(Exception):
    """An error with a constructor that does not unpickle."""

    def __init__(self, *, why: str) -> None:
        super().__init__(why)


class OddStorage(fsspec.AbstractFileSystem):  # type: ignore[misc] - fsspec has no types
    """Storage whose objects fail as their names say: `stat-0.wav` at asking, `read-…`, `open-…`."""

    protocol = "abfss"
    data = b""
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if "stat" in path:
            raise self._error(path)
        return {"name": path, "size": len(self.data), "type": "file", "ETag": "1"}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        assert mode == "rb"
        if "open" in path:
            raise self._error(path)
        return Broken(self._error(path)) if "read" in path else io.BytesIO(self.data)

    def _error(self, path: str) -> Exception:
        errors = [
            *ODD,
            OddError(why="odd"),
            StopIteration("odd"),
            UnicodeDecodeError("a", b"", 0, 1, "odd"),
        ]
        return errors[int(path.rpartition("-")[2].partition(".")[0]) % len(errors)]


class Broken(io.BytesIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def read(self, _: int | None = -1) -> bytes:
        raise self._error


@pytest.fixture
def odd_storage(tmp_path: Path) -> Iterator[str]:
    OddStorage.data = clip_bytes(tmp_path, 440)
    fsspec.register_implementation("abfss", OddStorage, clobber=True)
    manifest_clips._is_read.cache_clear()
    storage_calls._filesystem.cache_clear()
    yield "abfss://odd"
    _registry.pop("abfss")
    manifest_clips._is_read.cache_clear()
    storage_calls._filesystem.cache_clear()


def checked(manifest: Path) -> dict[str, int]:
    settings = resolve_settings(BuildSettings(manifest=str(manifest), output="o"))
    report = lint_manifest(settings)
    check_clips(settings, report)
    return {reason: found.rows for reason, found in report.rejections.items()}


@pytest.mark.parametrize("where", ["open", "read", "stat-and-open"])
def test_an_odd_error_at_a_clip_ends_that_clip(
    tmp_path: Path, odd_storage: str, build: Any, caplog: pytest.LogCaptureFixture, where: str
):
    good = [record(f"{odd_storage}/good-{number}.wav", id=number) for number in range(9)]
    bad = [record(f"{odd_storage}/{where}-{number}.wav", id=number) for number in range(9)]
    manifest = write_manifest(tmp_path / "m.jsonl", bad + good)
    with caplog.at_level(logging.ERROR, logger="earwitness"):
        counts = build(manifest, tmp_path / "out")
    assert (counts["rows"], counts["answered"], counts["rejected"]) == (18, 9, 9)
    internal = counts["reasons"].pop("internal_error")
    assert internal >= 6
    assert set(counts["reasons"]) <= {"bad_uri"}
    assert checked(manifest).get("internal_error") == internal
    traced = [entry for entry in caplog.records if entry.exc_info]
    assert len(traced) >= internal
    rows = Published(tmp_path / "out").rejections()
    assert all(
        row["earwitness"]["transient"]
        for row in rows
        if row["earwitness"]["reason"] == "internal_error"
    )


def test_an_odd_error_at_asking_for_a_stamp_ends_nothing(
    tmp_path: Path, odd_storage: str, build: Any
):
    records = [record(f"{odd_storage}/good-{number}.wav") for number in range(3)]
    # asking for the stamp fails as reading does not: the stamp is asked for at reading, too
    records += [record(f"{odd_storage}/stat-{number}.wav") for number in range(3)]
    counts = build(write_manifest(tmp_path / "m.jsonl", records), tmp_path / "out")
    assert (counts["answered"], counts["reasons"]) == (3, {"internal_error": 3})


def test_many_odd_errors_fail_the_shard_and_reject_none(
    tmp_path: Path, odd_storage: str, build: Any
):
    records = [record(f"{odd_storage}/open-{8 * number}.wav") for number in range(20)]
    records += [record(f"{odd_storage}/good-{number}.wav") for number in range(20)]
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    with pytest.raises(ShardFailedError, match="of 40 clips"):
        build(manifest, tmp_path / "out", layout=LayoutSettings(batch_rows=5))


def test_an_internal_error_is_asked_again_by_the_next_build(
    tmp_path: Path, odd_storage: str, build: Any
):
    records = [record(f"{odd_storage}/good-{number}.wav") for number in range(3)]
    manifest = write_manifest(tmp_path / "m.jsonl", [*records, record(f"{odd_storage}/open-0.wav")])
    assert build(manifest, tmp_path / "out")["transient"] == 1
    fine = write_manifest(tmp_path / "n.jsonl", [*records, record(f"{odd_storage}/fine-0.wav")])
    counts = build(fine, tmp_path / "out")
    assert (counts["answered"], counts["rejected"]) == (4, 0)


@pytest.fixture
def broken_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A scheme whose package cannot be imported for a reason of its own."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "brokenstorage.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    fsspec.register_implementation("abfss", "brokenstorage.Files", clobber=True)
    manifest_clips._is_read.cache_clear()
    yield
    _registry.pop("abfss", None)
    known_implementations.pop("abfss")
    manifest_clips._is_read.cache_clear()


@pytest.mark.usefixtures("broken_package")
def test_an_odd_error_at_a_line_ends_that_line(tmp_path: Path, build: Any):
    write_clip(tmp_path / "a.wav", tone(440))
    records = [record("abfss://x/a.wav", id=1), *[record("a.wav") for _ in range(5)]]
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    assert checked(manifest) == {"internal_error": 1}
    counts = build(manifest, tmp_path / "out")
    assert (counts["answered"], counts["reasons"]) == (5, {"internal_error": 1})
    (row,) = Published(tmp_path / "out").rejections()
    assert (row["earwitness"]["row"], row["earwitness"]["stage"]) == (0, "plan")


@pytest.mark.usefixtures("broken_package")
def test_many_odd_errors_at_lines_plan_nothing(tmp_path: Path, build: Any):
    manifest = write_manifest(tmp_path / "m.jsonl", [record("abfss://x/a.wav")] * 10)
    with pytest.raises(ManifestError, match="10 of 10 lines"):
        build(manifest, tmp_path / "out")
    with pytest.raises(ManifestError, match="10 of 10 lines"):
        checked(manifest)


def test_an_odd_error_in_a_decoder_ends_that_clip(caplog: pytest.LogCaptureFixture):
    with DecodePool(1) as pool:
        found = pool.submit_each(operator.truediv, [(1, 2), (1, 0), (3, 2)]).result(60)
        odd = pool.submit_each(json.JSONDecodeError, [("a", "b", 0), ("a",)]).result(60)
    assert [found[0], found[2]] == [0.5, 1.5]
    assert isinstance(found[1], Rejection)
    assert found[1].reason is Reason.INTERNAL_ERROR
    assert isinstance(odd[1], Rejection)
    assert "audio/pool.py" in caplog.text, "the worker's own trace"


class OddEngine:
    """Stands in for the engine: answers, or raises what it is given for a row."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        self._errors = errors

    async def ask(self, request: Any) -> Answer:
        number = int(request.messages[0]["content"])
        if number in self._errors:
            raise self._errors[number]
        return Answer("fine", "stop", 3, 2)


def generated(tmp_path: Path, errors: dict[int, Exception]) -> list[Reason | None]:
    rows = [
        RowState(row, [], [{"role": "user", "content": str(row)}], cache_key=f"{row:064}")
        for row in range(9)
    ]
    settings = BuildSettings(manifest="m.jsonl", output=str(tmp_path))
    runtime: Any = SimpleNamespace(settings=settings, engine=OddEngine(errors))
    build = Build(str(tmp_path), "b")
    decided = asyncio.run(generate_batch(runtime, build, ShardMemory(), Batch(rows), tmp_path))
    return [one.outcome.rejection and one.outcome.rejection.reason for one in decided]


def test_an_odd_error_at_a_request_ends_that_request(tmp_path: Path):
    reasons = generated(tmp_path, dict(enumerate(ODD)))
    assert reasons == [Reason.INTERNAL_ERROR] * len(ODD) + [None] * (9 - len(ODD))


@pytest.mark.parametrize("error", [EngineUnavailableError("down"), MemoryError()])
def test_what_is_about_more_than_one_request_ends_the_batch(tmp_path: Path, error: Exception):
    with pytest.raises(type(error)):
        generated(tmp_path, {4: error})
