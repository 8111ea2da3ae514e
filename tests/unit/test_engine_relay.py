"""What a worker's engine front tells arrives as the very same verdict or error."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from earwitness.engine.replies import Trouble, read_reply
from earwitness.engine.shared import (
    RelayedRequest,
    SharedEngine,
    error_json,
    raise_or_verdict,
    shared_engine,
    verdict_json,
)
from earwitness.errors import (
    CredentialsError,
    EarwitnessError,
    EngineStartError,
    EngineUnavailableError,
    ModelIdentityError,
    SettingsError,
)
from earwitness.identity import ModelIdentity
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from pathlib import Path

MODEL = ModelIdentity("local", "qwen", "d1", ("--dtype=float32",))


def body(**others) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "?"}], **others}
    ).encode()


@pytest.mark.parametrize(
    ("reason", "strikes"),
    [(Reason.ENGINE_CRASH, 0), (Reason.ENGINE_TIMEOUT, 0), (Reason.ENGINE_DIED, 2)],
)
def test_a_verdict_arrives_as_it_was(reason: Reason, strikes: int):
    verdict = Rejection(Stage.GENERATE, reason, "it died", strikes)
    told = json.dumps(verdict_json(verdict)).encode()
    assert read_reply(422, told, url="u", model="m") == verdict


@pytest.mark.parametrize(
    "error",
    [
        EngineStartError("out of memory", "/var/log"),
        EngineUnavailableError("none answers"),
        CredentialsError("no"),
        ModelIdentityError("another"),
        SettingsError("no API"),
    ],
)
def test_an_error_arrives_as_it_was(error: EarwitnessError):
    with pytest.raises(type(error)) as raised:
        raise_or_verdict(500, json.dumps(error_json(error)).encode())
    assert str(raised.value) == str(error)


@pytest.mark.parametrize("said", [b"", b"[]", b'{"error": "x"}', b'{"error": {"type": "other"}}'])
def test_an_engines_own_error_is_none_of_ours(said: bytes):
    assert raise_or_verdict(500, said) is None
    assert read_reply(500, said, url="u", model="m") is Trouble.SERVER_ERROR


def test_a_request_goes_on_as_it_came(tmp_path: Path):
    assert RelayedRequest(body(seed=7), tmp_path).encoded("m", inline=False) == body(seed=7)


def test_clips_travel_inside_where_the_engine_cannot_read_them(tmp_path: Path):
    clip = tmp_path / "a b.wav"
    clip.write_bytes(b"RIFF")
    url = f"file://{tmp_path}/a%20b.wav"
    parts = [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": "?"}]
    asked = RelayedRequest(body(messages=[{"role": "user", "content": parts}]), tmp_path)
    sent = json.loads(asked.encoded("other", inline=True))
    assert sent["model"] == "other"
    first, second = sent["messages"][0]["content"]
    assert base64.b64decode(first["input_audio"]["data"]) == b"RIFF"
    assert second == parts[1]


def test_nothing_outside_the_scratch_is_read(tmp_path: Path):
    parts = [{"type": "audio_url", "audio_url": {"url": "file:///etc/hostname"}}]
    asked = RelayedRequest(body(messages=[{"role": "user", "content": parts}]), tmp_path)
    with pytest.raises(SettingsError, match="read only from"):
        asked.encoded("m", inline=True)


@pytest.mark.parametrize("said", [b"{", b"[]", b'{"messages": []}', body(stream=True)])
def test_what_has_no_single_reply_is_refused(said: bytes, tmp_path: Path):
    with pytest.raises(ValueError, match=r"."):
        RelayedRequest(said, tmp_path)


def test_flow_runs_find_their_workers_engine(monkeypatch: pytest.MonkeyPatch):
    lent = SharedEngine("http://127.0.0.1:1/v1", "key", MODEL, 128)
    for name, value in lent.environment().items():
        monkeypatch.setenv(name, value)
    assert shared_engine() == lent


def test_without_a_worker_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("EARWITNESS_ENGINE_URL", raising=False)
    assert shared_engine() is None


def test_an_address_alone_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EARWITNESS_ENGINE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.delenv("EARWITNESS_ENGINE_MODEL", raising=False)
    with pytest.raises(SettingsError, match="EARWITNESS_ENGINE_MODEL"):
        shared_engine()


def planned(**others) -> dict[str, object]:
    same = {"kind": "local", "name": "qwen", "version": "d1", "arguments": ["--dtype=float32"]}
    return {**same, **others}


def test_the_same_files_under_another_name_are_the_same_model():
    SharedEngine("u", "k", MODEL, 1).check_model(planned(name="elsewhere"))


@pytest.mark.parametrize("others", [{"version": "d2"}, {"arguments": []}, {"kind": "hub"}], ids=str)
def test_another_model_is_named_with_what_to_do(others: dict[str, object]):
    with pytest.raises(ModelIdentityError, match=r"qwen.* but the worker serves qwen.*work pool"):
        SharedEngine("u", "k", MODEL, 1).check_model(planned(**others))
