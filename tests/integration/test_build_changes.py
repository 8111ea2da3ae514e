"""After a change, exactly the records that changed are asked, by the engine's own count."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from workbench import (
    Published,
    StandIn,
    WebServer,
    clip_bytes,
    record,
    tone,
    write_clip,
    write_manifest,
)

from earwitness.errors import ShardFailedError, TooManyRejectionsError
from earwitness.settings import (
    AudioSettings,
    EngineSettings,
    LayoutSettings,
    SamplingSettings,
    Silence,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_TOKENS = 20
LAYOUT = LayoutSettings(shard_rows=10, batch_rows=4)
ASKED_ROWS = 11
BAD_ROWS = 3


@dataclass
class Night:
    """An output one build was made at, ready for the next one."""

    folder: Path
    web: WebServer
    stand_in: StandIn
    run: Callable[..., dict[str, Any]]
    records: list[dict[str, Any]]
    clip: Path
    asked: int = field(default=0, init=False)
    downloaded: list[str] = field(default_factory=list, init=False)

    @property
    def published(self) -> Published:
        return Published(self.folder / "out")

    def build(self, **settings: Any) -> dict[str, Any]:
        """Build, and note what was asked and downloaded."""
        manifest = write_manifest(self.folder / "manifest.jsonl", self.records)
        engine = settings.pop("stand_in", self.stand_in)
        before, fetched = engine.asked(), self.web.downloads.copy()
        settings = {"max_tokens": MAX_TOKENS, "layout": LAYOUT, **settings}
        settings.setdefault("engine", EngineSettings(url=(engine.url,)))
        try:
            return self.run(manifest, self.folder / "out", **settings)
        finally:
            self.asked = engine.asked() - before
            self.downloaded = sorted((self.web.downloads - fetched).elements())


@pytest.fixture(scope="module")
def first_night(
    tmp_path_factory: pytest.TempPathFactory, build: Callable[..., Any], stand_in: StandIn
) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("first")
    with WebServer() as web:
        clips = [web.put(f"/{n}.wav", clip_bytes(folder, 300 + 20 * n)) for n in range(8)]
        clip = write_clip(folder / "local.wav", tone(900))
        records = [record(url, id=n) for n, url in enumerate(clips)]
        records += [
            record(clips[0], "Is it loud?", id=10),
            record([clips[1], clips[2]], "Which is higher?", id=11),
            record(clip, id=12),
            record(web.put("/page.wav", b"<!doctype html><html></html>"), id=20),
            record(
                web.put("/silent.wav", write_clip(folder / "s", tone(1) * 0).read_bytes()), id=21
            ),
            record(f"{web.url}/missing.wav", id=22),
        ]
        night = Night(folder, web, stand_in, build, records, clip)
        counts = night.build()
        assert night.asked == counts["generated"] == ASKED_ROWS
        assert counts["rejected"] == BAD_ROWS
        assert len(night.downloaded) == 10
        yield night


@pytest.fixture
def night(first_night: Night, tmp_path: Path) -> Iterator[Night]:
    """The morning after the first build, in an output of this test's own."""
    shutil.copytree(first_night.folder / "out", tmp_path / "out")
    web = first_night.web
    kept = web.objects.copy(), web.versions.copy()
    yield Night(
        tmp_path,
        web,
        first_night.stand_in,
        first_night.run,
        copy.deepcopy(first_night.records),
        first_night.clip,
    )
    web.objects, web.versions = kept
    web.statuses.clear()


def test_nothing_changed_asks_and_downloads_nothing(night):
    counts = night.build()
    assert (night.asked, night.downloaded) == (0, [])
    assert counts["reused"] == counts["answered"] == ASKED_ROWS


def test_known_bad_clips_are_neither_downloaded_nor_asked_again(night, first_night):
    night.records = [one for one in night.records if one["id"] >= 20]
    counts = night.build(max_rejected=1)
    assert (night.asked, night.downloaded) == (0, [])
    assert counts["reasons"] == {"clip_missing": 1, "not_audio": 1, "silent": 1}
    told = [row["earwitness"]["detail"] for row in night.published.rejections()]
    assert told == [row["earwitness"]["detail"] for row in first_night.published.rejections()]


@pytest.mark.parametrize(("status", "reason"), [(404, "clip_missing"), (503, "fetch_failed")])
def test_what_cannot_be_had_for_one_night_is_neither_downloaded_nor_asked_again(
    night, status: int, reason: str
):
    night.web.statuses["/4.wav"] = status
    counts = night.build()
    assert night.asked == 0
    assert counts["reasons"].get(reason, 0) == 1 + (reason == "clip_missing")
    night.web.statuses.clear()
    counts = night.build()
    assert (night.asked, night.downloaded) == (0, [])
    assert counts["reused"] == counts["answered"] == ASKED_ROWS


