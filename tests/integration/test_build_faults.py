"""A thousand rows with every kind of fault: none lost, each with its reason, the good untouched."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from workbench import LONG_AGO_S, Published, record, tone, write_clip

import earwitness
from earwitness.records import Reason
from earwitness.settings import AudioSettings, InputSettings, LayoutSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

ROWS = 1_000
MAX_LINE_BYTES = 2**16
MAX_CLIP_BYTES = 2**20
SETTINGS: dict[str, Any] = {
    "audio": AudioSettings(max_clip_bytes=MAX_CLIP_BYTES),
    "input": InputSettings(max_line_bytes=MAX_LINE_BYTES),
    # two shards: a question in both is asked once in each
    "layout": LayoutSettings(shard_rows=ROWS // 2, batch_rows=250),
}
TONES = 20


def make_clips(folder: Path) -> None:
    """Every clip the manifest names, sound ones and faulty ones."""
    sound = tone(440)
    for number in range(TONES):
        write_clip(folder / f"tone-{number}.wav", tone(200 + 10 * number))
    write_clip(folder / "a flac.wav", sound, format="FLAC")
    write_clip(folder / "8-bit.wav", sound, subtype="PCM_U8")
    write_clip(folder / "24-bit.wav", sound, subtype="PCM_24")
    write_clip(folder / "float.wav", sound, subtype="FLOAT")
    write_clip(folder / "surround.wav", np.stack([sound] * 6, axis=1))
    write_clip(folder / "96-khz.wav", tone(440, rate_hz=96_000), 96_000)
    write_clip(folder / "声音 🔔.ogg", sound, format="OGG", subtype="VORBIS")
    write_clip(folder / "speech.mp3", tone(440, 0.5), format="MP3")

    write_clip(folder / "short.wav", tone(440, 0.01))
    write_clip(folder / "long.flac", np.full(600 * 8_000, 0.3), 8_000, format="FLAC")
    write_clip(folder / "silent.wav", sound * 0)
    holed = sound.copy()
    holed[100] = np.nan
    write_clip(folder / "nan.wav", holed, subtype="FLOAT")
    write_clip(folder / "stadium.wav", np.stack([sound] * 12, axis=1))
    whole = write_clip(folder / "whole.wav", tone(440, 0.5)).read_bytes()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000)
    cut = write_clip(folder / "whole.flac", noise, format="FLAC").read_bytes()
    files = {
        "cut.wav": whole[: len(whole) // 2],
        "cut.flac": cut[: len(cut) // 2],
        "empty.wav": b"",
        "page.wav": b"<!doctype html><html><body>Sign in</body></html>",
        "pointer.wav": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "zeros.wav": bytes(4096),
        "huge.wav": whole + bytes(MAX_CLIP_BYTES),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(folder / "zip.mp3", "w") as archive:
        archive.writestr("tone.wav", whole)
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))


@dataclass(frozen=True)
class Line:
    """What a kind of line is made of, when it is its turn."""

    row: int

    @property
    def question(self) -> str:
        return f"What is heard in row {self.row}?"

    @property
    def fields(self) -> dict[str, Any]:
        return {"id": 3 * self.row + 1, "note": f"row {self.row}", "tags": ["a", "ü"]}

    @property
    def last(self) -> tuple[str, str]:
        return ("human", self.question)

    def ask(self, *clips: str) -> dict[str, Any]:
        """A record that asks this row's own question about clips."""
        return record(["clips/" + clip for clip in clips], self.question, **self.fields)

    def say(self, *turns: tuple[str, str | None], clips: int = 1) -> dict[str, Any]:
        """A record with a conversation of its own."""
        audio = [f"clips/tone-{number}.wav" for number in range(clips)]
        spoken = [{"from": who, "value": text} for who, text in turns]
        return {"audio": audio, "conversation": spoken, **self.fields}

    def with_audio(self, audio: Any) -> dict[str, Any]:
        return {**self.ask("tone-0.wav"), "audio": audio}

    def with_conversation(self, conversation: Any) -> dict[str, Any]:
        return {**self.ask("tone-0.wav"), "conversation": conversation}

    def without(self, name: str) -> dict[str, Any]:
        whole = self.ask("tone-0.wav")
        del whole[name]
        return whole

    def text(self, more: str = "", **fields: Any) -> str:
        return json.dumps({**self.ask("tone-0.wav"), **fields}, ensure_ascii=False)[:-1] + more


