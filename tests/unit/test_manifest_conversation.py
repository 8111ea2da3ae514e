"""Conversations become messages by fixed rules, or rejections that say which rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.errors import BadRecordError
from earwitness.manifest.conversation import render
from earwitness.records import Reason, Stage


def human(value: Any) -> dict[str, Any]:
    return {"from": "human", "value": value}


def gpt(value: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": value}


def system(value: Any) -> dict[str, Any]:
    return {"from": "system", "value": value}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def audio(clip: int) -> dict[str, Any]:
    return {"type": "audio", "clip": clip}


def asked(conversation: Any, clips: int = 1, **options: Any) -> list[Any]:
    options = {"system_prompt": "", "question": None} | options
    return [
        (message["role"], message["content"]) for message in render(conversation, clips, **options)
    ]


def test_without_marks_all_clips_come_before_the_first_question() -> None:
    turns = [human("What is it?"), gpt("A bell."), human("And how many?")]
    assert asked(turns, 2) == [
        ("user", [audio(0), audio(1), text("What is it?")]),
        ("assistant", [text("A bell.")]),
        ("user", [text("And how many?")]),
    ]


def test_marks_place_clips_across_turns() -> None:
    turns = [human("<audio>\nWhat?"), gpt("A bell."), human("Then <audio> and <audio>?")]
    assert asked(turns, 3) == [
        ("user", [audio(0), text("What?")]),
        ("assistant", [text("A bell.")]),
        ("user", [text("Then "), audio(1), text(" and "), audio(2), text("?")]),
    ]


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("<audio>", [audio(0)]),
        ("Hear:\n<audio>", [text("Hear:"), audio(0)]),
        ("<audio>\n\nWhat?", [audio(0), text("\nWhat?")]),
        ("  What? <audio>", [text("  What? "), audio(0)]),
    ],
)
def test_one_newline_beside_a_mark_is_no_text(value: str, content: list[Any]) -> None:
    assert asked([human(value)]) == [("user", content)]


def test_a_leading_system_turn_replaces_the_default() -> None:
    turns = [system("Be brief."), human("What?")]
    assert asked(turns, system_prompt="Default.")[0] == ("system", [text("Be brief.")])


@pytest.mark.parametrize(
    "empty",
    [
        system(""),
        system(" \n\t"),
        system(None),
        {"from": "system"},
        {"role": "system", "content": ""},
        {"role": "system", "content": None},
        {"role": "system", "content": []},
        {"role": "system", "content": [text(" ")]},
    ],
)
@pytest.mark.parametrize("default", ["Default.", ""])
def test_an_empty_system_turn_is_no_system_turn(empty: dict[str, Any], default: str) -> None:
    question = {"role": "user", "content": "What?"} if "role" in empty else human("What?")
    with_turn = asked([empty, question], system_prompt=default)
    assert with_turn == asked([question], system_prompt=default)


def test_an_empty_system_turn_anywhere_is_no_system_turn() -> None:
    turns = [system(""), system("Be brief."), human("a"), gpt("b"), system(" "), human("c")]
    kept = [system("Be brief."), human("a"), gpt("b"), human("c")]
    assert asked(turns, system_prompt="Default.") == asked(kept)


def test_a_conversation_of_an_empty_system_turn_asks_nothing() -> None:
    with pytest.raises(BadRecordError) as caught:
        asked([system(" ")])
    assert caught.value.rejection.reason is Reason.NO_CONVERSATION
    assert asked([system(" ")], question="What?") == asked(None, question="What?")


def test_turns_are_counted_with_the_empty_system_turn() -> None:
    with pytest.raises(BadRecordError) as caught:
        asked([system(""), human("a"), human("b")])
    assert "turn 3" in caught.value.rejection.detail


def test_the_default_system_prompt_leads_other_conversations() -> None:
    assert asked([human("What?")], system_prompt="Default.") == [
        ("system", [text("Default.")]),
        ("user", [audio(0), text("What?")]),
    ]


def test_openai_content_may_be_text() -> None:
    turns = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A bell."},
        {"role": "user", "content": "Sure?"},
    ]
    assert [role for role, _ in asked(turns)] == ["user", "assistant", "user"]


@pytest.mark.parametrize("kind", ["audio", "audio_url", "input_audio"])
def test_openai_audio_parts_are_places_for_the_clips(kind: str) -> None:
    turns = [{"role": "user", "content": [text("Hear"), {"type": kind}, text("What?")]}]
    assert asked(turns) == [("user", [text("Hear"), audio(0), text("What?")])]


def test_null_keys_of_parquet_structs_do_not_count() -> None:
    turn = {"from": "human", "value": "What?", "role": None, "content": None}
    assert asked([turn]) == [("user", [audio(0), text("What?")])]


@pytest.mark.parametrize("nothing", [None, [], ""])
def test_a_question_stands_in_for_a_missing_conversation(nothing: Any) -> None:
    assert asked(nothing, question="Caption it.") == [("user", [audio(0), text("Caption it.")])]


def test_a_question_never_overrides_a_conversation() -> None:
    assert asked([human("What?")], question="Caption it.") == [("user", [audio(0), text("What?")])]


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (None, Reason.NO_CONVERSATION),
        ([], Reason.NO_CONVERSATION),
        ("What?", Reason.BAD_CONVERSATION),
        ({"from": "human", "value": "What?"}, Reason.BAD_CONVERSATION),
        (["What?"], Reason.BAD_CONVERSATION),
        ([None], Reason.BAD_CONVERSATION),
        ([{}], Reason.BAD_CONVERSATION),
        ([{"from": "human", "content": "What?"}], Reason.BAD_CONVERSATION),
        ([human("a"), {"role": "assistant", "content": "b"}, human("c")], Reason.BAD_CONVERSATION),
        ([human(3)], Reason.BAD_CONVERSATION),
        ([{"role": "user", "content": [{"type": "image_url"}]}], Reason.BAD_CONVERSATION),
        ([{"role": "user", "content": [{"type": ["audio"]}]}], Reason.BAD_CONVERSATION),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], Reason.BAD_CONVERSATION),
        ([human("")], Reason.EMPTY_TURN),
        ([human(" \n")], Reason.EMPTY_TURN),
        ([human(None)], Reason.EMPTY_TURN),
        ([{"from": "human"}], Reason.EMPTY_TURN),
        ([{"role": "user", "content": []}], Reason.EMPTY_TURN),
        ([human(""), system("")], Reason.EMPTY_TURN),
        ([human("a"), system(""), human("b")], Reason.TURN_ORDER),
        ([system(["no text"]), human("b")], Reason.BAD_CONVERSATION),
        ([{"from": "robot", "value": "What?"}], Reason.UNKNOWN_ROLE),
        ([{"from": "Human", "value": "What?"}], Reason.UNKNOWN_ROLE),
        ([{"from": 1, "value": "What?"}], Reason.UNKNOWN_ROLE),
        ([{"value": "What?"}], Reason.UNKNOWN_ROLE),
        ([human("a"), human("b")], Reason.TURN_ORDER),
        ([human("a"), gpt("b"), gpt("c"), human("d")], Reason.TURN_ORDER),
        ([gpt("a"), human("b")], Reason.TURN_ORDER),
        ([human("a"), system("b")], Reason.TURN_ORDER),
        ([system("a"), system("b"), human("c")], Reason.TURN_ORDER),
        ([human("a"), gpt("b")], Reason.NO_QUESTION),
        ([system("a")], Reason.NO_QUESTION),
        ([human("<audio><audio>")], Reason.AUDIO_MARK_MISMATCH),
        ([human("a"), gpt("<audio>"), human("b")], Reason.AUDIO_MARK_MISMATCH),
        ([system("<audio>"), human("b")], Reason.AUDIO_MARK_MISMATCH),
    ],
)
def test_a_broken_rule_is_a_rejection_with_its_reason(conversation: Any, reason: Reason) -> None:
    with pytest.raises(BadRecordError) as caught:
        asked(conversation)
    assert (caught.value.rejection.stage, caught.value.rejection.reason) == (Stage.PLAN, reason)
    assert 0 < len(caught.value.rejection.detail) <= 200


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just("<audio>"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "type", "text"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(conversation=_json, clips=st.integers(1, 3))
def test_every_clip_is_heard_once_in_order_or_the_record_is_rejected(
    conversation: Any, clips: int
) -> None:
    try:
        messages = render(conversation, clips, system_prompt="s", question="q")
    except BadRecordError:
        return
    parts = [part for message in messages for part in message["content"]]
    heard = [part["clip"] for part in parts if part["type"] == "audio"]
    assert heard == list(range(clips))
    assert messages[-1]["role"] == "user"