def test_one_row_added_is_asked_alone(night):
    url = night.web.put("/new.wav", clip_bytes(night.folder, 77))
    night.records.insert(3, record(url, id=99))
    counts = night.build()
    assert (night.asked, night.downloaded) == (1, ["/new.wav"])
    assert (counts["generated"], counts["reused"]) == (1, ASKED_ROWS)


def test_one_question_changed_is_asked_alone(night, first_night):
    night.records[5]["conversation"][0]["value"] = "What else?"
    night.build()
    assert (night.asked, night.downloaded) == (1, ["/5.wav"])
    before, after = first_night.published.by_id(), night.published.by_id()
    assert {row for row in before if before[row] != after[row]} == {5}


def test_new_bytes_under_the_same_uri_are_asked_about(night, first_night):
    night.web.put("/1.wav", clip_bytes(night.folder, 55))
    night.build()
    # row 11 brings this clip and another one
    assert (night.asked, night.downloaded) == (2, ["/1.wav", "/2.wav"])
    before, after = first_night.published.by_id(), night.published.by_id()
    assert {row for row in before if before[row] != after[row]} == {1, 11}


def test_the_same_bytes_under_a_new_stamp_are_downloaded_but_not_asked_about(night):
    night.web.versions["/4.wav"] = "another"
    os.utime(night.clip)
    counts = night.build()
    assert (night.asked, night.downloaded) == (0, ["/4.wav"])
    assert counts["reused"] == ASKED_ROWS


