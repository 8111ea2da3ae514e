"""Requests as the chat API wants them; replies as records' fates."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.engine.address import ServedModel, base_url
from earwitness.engine.given import pick_model, slots_of
from earwitness.engine.replies import (
    Trouble,
    parse_metrics,
    read_reply,
    replica_metrics,
    retry_after_s,
    steady,
)
from earwitness.engine.wire import AskRequest, chat_payload
from earwitness.errors import CredentialsError, ModelIdentityError, SettingsError
from earwitness.records import Answer, Reason
from earwitness.settings import EngineSettings, SamplingSettings
from tests.support.standin_answers import natural_words, read_request


@pytest.fixture
def request_of_two_clips(tmp_path):
    clips = (tmp_path / "one clip.wav", tmp_path / "zwei.wav")
    for clip in clips:
        clip.write_bytes(clip.name.encode())
    messages = (
        {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
        {
            "role": "user",
            "content": [
                {"type": "audio", "clip": 1},
                {"type": "text", "text": "听到什么?"},
                {"type": "audio", "clip": 0},
            ],
        },
    )
    return AskRequest(messages, clips, SamplingSettings(), max_tokens=7, seed=3)


def read(status, body, model="m"):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_reply(status, raw, url="http://e", model=model)


def reply(finish_reason="stop", content="hello"):
    return {
        "choices": [{"message": {"content": content}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }


def test_every_sampling_parameter_is_named_so_that_no_default_decides(request_of_two_clips):
    payload = chat_payload(request_of_two_clips, "m", inline=False)
    assert payload.items() >= {
        "model": "m", "max_tokens": 7, "temperature": 0.3, "top_p": 0.9, "top_k": 0,
        "repetition_penalty": 1.0, "seed": 3, "stream": False,
    }.items()  # fmt: skip


def test_without_a_seed_none_is_sent(request_of_two_clips):
    payload = chat_payload(replace(request_of_two_clips, seed=None), "m", inline=False)
    assert "seed" not in payload


def test_clips_go_where_their_parts_are(request_of_two_clips):
    payload = chat_payload(request_of_two_clips, "m", inline=True)
    parts = payload["messages"][1]["content"]
    sent = [base64.b64decode(part["input_audio"]["data"]) for part in (parts[0], parts[2])]
    assert sent == [b"zwei.wav", b"one clip.wav"]
    assert parts[1] == {"type": "text", "text": "听到什么?"}


def test_a_clips_address_is_quoted(request_of_two_clips):
    payload = chat_payload(request_of_two_clips, "m", inline=False)
    assert payload["messages"][1]["content"][2]["audio_url"]["url"].endswith("/one%20clip.wav")


def test_a_clips_address_is_below_the_real_folder_whatever_way_led_there(tmp_path):
    real, link = tmp_path / "real folder", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    content = [{"type": "audio", "clip": 0}, {"type": "text", "text": "?"}]
    messages = ({"role": "user", "content": content},)
    asked = AskRequest(messages, (link / "a.wav",), SamplingSettings(), max_tokens=1, seed=0)
    payload = chat_payload(asked, "m", inline=False)
    url = payload["messages"][0]["content"][0]["audio_url"]["url"]
    assert url == f"file://{tmp_path.resolve()}/real%20folder/a.wav"


def test_clips_inline_or_by_address_are_the_same_to_the_stand_in(request_of_two_clips, tmp_path):
    both = [
        read_request(chat_payload(request_of_two_clips, "m", inline=inline), tmp_path)
        for inline in (True, False)
    ]
    assert both[0] == both[1]


def test_the_stand_in_reads_nothing_outside_its_folder(request_of_two_clips, tmp_path):
    payload = chat_payload(request_of_two_clips, "m", inline=False)
    with pytest.raises(ValueError, match="subpath"):
        read_request(payload, tmp_path / "other")


def test_the_stand_ins_longer_answer_continues_the_shorter_one(request_of_two_clips, tmp_path):
    asked = read_request(chat_payload(request_of_two_clips, "m", inline=True), tmp_path)
    assert natural_words(asked, 30)[:10] == natural_words(asked, 10)


def test_an_answer_is_read_with_its_counts():
    assert read(200, reply()) == Answer("hello", "stop", 5, 2)


def test_an_answer_may_be_empty():
    assert read(200, reply(content="")).text == ""


def test_a_model_cut_while_it_thinks_says_nothing():
    told = reply("length", content=None)
    told["choices"][0]["message"]["reasoning_content"] = "Hm"
    assert read(200, told).text == ""


@pytest.mark.parametrize("content", [None, ["a"], {"text": "a"}, 7, "\ud800"])
def test_what_is_no_text_is_no_answer(content):
    assert read(200, reply(content=content)) is Trouble.GARBAGE


@pytest.mark.parametrize("usage", [{"prompt_tokens": 2**70}, {"completion_tokens": -1}, [1]])
def test_counts_that_cannot_be_stored_are_no_answer(usage):
    assert read(200, {**reply(), "usage": usage}) is Trouble.GARBAGE


def test_nesting_without_end_is_no_answer():
    assert read(200, b"[" * 100_000) is Trouble.GARBAGE


@pytest.mark.parametrize(("status", "body"), [(400, b"<html>"), (413, b""), (405, b"{}"),
                                              (302, b""), (408, b'{"error": {}}')])  # fmt: skip
def test_only_the_apis_own_words_refuse_a_record(status, body):
    assert read(status, body) is Trouble.SERVER_ERROR


@pytest.mark.parametrize(("header", "seconds"), [("2", 2), ("1e9", 60), ("-1", 0), ("nan", 0),
    ("soon", 0), (None, 0), ("Thu, 01 Jan 2099 00:00:00 GMT", 60)])  # fmt: skip
def test_an_engine_is_left_alone_as_long_as_it_asks_but_not_for_ever(header, seconds):
    assert retry_after_s(header) == seconds


@pytest.mark.parametrize("finish_reason", ["abort", "error", None])
def test_what_a_dying_engine_ends_is_no_answer(finish_reason):
    assert read(200, reply(finish_reason)) is Trouble.SERVER_ERROR


@given(st.binary())
def test_no_reply_of_an_engine_is_taken_for_an_answer_by_mistake(body):
    assert read(200, body) is Trouble.GARBAGE


@pytest.mark.parametrize(
    ("status", "trouble"),
    [(429, Trouble.BUSY), (503, Trouble.BUSY), (500, Trouble.SERVER_ERROR),
     (502, Trouble.SERVER_ERROR)],
)  # fmt: skip
def test_passing_trouble_is_no_rejection(status, trouble):
    assert read(status, b"gone wrong") is trouble


@pytest.mark.parametrize(
    "message",
    [
        "The decoder prompt (length 900) is longer than the maximum model length of 800. Make",
        "This model's maximum context length is 512 tokens. However, you requested 600",
        "The prompt plus the requested output tokens is longer than the maximum model length of 8.",
        "'max_tokens' or 'max_completion_tokens' is too large: 4096.",
    ],
)
def test_too_much_for_the_context_is_told_apart(message):
    rejection = read(400, {"error": {"message": message}})
    assert rejection.reason is Reason.CONTEXT_OVERFLOW
    assert rejection.detail == message


@pytest.mark.parametrize("status", [400, 413, 422])
def test_another_refusal_carries_the_engines_words(status):
    rejection = read(status, {"error": {"message": "Audio is broken"}})
    assert (rejection.reason, rejection.detail) == (Reason.ENGINE_REFUSED, "Audio is broken")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b"", CredentialsError),
        (403, b"", CredentialsError),
        (404, b'{"error": {"message": "The model `x` does not exist."}}', ModelIdentityError),
        (404, b"<html>", SettingsError),
    ],
)
def test_what_a_person_must_change_ends_the_build(status, body, error):
    with pytest.raises(error):
        read(status, body)


def test_details_do_not_vary_between_runs():
    varying = "Cannot open file:///tmp/a1/x.wav for chatcmpl-9f8e at /run/9/b.wav (0x7ffe)"
    assert steady(varying) == "Cannot open <clip> for <id> at <path> (<id>)"


@given(st.text())
def test_details_are_short_and_one_line(message):
    detail = steady(message)
    assert len(detail) <= 300
    assert "\n" not in detail


@pytest.mark.parametrize("url", ["http://g:8000", "http://g:8000/", "http://g:8000/v1/"])
def test_an_address_may_end_in_v1_or_not(url):
    assert base_url(url) == "http://g:8000"


def test_an_address_needs_its_protocol():
    with pytest.raises(SettingsError):
        base_url("gpu1:8000")


def test_metrics_are_summed_over_labels():
    page = '# HELP x\nx_total{a="1"} 2\nx_total{a="2 3"} 3.0\ny 1e3\nz nonsense\n'
    assert parse_metrics(page) == {"x_total": 5.0, "y": 1000.0}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0, 1), {0: 1.0, 1: 3.0}),
        ((0,), {0: 1.0}),
        # one server of several, whose replicas cannot be asked for by these numbers
        ((2, 3), {}),
        ((), {}),
    ],
)
def test_counters_are_read_by_replica(numbers, expected):
    lines = [
        f'x_total{{engine="{number}",model_name="a b"}} {place * 2 + 1}\n'
        for place, number in enumerate(numbers)
    ]
    page = "# HELP x_total\n" + "".join(lines) + 'y_total{engine="7"} 1\nx_total 5\n'
    assert replica_metrics(page, {"x_total"}) == expected


def test_the_only_served_model_needs_no_name(served):
    assert pick_model(None, served("m")) == "m"


def test_several_served_models_need_a_name(served):
    with pytest.raises(ModelIdentityError, match="--model"):
        pick_model(None, served("m", "n"))


def test_a_model_not_served_is_refused(served):
    with pytest.raises(ModelIdentityError, match="serves m, not n"):
        pick_model("n", served("m"))


@pytest.fixture
def served():
    return lambda *names: [ServedModel(name) for name in names]


def test_every_replica_of_an_engine_of_our_own_has_its_slots():
    assert slots_of(EngineSettings(max_num_seqs=10, data_parallel_size=4)) == 40


def test_who_names_an_address_says_what_it_takes():
    given = EngineSettings(url=("http://gpu:8000",), max_num_seqs=10, data_parallel_size=4)
    assert slots_of(given) == 10