REPEATED = "same row again"
OPENAI_PARTS = [
    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    {"type": "text", "text": "Which is it?"},
]

# what is in the line → what must become of it (None: an answer) → how the line is made
KINDS: list[tuple[str, Reason | None, Callable[[Line], Any]]] = [
    ("cut line", Reason.MALFORMED_LINE, lambda line: line.text()[:-20]),
    ("no JSON", Reason.MALFORMED_LINE, lambda line: f"row {line.row}"),
    ("key twice", Reason.MALFORMED_LINE, lambda line: line.text(', "id": 1}')),
    ("two objects", Reason.MALFORMED_LINE, lambda line: line.text("} {}")),
    ("deep JSON", Reason.MALFORMED_LINE, lambda line: line.text(f', "x": {"[" * 5000}')),
    ("deep valid JSON", Reason.MALFORMED_LINE, lambda line: line.text(deep(200))),
    ("huge line", Reason.LINE_TOO_LONG, lambda line: line.text("}", pad="x" * MAX_LINE_BYTES)),
    ("bad UTF-8", Reason.BAD_ENCODING, lambda line: line.text("}").encode() + b"\xff\xfe"),
    ("Latin-1", Reason.BAD_ENCODING, lambda line: line.text("}").encode("latin-1")),
    ("lone surrogate", Reason.BAD_ENCODING, lambda line: line.text(r', "x": "\ud83d"}')),
    ("array", Reason.NOT_AN_OBJECT, lambda line: json.dumps([line.row])),
    ("null", Reason.NOT_AN_OBJECT, lambda _: "null"),
    ("null audio", Reason.NO_AUDIO, lambda line: line.with_audio(None)),
    ("empty audio list", Reason.NO_AUDIO, lambda line: line.with_audio([])),
    ("no audio field", Reason.NO_AUDIO, lambda line: line.without("audio")),
    ("audio is a number", Reason.BAD_AUDIO, lambda line: line.with_audio(7)),
    ("audio is an object", Reason.BAD_AUDIO, lambda line: line.with_audio({"path": "a.wav"})),
    ("null in audio", Reason.BAD_AUDIO, lambda line: line.with_audio(["clips/tone-0.wav", None])),
    ("empty URI", Reason.BAD_AUDIO, lambda line: line.with_audio([""])),
    ("too many clips", Reason.TOO_MANY_CLIPS, lambda line: line.ask(*["tone-0.wav"] * 17)),
    ("unknown scheme", Reason.BAD_URI, lambda line: line.with_audio(["tape://reel/1.wav"])),
    ("data URI", Reason.BAD_URI, lambda line: line.with_audio(["data:audio/wav;base64,UklGRg=="])),
    ("no conversation", Reason.NO_CONVERSATION, lambda line: line.without("conversation")),
    ("empty conversation", Reason.NO_CONVERSATION, lambda line: line.say()),
    ("null conversation", Reason.NO_CONVERSATION, lambda line: line.with_conversation(None)),
    ("text conversation", Reason.BAD_CONVERSATION, lambda line: line.with_conversation("What?")),
    ("turn is text", Reason.BAD_CONVERSATION, lambda line: line.with_conversation(["What?"])),
    (
        "mixed forms",
        Reason.BAD_CONVERSATION,
        lambda line: line.with_conversation([{"from": "human", "content": "What?"}]),
    ),
    ("ends on gpt", Reason.NO_QUESTION, lambda line: line.say(("human", "A?"), ("gpt", "B."))),
    ("unknown role", Reason.UNKNOWN_ROLE, lambda line: line.say(("robot", "What?"))),
    ("no role", Reason.UNKNOWN_ROLE, lambda line: line.with_conversation([{"value": "What?"}])),
    ("empty turn", Reason.EMPTY_TURN, lambda line: line.say(("human", "  "))),
    ("turn without text", Reason.EMPTY_TURN, lambda line: line.say(("human", None))),
    ("human twice", Reason.TURN_ORDER, lambda line: line.say(("human", "A?"), ("human", "B?"))),
    ("gpt first", Reason.TURN_ORDER, lambda line: line.say(("gpt", "B."), ("human", "A?"))),
    (
        "system in the middle",
        Reason.TURN_ORDER,
        lambda line: line.say(("human", "A?"), ("system", "S"), ("human", "B?")),
    ),
    (
        "more marks than clips",
        Reason.AUDIO_MARK_MISMATCH,
        lambda line: line.say(("human", "<audio><audio>What?")),
    ),
    (
        "more clips than marks",
        Reason.AUDIO_MARK_MISMATCH,
        lambda line: line.say(("human", "<audio>\nWhat?"), clips=2),
    ),
    (
        "mark in an answer",
        Reason.AUDIO_MARK_MISMATCH,
        lambda line: line.say(("human", "A?"), ("gpt", "<audio>"), ("human", "B?")),
    ),
    ("missing clip", Reason.CLIP_MISSING, lambda line: line.ask("none.wav")),
    ("folder as clip", Reason.CLIP_MISSING, lambda line: line.ask("../clips")),
    ("0 bytes", Reason.CLIP_EMPTY, lambda line: line.ask("empty.wav")),
    ("too many bytes", Reason.CLIP_TOO_LARGE, lambda line: line.ask("huge.wav")),
    ("HTML as wav", Reason.NOT_AUDIO, lambda line: line.ask("page.wav")),
    ("LFS pointer as wav", Reason.NOT_AUDIO, lambda line: line.ask("pointer.wav")),
    ("zip as mp3", Reason.NOT_AUDIO, lambda line: line.ask("zip.mp3")),
    ("zeros as wav", Reason.NOT_AUDIO, lambda line: line.ask("zeros.wav")),
    ("cut wav", Reason.TRUNCATED, lambda line: line.ask("cut.wav")),
    ("cut flac", Reason.TRUNCATED, lambda line: line.ask("cut.flac")),
    ("12 channels", Reason.UNSUPPORTED_AUDIO, lambda line: line.ask("stadium.wav")),
    ("0.01 s", Reason.CLIP_TOO_SHORT, lambda line: line.ask("short.wav")),
    ("10 minutes", Reason.CLIP_TOO_LONG, lambda line: line.ask("long.flac")),
    ("silence", Reason.SILENT, lambda line: line.ask("silent.wav")),
    ("NaN samples", Reason.NOT_FINITE, lambda line: line.ask("nan.wav")),
    ("second clip bad", Reason.NOT_AUDIO, lambda line: line.ask("tone-1.wav", "page.wav")),
    ("wrong extension", None, lambda line: line.ask("a flac.wav")),
    ("8-bit", None, lambda line: line.ask("8-bit.wav")),
    ("24-bit", None, lambda line: line.ask("24-bit.wav")),
    ("float wav", None, lambda line: line.ask("float.wav")),
    ("5.1", None, lambda line: line.ask("surround.wav")),
    ("96 kHz", None, lambda line: line.ask("96-khz.wav")),
    ("mp3", None, lambda line: line.ask("speech.mp3")),
    ("emoji in the clip's name", None, lambda line: line.ask("声音 🔔.ogg")),
    ("two clips", None, lambda line: line.ask("tone-2.wav", "tone-3.wav")),
    ("same clip twice", None, lambda line: line.ask("tone-2.wav", "tone-2.wav")),
    ("lone string", None, lambda line: line.with_audio("clips/tone-4.wav")),
    (REPEATED, None, lambda _: record("clips/tone-5.wav", "And this?", id=5, note="")),
    ("same id again", None, lambda line: {**line.ask("tone-6.wav"), "id": 4}),
    ("emoji in a field", None, lambda line: {**line.ask("tone-7.wav"), "note": "🎧🔔👩‍🚀 é\u2028"}),
    ("Chinese", None, lambda line: line.say(("human", f"请描述第{line.row}段声音。"))),
    ("no id", None, lambda line: line.without("id")),
    ("number too large", None, lambda line: {**line.ask("tone-8.wav"), "big": 2**70}),
    ("CRLF", None, lambda line: line.text("}\r")),
    ("escaped text", None, lambda line: json.dumps(line.say(("human", f"Où? 🔔 {line.row}")))),
    (
        "marks",
        None,
        lambda line: line.say(("human", f"<audio>\n{line.question}\n<audio>"), clips=2),
    ),
    (
        "earlier turns",
        None,
        lambda line: line.say(("system", "Be brief."), ("human", "A?"), ("gpt", "B."), line.last),
    ),
    (
        "OpenAI messages",
        None,
        lambda line: line.with_conversation([{"role": "user", "content": OPENAI_PARTS}]),
    ),
]


