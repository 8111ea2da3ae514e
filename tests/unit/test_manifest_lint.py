"""Every manifest line becomes one planned row, asked or rejected with its reason."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.errors import BuildDamagedError, SettingsError
from earwitness.manifest.clips import ClipResolver, audio_root_hint
from earwitness.manifest.lint import Linter, LintRules, lint_line, lint_rules
from earwitness.manifest.planned import parse_asked, parse_clips, parse_plan_line, plan_line
from earwitness.manifest.read import RawLine
from earwitness.records import PlannedRow, Reason, Rejection, Stage
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

RULES = LintRules(audio_root="/data/set", system_prompt="")
TURNS = [{"from": "human", "value": "What is it?"}]


def line(**fields: Any) -> bytes:
    record = {"audio": ["a.wav"], "conversation": TURNS} | fields
    return json.dumps(record, ensure_ascii=False).encode()


def judged(raw: bytes, rules: LintRules = RULES) -> PlannedRow:
    return lint_line(raw, 7, rules)


def reason_of(raw: bytes) -> Reason | None:
    rejection = judged(raw).rejection
    return rejection.reason if rejection else None


def test_a_good_line_is_planned_with_clips_and_messages() -> None:
    planned = judged(line(id=3))
    assert planned == PlannedRow(
        7,
        {"audio": ["a.wav"], "conversation": TURNS, "id": 3},
        ("/data/set/a.wav",),
        (
            {
                "role": "user",
                "content": [{"type": "audio", "clip": 0}, {"type": "text", "text": "What is it?"}],
            },
        ),
    )


def test_dataflows_sample_layout_resolves_from_a_sibling_folder() -> None:
    raw = (
        b'{"audio": ["../example_data/audio_aqa_pipeline/test_1.wav"], "conversation": '
        b'[{"from": "human", "value": "Transcribe the audio into Chinese."}]}'
    )
    settings = BuildSettings(manifest="/work/run/sample.jsonl", output="/out")
    planned = judged(raw, lint_rules(settings, None))
    assert planned.clips == ("/work/example_data/audio_aqa_pipeline/test_1.wav",)
    assert [message["role"] for message in planned.messages] == ["system", "user"]


def test_a_blank_system_prompt_is_none() -> None:
    settings = BuildSettings(manifest="/work/m.jsonl", output="/out", system_prompt=" \n")
    assert [m["role"] for m in judged(line(), lint_rules(settings, None)).messages] == ["user"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"not json", Reason.MALFORMED_LINE),
        (b'{"audio": ["a.wav"]', Reason.MALFORMED_LINE),
        (b'{"a": 1} {"b": 2}', Reason.MALFORMED_LINE),
        (b'{"a": 1, "a": 2}', Reason.MALFORMED_LINE),
        (b'{"a": {"b": 1, "b": 1}}', Reason.MALFORMED_LINE),
        (b'{"a": ' + b"9" * 5000 + b"}", Reason.MALFORMED_LINE),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", Reason.MALFORMED_LINE),
        (b"[" * 100_000, Reason.MALFORMED_LINE),
        (b'\xef\xbb\xbf{"a": 1}', Reason.MALFORMED_LINE),
        (b'{"a": "\xff"}', Reason.BAD_ENCODING),
        (b'{"a": "\\ud83d"}', Reason.BAD_ENCODING),
        (b"[1, 2]", Reason.NOT_AN_OBJECT),
        (b"null", Reason.NOT_AN_OBJECT),
        (json.dumps({f"k{n}": n for n in range(2_001)}).encode(), Reason.TOO_MANY_FIELDS),
        (b'  "text"', Reason.NOT_AN_OBJECT),
        (b"{}", Reason.NO_AUDIO),
        (line(audio=None), Reason.NO_AUDIO),
        (line(audio=[]), Reason.NO_AUDIO),
        (line(audio=""), Reason.BAD_AUDIO),
        (line(audio=["a.wav", " "]), Reason.BAD_AUDIO),
        (line(audio=[1]), Reason.BAD_AUDIO),
        (line(audio=[None]), Reason.BAD_AUDIO),
        (line(audio={"path": "a.wav"}), Reason.BAD_AUDIO),
        (line(audio=["a.wav"] * 17), Reason.TOO_MANY_CLIPS),
        (line(audio="nosuch://a.wav"), Reason.BAD_URI),
        (line(audio="data:audio/wav;base64,AAAA"), Reason.BAD_URI),
        (line(audio="a\0.wav"), Reason.BAD_URI),
        (line(conversation=None), Reason.NO_CONVERSATION),
        (line(conversation=[{"from": "gpt", "value": "x"}]), Reason.TURN_ORDER),
    ],
)
def test_a_faulty_line_is_rejected_with_its_reason(raw: bytes, reason: Reason) -> None:
    rejection = judged(raw).rejection
    assert rejection
    assert (rejection.stage, rejection.reason) == (Stage.PLAN, reason)
    assert 0 < len(rejection.detail) <= 250


@pytest.mark.parametrize(
    "raw",
    [
        line(note="emoji 😀 and 中文"),
        b'{"audio": "a.wav", "conversation": [{"from":"human","value":"\\ud83d\\ude00"}]}',
        b' \t{"audio": "a.wav", "conversation": [{"from":"human","value":"x"}]} ',
        line(audio="a.wav"),
        line(score=float("nan")),
        line(deep=[[[[1]]]] * 60),
    ],
)
def test_an_unusual_line_is_still_good(raw: bytes) -> None:
    assert reason_of(raw) is None


def test_bad_utf8_is_named_by_its_offset() -> None:
    rejection = judged(b'{"a": "\xff"}').rejection
    assert rejection
    assert "0xff at offset 7" in rejection.detail


def test_a_rejected_record_keeps_its_fields() -> None:
    assert judged(b'{"id": 5}').record == {"id": 5}


def test_a_field_named_like_the_answer_column_is_refused() -> None:
    with pytest.raises(SettingsError, match="--answer-column"):
        judged(line(answer="x"))


def test_a_field_named_like_the_provenance_column_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"layout\.provenance_column"):
        judged(line(earwitness={"row": 1}))


def test_a_rejections_file_is_itself_a_manifest() -> None:
    told = {"row": 1, "stage": "fetch", "reason": "x", "detail": "y", "transient": True}
    raw = line(earwitness=told, id=1)
    planned, stored, _ = Linter(RULES).plan(RawLine(7, 8, raw))
    assert planned.record == {"audio": ["a.wav"], "conversation": TURNS, "id": 1}
    assert parse_plan_line(stored) == planned


def test_what_the_reader_rejected_stays_rejected() -> None:
    rejection = Rejection(Stage.PLAN, Reason.LINE_TOO_LONG, "long")
    planned = Linter(RULES).lint(RawLine(7, 8, None, None, rejection))
    assert planned == PlannedRow(7, None, rejection=rejection)


@pytest.mark.parametrize(
    ("root", "path", "uri"),
    [
        ("/data/set", "a.wav", "/data/set/a.wav"),
        ("/data/set", "../x/./a.wav", "/data/x/a.wav"),
        ("/data/set", "/abs/a.wav", "/abs/a.wav"),
        ("/data/set", "/a.wav", "/a.wav"),
        ("/", "a.wav", "/a.wav"),
        ("/data/set", "file:///abs/a.wav", "file:///abs/a.wav"),
        ("/data/set", "s3://b/a.wav", "s3://b/a.wav"),
        ("s3://b/set", "a.wav", "s3://b/set/a.wav"),
        ("s3://b/set", "../x/a.wav", "s3://b/x/a.wav"),
        ("s3://b", "a.wav", "s3://b/a.wav"),
        ("http://h/set", "a b.wav", "http://h/set/a b.wav"),
        ("http://h/set", "../a.wav?x=1/2", "http://h/a.wav?x=1/2"),
        ("/data/set", "..", "/data"),
    ],
)
def test_relative_clips_start_from_the_audio_root(root: str, path: str, uri: str) -> None:
    resolver = ClipResolver(root, "audio", 16)
    assert resolver.resolve({"audio": [path, path]}) == (uri, uri)


def test_a_path_out_of_the_bucket_is_rejected() -> None:
    rules = LintRules(audio_root="s3://b/set", system_prompt="")
    rejection = judged(line(audio="../../other/a.wav"), rules).rejection
    assert rejection
    assert rejection.reason is Reason.BAD_URI


@pytest.mark.parametrize(
    "path",
    ["file:/etc/passwd", "  file:///etc/passwd", "\tfile:///etc/passwd", " http:/a/b", "s3:/b"],
)
def test_a_path_beside_a_web_manifest_never_leads_out_of_the_web(path: str) -> None:
    rules = LintRules(audio_root="https://host/set", system_prompt="")
    (clip,) = judged(line(audio=path), rules).clips
    assert clip.startswith("https://host/set/")


def test_a_key_that_is_there_twice_is_found_at_once_among_many() -> None:
    keys = ",".join(f'"k{number}":1' for number in range(20_000))
    started = time.process_time()
    rejection = judged(f'{{{keys},"k19999":1}}'.encode()).rejection
    assert rejection
    assert "'k19999'" in rejection.detail
    # looking through all names before each took minutes
    assert time.process_time() - started < 1


def test_half_of_an_address_is_a_rejection() -> None:
    rules = LintRules(audio_root="https://host/set", system_prompt="")
    rejection = judged(line(audio="//[/a.wav"), rules).rejection
    assert rejection
    assert rejection.reason is Reason.BAD_URI


def test_clips_found_only_from_the_working_directory_give_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.wav").touch()
    (tmp_path / "manifests").mkdir()
    monkeypatch.chdir(tmp_path)
    hint = audio_root_hint(["clips/a.wav"], str(tmp_path / "manifests"))
    assert hint
    assert "--audio-root ." in hint
    assert audio_root_hint(["clips/a.wav"], str(tmp_path)) is None
    assert audio_root_hint(["nowhere.wav"], str(tmp_path)) is None


@given(st.binary(max_size=80))
def test_no_bytes_whatever_make_lint_raise(raw: bytes) -> None:
    assert judged(raw).rejection is not None


_text = st.text(max_size=12)
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | _numbers | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_fields = st.dictionaries(
    _text.filter(lambda name: name not in {"answer", "earwitness", "audio", "conversation"}),
    _values,
    max_size=4,
)


@given(fields=_fields, ascii_only=st.booleans())
def test_other_fields_come_through_untouched(fields: dict[str, Any], *, ascii_only: bool) -> None:
    record = {"audio": ["a.wav"], "conversation": TURNS} | fields
    raw = json.dumps(record, ensure_ascii=ascii_only).encode()
    planned, stored, _ = Linter(RULES).plan(RawLine(7, 8, raw))
    assert planned.rejection is None
    assert raw in stored
    back = parse_plan_line(stored)
    assert back == planned
    assert back.record == record


_messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.lists(
                st.fixed_dictionaries({"type": st.just("text"), "text": _text})
                | st.fixed_dictionaries({"type": st.just("audio"), "clip": st.integers(0, 9)}),
                max_size=3,
            ),
        }
    ),
    max_size=3,
)


@given(
    row=st.integers(0, 2**62),
    record=st.none() | st.dictionaries(_text, _values, max_size=3),
    clips=st.lists(_text, max_size=3),
    messages=_messages,
    rejection=st.none()
    | st.builds(Rejection, st.sampled_from(Stage), st.sampled_from(Reason), _text),
)
def test_plan_lines_round_trip(
    row: int,
    record: dict[str, Any] | None,
    clips: list[str],
    messages: list[Any],
    rejection: Rejection | None,
) -> None:
    planned = PlannedRow(row, record, tuple(clips), tuple(messages), rejection)
    stored = plan_line(None, planned)
    assert b"\n" not in stored
    assert parse_plan_line(stored) == planned
    assert parse_asked(stored) == planned._replace(record=None)
    assert parse_clips(stored) == planned.clips


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"clips":[]}'])
def test_what_is_no_line_of_a_plan_is_damage(line: bytes) -> None:
    for parse in (parse_plan_line, parse_asked):
        with pytest.raises(BuildDamagedError):
            parse(line)


def test_nan_and_big_integers_survive_the_plan() -> None:
    record = {"nan": float("nan"), "big": 10**400, "text": "中文 😀"}
    back = parse_plan_line(plan_line(None, PlannedRow(0, record))).record
    assert back
    assert back.pop("nan") != record.pop("nan")
    assert back == record


def test_a_plan_of_an_earlier_version_with_nan_in_it_is_read() -> None:
    stored = b'{"row":3,"clips":["s3://b/a.wav"],"record":{"f":NaN,"g":"\\ud83d"}}'
    assert parse_asked(stored) == PlannedRow(3, None, ("s3://b/a.wav",))
    assert parse_clips(stored) == ("s3://b/a.wav",)
    assert repr(parse_plan_line(stored).record) == repr({"f": float("nan"), "g": "\ud83d"})


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({}, "field 'audio' is missing: the record has no fields"),
        (
            {"id": 1, "audio_filepath": "a.wav"},
            "'id', 'audio_filepath' (add --audio-column audio_filepath to read that field)",
        ),
        ({"clips": ["b.flac"], "id": 1}, "(add --audio-column clips to read that field)"),
        ({"Audio": 3}, "(add --audio-column Audio to read that field)"),
        ({"id": 1, "text": "What?"}, "field 'audio' is missing; the record has 'id', 'text'"),
        ({f"f{n}": n for n in range(10)}, "'f6', 'f7' and 2 more"),
    ],
)
def test_a_record_without_audio_names_the_fields_that_are_there(
    fields: dict[str, Any], detail: str
):
    rejection = lint_line(json.dumps(fields).encode(), 0, LintRules("/data", "")).rejection
    assert rejection is not None
    assert rejection.reason is Reason.NO_AUDIO
    assert rejection.detail.endswith(detail)


def test_a_record_without_a_conversation_names_the_field_that_may_hold_it():
    turns = [{"from": "human", "value": "What?"}]
    line = json.dumps({"audio": "a.wav", "conversations": turns}).encode()
    rejection = lint_line(line, 0, LintRules("/data", "")).rejection
    assert rejection is not None
    assert "(add --conversation-column conversations to read that field)" in rejection.detail
    assert rejection.detail.endswith("and there is no --question to ask instead")