@pytest.mark.parametrize(
    "changed",
    [{"silence_dbfs": -50.0}, {"max_duration_s": 29.0}, {"max_clip_bytes": 200_000_000}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_changed_limit_asks_and_downloads_nothing_where_it_concerns_no_clip(night, changed):
    night.build(audio=AudioSettings(**changed))
    assert (night.asked, night.downloaded) == (0, [])


def test_a_changed_limit_asks_about_the_clips_that_it_concerns(night):
    counts = night.build(audio=AudioSettings(silence=Silence.KEEP))
    assert (night.asked, night.downloaded) == (1, ["/silent.wav"])
    assert counts["reasons"] == {"clip_missing": 1, "not_audio": 1}
    counts = night.build(max_rejected=1)
    assert (night.asked, night.downloaded) == (0, [])
    assert counts["reasons"] == {"clip_missing": 1, "not_audio": 1, "silent": 1}


def rewrite(table: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the stored rows of one of a build's tables."""
    for path in table.glob("*.parquet"):
        table = pq.read_table(path)
        rows = [change(row) for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_clips_that_an_older_decoder_heard_are_asked_again_if_they_sound_different_now(night):
    tables = night.published.folder
    rewrite(
        tables / "clips",
        lambda row: row | {"facts_version": 0} if row["sha256"] else row,
    )
    (asked_wrongly,) = (row for row in night.published.answers() if row["id"] == 5)
    key = bytes.fromhex(asked_wrongly["earwitness"]["cache_key"])
    rewrite(
        tables / "outcomes",
        lambda row: row | {"key": bytes(32)} if row["key"] == key else row,
    )
    night.build()
    assert (night.asked, len(night.downloaded)) == (1, 10)


def test_an_equal_sound_under_other_bytes_is_asked_once(night):
    samples = soundfile.read(str(night.clip), dtype="int16")[0]
    path = write_clip(night.folder / "same", samples, format="FLAC")
    night.records.append(record(night.web.put("/same.flac", path.read_bytes()), id=13))
    night.build()
    assert (night.asked, night.downloaded) == (0, ["/same.flac"])
    rows = {row["id"]: row for row in night.published.answers()}
    clips = [rows[number]["earwitness"]["clips"][0]["sha256"] for number in (12, 13)]
    assert clips[1] == hashlib.sha256(path.read_bytes()).hexdigest() != clips[0]
    assert rows[13]["answer"] == rows[12]["answer"]


def test_max_tokens_raised_asks_again_what_was_cut(night, first_night):
    rows = first_night.published.answers()
    cut = {row["id"] for row in rows if row["earwitness"]["finish_reason"] == "length"}
    assert 0 < len(cut) < ASKED_ROWS
    night.build(max_tokens=MAX_TOKENS + 10)
    assert night.asked == len(cut)
    before, after = first_night.published.by_id(), night.published.by_id()
    assert {row for row in before if before[row] != after[row]} == cut


def test_max_tokens_lowered_asks_again_what_is_too_long_now(night, first_night):
    limit = 10
    rows = first_night.published.answers()
    long = [row for row in rows if row["earwitness"]["completion_tokens"] > limit]
    assert 0 < len(long) < ASKED_ROWS
    night.build(max_tokens=limit)
    assert night.asked == len(long)


def test_another_model_is_asked_everything(night, start_stand_in):
    counts = night.build(stand_in=start_stand_in("--model", "another"))
    assert night.asked == counts["generated"] == ASKED_ROWS


def test_other_weights_in_the_same_folder_are_asked_everything(night, start_stand_in):
    model = night.folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"one")
    served = start_stand_in("--model", str(model))
    night.records = night.records[:4]
    asked = []
    for weights in (b"one", b"one", b"two"):
        (model / "model.safetensors").write_bytes(weights)
        night.build(stand_in=served, model=str(model))
        asked.append(night.asked)
    assert asked == [4, 0, 4]


@pytest.mark.parametrize("changed", [{"temperature": 0.7}, {"seed": 1}])
def test_another_sampling_parameter_asks_everything(night, changed):
    night.build(sampling=SamplingSettings(**changed))
    assert night.asked == ASKED_ROWS


def test_builds_at_temperature_0_share_their_answers_whatever_their_seed(night):
    night.build(sampling=SamplingSettings(temperature=0, seed=1))
    night.build(sampling=SamplingSettings(temperature=0))
    assert night.asked == 0


def test_a_reordered_manifest_asks_nothing_and_answers_follow_their_rows(night, first_night):
    night.records.reverse()
    night.build()
    assert (night.asked, night.downloaded) == (0, [])
    assert night.published.by_id() == first_night.published.by_id()
    ids = [row["id"] for row in night.published.answers()]
    assert ids == [one["id"] for one in night.records if one["id"] < 20]
    assert [row["earwitness"]["row"] for row in night.published.answers()] == list(
        range(BAD_ROWS, BAD_ROWS + ASKED_ROWS)
    )


def test_a_clip_its_server_fails_to_give_is_tried_again_by_the_next_build(night):
    night.records = [record(night.web.put("/moody.wav", clip_bytes(night.folder, 66)), id=1)]
    night.records += [record(night.clip, id=2)]
    night.web.statuses["/moody.wav"] = 503
    counts = night.build()
    assert counts["reasons"] == {"fetch_failed": 1}
    assert counts["transient"] == 1
    night.web.statuses.clear()
    counts = night.build()
    assert (night.asked, night.downloaded) == (1, ["/moody.wav"])
    assert (counts["answered"], counts["rejected"]) == (2, 0)


def test_a_question_the_engine_never_answered_is_asked_again_by_the_next_build(
    night, start_stand_in
):
    night.records[3]["conversation"][0]["value"] = "Please hang"
    stuck = start_stand_in("--hang-on", "hang")
    engine = EngineSettings(url=(stuck.url,), request_timeout_s=1)
    counts = night.build(stand_in=stuck, engine=engine)
    assert counts["reasons"]["engine_timeout"] == 1
    counts = night.build()
    assert (night.asked, counts["answered"]) == (1, ASKED_ROWS)


def test_storage_that_is_down_fails_the_build_and_rejects_nothing(night):
    paths = [f"/new-{number}.wav" for number in range(12)]
    night.records = [
        record(night.web.put(path, clip_bytes(night.folder, 500 + number)), id=number)
        for number, path in enumerate(paths)
    ]
    night.web.statuses = dict.fromkeys(paths, 503)
    layout = LayoutSettings(batch_rows=6)
    with pytest.raises(
        ShardFailedError, match=r"of 12 clips could not be fetched.*none of them is rejected"
    ):
        night.build(layout=layout)
    assert night.published.by_id().keys() == set(range(8)) | {10, 11, 12}
    night.web.statuses.clear()
    counts = night.build(layout=layout)
    assert (night.asked, counts["answered"], counts["rejected"]) == (12, 12, 0)


def test_too_many_rejections_publish_nothing_until_more_are_allowed(night):
    night.records = [record(f"{night.web.url}/none-{number}.wav", id=number) for number in range(3)]
    night.records.append(record(night.web.put("/last.wav", clip_bytes(night.folder, 88)), id=3))
    before = night.published.folder
    with pytest.raises(TooManyRejectionsError, match=r"3 of 4 rows.*clip_missing.*--max-rejected"):
        night.build(build="gated", max_rejected=0.7)
    assert (night.asked, night.published.folder) == (1, before)
    counts = night.build(build="gated", max_rejected=0.8)
    assert (night.asked, counts["answered"], counts["rejected"]) == (0, 1, 3)
    assert night.published.folder.name == "gated"


def test_a_denied_clip_is_not_tried_again_until_it_can_be_had(night):
    url = night.web.put("/secret.wav", clip_bytes(night.folder, 99))
    night.records = [record(night.clip, id=1), record(url, id=2)]
    night.web.statuses["/secret.wav"] = 403
    counts = night.build()
    assert (counts["reasons"], night.downloaded) == ({"access_denied": 1}, ["/secret.wav"])
    counts = night.build()
    assert (counts["reasons"], night.downloaded) == ({"access_denied": 1}, [])
    night.web.statuses.clear()
    counts = night.build()
    assert (counts["answered"], night.asked, night.downloaded) == (2, 1, ["/secret.wav"])