def deep(levels: int) -> str:
    return f', "x": {"[" * levels}{"]" * levels}}}'


@dataclass(frozen=True)
class Row:
    """One line of the manifest and what must become of it."""

    kind: str
    reason: Reason | None
    data: bytes

    @property
    def record(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.data)
        return parsed


def make_rows() -> list[Row]:
    """Every kind two or three times, in both shards; plain and repeated rows in between."""
    by_kind = {kind: (reason, make) for kind, reason, make in KINDS}
    kinds = [kind for kind, _, _ in KINDS]
    rows = []
    for number in range(ROWS):
        turn, left = divmod(number, 5)
        kind = "plain" if left else kinds[turn % len(kinds)]
        kind = REPEATED if number % 50 == 3 else kind
        reason, make = by_kind.get(kind, (None, plain_line))
        made = make(Line(number))
        text = made if isinstance(made, str | bytes) else json.dumps(made, ensure_ascii=False)
        rows.append(Row(kind, reason, text if isinstance(text, bytes) else text.encode()))
    return rows


def plain_line(line: Line) -> dict[str, Any]:
    return {**line.ask(f"tone-{line.row % TONES}.wav"), "score": line.row / 8, "ok": True}


@dataclass(frozen=True)
class Aftermath:
    """What the two builds left: over all rows, and over the good ones alone."""

    rows: list[Row]
    counts: dict[str, Any]
    asked: int
    whole: Published
    good: Published
    frame: pd.DataFrame

    @property
    def answerable(self) -> list[Row]:
        return [row for row in self.rows if row.reason is None]


