"""A record decides what is asked, and nothing else of the request or of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.engine.command import serve_command
from earwitness.engine.wire import AskRequest, chat_payload
from earwitness.manifest.lint import LintRules, lint_line
from earwitness.settings import EngineSettings, SamplingSettings

KEYS = {"model", "messages", "max_tokens", "temperature", "top_p", "top_k"} | {
    "repetition_penalty", "seed", "stream",
}  # fmt: skip
EXTRA = {
    "model": "other", "stream": True, "n": 99, "tools": [{"type": "function"}], "max_tokens": 10**9,
    "chat_template": "{{ evil }}", "chat_template_kwargs": {"x": 1}, "extra_body": {"x": 1},
    "mm_processor_kwargs": {"x": 1}, "guided_json": {}, "logits_processors": ["evil.f"],
    "add_generation_prompt": False, "continue_final_message": True, "priority": -1, "user": "u",
}  # fmt: skip


def asked(conversation: Any, **others: Any) -> dict[str, Any] | None:
    record = {"audio": ["a.wav"], "conversation": conversation, **others}
    rules = LintRules(audio_root="/d", system_prompt="", ignore_fields=("tools",))
    row = lint_line(json.dumps(record).encode(), 0, rules)
    if row.rejection is not None:
        return None
    clips = (Path("/scratch/1.wav"),)
    request = AskRequest(row.messages, clips, SamplingSettings(), max_tokens=7, seed=3)
    return chat_payload(request, "m", inline=False)


def check(body: dict[str, Any]) -> None:
    assert set(body) == KEYS
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 7, False)
    for message in body["messages"]:
        assert set(message) == {"role", "content"}
        parts = [] if isinstance(message["content"], str) else message["content"]
        for part in parts:
            clip = {"type": "audio_url", "audio_url": {"url": "file:///scratch/1.wav"}}
            assert part == clip or (set(part) == {"type", "text"} and part["type"] == "text")


def test_a_records_other_fields_never_reach_the_engine():
    turn = {"from": "human", "value": "What?"}
    body = asked([turn], **EXTRA)
    assert body is not None
    check(body)
    assert body == asked([turn])


def test_a_turns_other_fields_never_reach_the_engine():
    body = asked([{"role": "user", "content": "What?", "name": "n", "tool_calls": [EXTRA]}])
    assert body is None or check(body) is None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "text", "text": "What?", "audio_url": {"url": "file:///etc/passwd"}},
    ],
)
def test_a_conversation_brings_no_addresses_of_its_own(part: dict):
    body = asked([{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}])
    if body is not None:
        check(body)


@given(
    st.dictionaries(
        st.sampled_from(sorted(EXTRA)) | st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        max_size=5,
    )
)
def test_no_field_whatever_reaches_the_engine(fields: dict[str, Any]):
    fields = {name: fields[name] for name in fields if name not in {"audio", "conversation"}}
    body = asked([{"from": "human", "value": "What?"}], **fields)
    if body is not None:
        check(body)


@pytest.mark.parametrize("setting", ["trust_remote_code", "chat_template"])
def test_what_runs_a_models_code_or_replaces_its_template_is_off_unless_asked_for(setting: str):
    def command(**settings: Any) -> list[str]:
        words, _ = serve_command(
            EngineSettings(**settings),
            "org/m",
            scratch=Path("/s"),
            port=1,
            api_key="k",
            clips_per_prompt=1,
        )
        return words

    flag = f"--{setting.replace('_', '-')}"
    assert not [word for word in command() if "trust" in word or "template" in word]
    value: Any = True if setting == "trust_remote_code" else "x.jinja"
    assert flag in command(**{setting: value})
