"""A file in storage does not decide which code runs here."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from test_build_publish import MODEL, planned
from typer.testing import CliRunner

from cli import main as cli
from earwitness.builds.layout import Build
from earwitness.builds.plan import plan_build, plan_identity
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.stored import continued_engine, stored_settings
from earwitness.errors import SettingsError
from earwitness.settings import BuildSettings, EngineSettings

if TYPE_CHECKING:
    from pathlib import Path

    from workbench import WebServer

HOSTILE = [
    {"trust_remote_code": True},
    {"vllm_args": ["--trust-remote-code"]},
    {"vllm_args": ["--enforce-eager", "--trust_remote_code"]},
    {"vllm_args": ["--trust-rem"]},
    {"vllm_args": ["--middleware", "evil.Middleware"]},
    {"vllm_args": ["--worker-cls=evil.Worker"]},
    {"vllm_args": ["--config", "evil.yaml"]},
    {"vllm_args": ["--host", "::"]},
]


@pytest.mark.parametrize("engine", HOSTILE)
def test_what_runs_code_has_to_be_said_again(engine: dict):
    with pytest.raises(SettingsError, match=r"alone cannot allow it"):
        continued_engine(EngineSettings(**engine), {})
    assert continued_engine(EngineSettings(**engine), engine) == EngineSettings(**engine)


@pytest.mark.parametrize("engine", HOSTILE)
def test_where_no_engine_is_started_it_does_not_matter(engine: dict):
    for lent in ({"url": ["http://e/v1"]}, {"shards_on": "build-shard/gpu"}):
        continued_engine(EngineSettings(**engine), lent)
        continued_engine(EngineSettings(**{**engine, **lent}), {})
    assert continued_engine(EngineSettings(**engine, url=["http://e/v1"]), {}).url


def test_a_stored_command_or_interpreter_is_never_run():
    stored = EngineSettings(command=["sh", "-c", "evil"], python="/tmp/evil")
    taken_up = continued_engine(stored, {})
    assert (taken_up.command, taken_up.python) == ((), None)


def test_ordinary_flags_need_not_be_said_again():
    engine = EngineSettings(vllm_args=("--enforce-eager", "--seed", "-1", "--block-size=16"))
    assert continued_engine(engine, {}) == engine


@pytest.mark.parametrize("engine", [*HOSTILE, {"command": ["touch", "pwned"]}])
def test_retry_starts_nothing_that_only_a_stored_plan_asks_for(
    engine: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    build = planned(tmp_path)
    plan = json.loads(build.store.read_bytes("plan.json"))
    plan["settings"]["engine"] |= engine
    build.store.write_bytes("plan.json", json.dumps(plan).encode())
    found = Build(build.output.root, build.id)
    if "command" in engine:
        assert stored_settings(found.plan.settings).engine.command == ()
        return
    with pytest.raises(SettingsError, match="alone cannot allow it"):
        stored_settings(found.plan.settings)
    done = CliRunner().invoke(cli.app, ["retry", build.output.root])
    assert isinstance(done.exception, SettingsError)
    assert "alone cannot allow it" in str(done.exception)


def test_retry_goes_on_where_the_person_who_types_says_it_again(tmp_path: Path):
    build = planned(tmp_path)
    plan = json.loads(build.store.read_bytes("plan.json"))
    plan["settings"]["engine"] |= {"trust_remote_code": True, "vllm_args": ["--worker-cls", "c"]}
    build.store.write_bytes("plan.json", json.dumps(plan).encode())
    words = ["retry", build.output.root, "--trust-remote-code", "--max-num-seqs", "0"]
    # what stops it now comes after the question whether it may
    told = CliRunner().invoke(cli.app, [*words, "--", "--worker-cls", "c"])
    assert "--max-num-seqs: it has to be at least" in told.output
    assert isinstance(CliRunner().invoke(cli.app, words).exception, SettingsError)


def test_a_signed_manifest_is_stored_without_its_signature(web: WebServer, tmp_path: Path):
    line = b'{"audio": "http://h/a.wav"}\n'
    for signature in ("hidden", "other"):
        web.put(f"/m.jsonl?X-Amz-Signature={signature}", line)
    address = f"{web.url}/m.jsonl?X-Amz-Signature="
    signed, again = (
        resolve_settings(BuildSettings(manifest=address + one, output=str(tmp_path / "out")))
        for one in ("hidden", "other")
    )
    build = Build(signed.output, "b-20261122T000000Z-aaaaaa")
    plan = plan_build(build, signed, MODEL, datetime.now(tz=UTC))
    assert plan.rows == 1
    assert b"hidden" not in build.store.read_bytes("plan.json")
    # a manifest signed anew is the same manifest
    assert plan.identity == plan_identity(again, MODEL)