@pytest.fixture(scope="module")
def built(tmp_path_factory, build, stand_in):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "clips").mkdir()
    make_clips(folder / "clips")
    rows = make_rows()
    (folder / "all.jsonl").write_bytes(b"\n".join(row.data for row in rows))
    before = stand_in.asked()
    counts = build(folder / "all.jsonl", folder / "out", **SETTINGS)
    asked = stand_in.asked() - before
    good = [row.data for row in rows if row.reason is None]
    (folder / "good.jsonl").write_bytes(b"\n".join(good))
    build(folder / "good.jsonl", folder / "good", **SETTINGS)
    return Aftermath(
        rows,
        counts,
        asked,
        Published(folder / "out"),
        Published(folder / "good"),
        earwitness.load(str(folder / "out")),
    )


def test_there_are_a_thousand_rows_with_more_than_25_kinds_of_fault(built):
    assert len(built.rows) == ROWS
    kinds = {row.kind for row in built.rows if row.reason is not None}
    assert len(kinds) > 25
    assert {row.kind for row in built.rows} == {kind for kind, _, _ in KINDS} | {"plain"}


def test_every_row_is_answered_or_rejected(built):
    answered = [row["earwitness"]["row"] for row in built.whole.answers()]
    rejected = [row["earwitness"]["row"] for row in built.whole.rejections()]
    assert sorted(answered + rejected) == list(range(ROWS))
    assert answered == sorted(answered)
    assert built.counts["rows"] == ROWS
    assert (built.counts["answered"], built.counts["rejected"]) == (len(answered), len(rejected))


def test_each_rejection_has_the_right_reason(built):
    found = {
        row["earwitness"]["row"]: row["earwitness"]["reason"] for row in built.whole.rejections()
    }
    expected = {
        number: str(row.reason) for number, row in enumerate(built.rows) if row.reason is not None
    }
    kinds = {number: built.rows[number].kind for number in found.keys() | expected.keys()}
    wrong = {
        (kinds[number], expected.get(number), found.get(number))
        for number in kinds
        if expected.get(number) != found.get(number)
    }
    assert wrong == set()
    assert built.counts["reasons"] == Counter(expected.values())
    assert all(row["earwitness"]["detail"] for row in built.whole.rejections())


def test_rejections_load_as_a_frame_whatever_their_fields_hold(built):
    frame = earwitness.load_rejected(str(built.whole.output))
    rows = built.whole.rejections()
    assert frame["earwitness.row"].tolist() == [row["earwitness"]["row"] for row in rows]
    assert frame["earwitness.reason"].tolist() == [row["earwitness"]["reason"] for row in rows]
    assert str(frame["id"].dtype) == "Int64"


def test_fields_come_out_as_they_went_in(built):
    for row in built.whole.answers():
        assert row.pop("answer")
        number = row.pop("earwitness")["row"]
        assert list(row.items()) == list(built.rows[number].record.items())
    for row in built.whole.rejections():
        number = row.pop("earwitness")["row"]
        if row:
            assert row == rejected_fields(built.rows[number].record, built.whole.output.parent)


def rejected_fields(fields: dict[str, Any], root: Path) -> dict[str, Any]:
    """A record's fields as a manifest that lies anywhere has them: clips by absolute paths."""
    told: dict[str, Any] = json.loads(json.dumps(fields).replace('"\\ud83d"', '"\ufffd"'))
    if "audio" in told:
        told["audio"] = absolute(told["audio"], root)
    return told


def absolute(audio: Any, root: Path) -> Any:
    if isinstance(audio, list):
        return [absolute(one, root) for one in audio]
    if isinstance(audio, dict):
        return {name: absolute(one, root) for name, one in audio.items()}
    address = isinstance(audio, str) and audio.strip() and ":" not in audio and "\0" not in audio
    return os.path.normpath(root / audio) if address else audio


def test_an_integer_id_with_gaps_stays_an_integer(built):
    assert str(built.frame["id"].dtype) == "Int64"
    ids = [row.record["id"] for row in built.answerable if "id" in row.record]
    assert len(ids) < len(built.frame)
    assert built.frame["id"].dropna().tolist() == ids


def test_parquet_and_jsonl_hold_the_same_rows(built):
    files = sorted((built.whole.folder / "data").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    for row in rows:
        # types that disagree from row to row, or that no column holds, are JSON text there
        row["audio"] = json.loads(row["audio"])
        row["big"] = json.loads(row["big"] or "null")
    assert [present(row) for row in rows] == [present(row) for row in built.whole.answers()]


def present(value: Any) -> Any:
    """A value without its nulls: Parquet gives every object the keys of all."""
    if isinstance(value, dict):
        return {name: present(inner) for name, inner in value.items() if inner is not None}
    return [present(inner) for inner in value] if isinstance(value, list) else value


def test_good_rows_are_answered_as_they_are_without_the_bad_ones(built):
    def without_row(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "earwitness": {**row["earwitness"], "row": None}} for row in rows]

    assert built.good.rejections() == []
    assert without_row(built.whole.answers()) == without_row(built.good.answers())


def test_each_distinct_question_of_a_shard_is_asked_exactly_once(built):
    distinct = {
        json.dumps([number * 2 // ROWS, row.record["audio"], row.record["conversation"]])
        for number, row in enumerate(built.rows)
        if row.reason is None
    }
    assert len(distinct) < len(built.answerable)
    assert built.asked == built.counts["generated"] == len(distinct)
    assert built.counts["reused"] == len(built.answerable) - len(distinct)
