"""No credential among the engine's flags; none in what is said of an engine or a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from cli import main as cli
from deployments.worker import WorkerOptions, run_worker
from earwitness.addresses import parent_uri
from earwitness.credentials import check_engine, without_known_secrets
from earwitness.engine.server import EngineServer
from earwitness.errors import SettingsError
from earwitness.settings import EngineSettings

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hf_hiddenhidden"


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["--hf-token", SECRET], "HF_TOKEN"),
        ([f"--hf-token={SECRET}"], "HF_TOKEN"),
        (["--hf_token", SECRET], "HF_TOKEN"),
        (["--hf-tok", SECRET], "HF_TOKEN"),
        (["--enforce-eager", "--api-key", SECRET], "VLLM_API_KEY"),
        (["--api-ke", SECRET], "VLLM_API_KEY"),
        (["--proxy-password", SECRET], "environment"),
        (["env", f"HF_TOKEN={SECRET}", "serve"], "HF_TOKEN"),
        (["env", f"AWS_SECRET_ACCESS_KEY={SECRET}"], "environment"),
        (["--hub", f"https://me:{SECRET}@hub"], "environment"),
    ],
)
@pytest.mark.parametrize("field", ["vllm_args", "command"])
def test_a_flag_with_a_secret_is_refused_and_not_repeated(words: list, instead: str, field: str):
    engine = EngineSettings(**{field: words})
    with pytest.raises(SettingsError, match=rf"engine\.{field}.*{instead}") as refused:
        check_engine(engine)
    assert SECRET not in str(refused.value)


def test_a_secret_of_the_environment_is_known_wherever_it_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", SECRET)
    with pytest.raises(SettingsError, match=r"engine\.vllm_args") as refused:
        check_engine(EngineSettings(vllm_args=("--extra", f'{{"auth": "{SECRET}"}}')))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--max-num-batched-tokens", "8192", "--tokenizer", "org/t", "--skip-tokenizer-init"],
        ["--ssl-keyfile", "/etc/key.pem", "--return-tokens-as-token-ids", "--seed=7"],
        ["--mm-processor-kwargs", '{"a": 1}', "--enforce-eager", "--api-server-count", "2"],
        ["token", "key", "LD_PRELOAD=libjemalloc.so", "-tp", "2"],
    ],
)
def test_ordinary_flags_are_not_refused(words: list[str]):
    check_engine(EngineSettings(vllm_args=words, command=words))


def test_a_build_refuses_them_before_anything_is_stored(tmp_path: Path):
    words = ["build", "m.jsonl", str(tmp_path / "out"), "--model", "org/m"]
    done = CliRunner().invoke(cli.app, [*words, "--", "--hf-token", SECRET])
    assert isinstance(done.exception, SettingsError)
    assert SECRET not in str(done.exception) + done.output
    assert list(tmp_path.iterdir()) == []


def test_a_worker_refuses_them_before_they_are_on_a_command_line():
    options = WorkerOptions(pool="p", engine=EngineSettings(vllm_args=("--api-key", SECRET)))
    with pytest.raises(SettingsError, match="VLLM_API_KEY"):
        run_worker(options)


def test_relative_clips_do_not_start_from_within_a_signature():
    signed = "https://b.s3/a/m.jsonl?X-Amz-Credential=AKIA/20261122/s3/aws4_request"
    assert parent_uri(signed) == "https://b.s3/a"


def test_what_an_engine_prints_is_told_without_our_secrets():
    environment = {"HF_TOKEN": SECRET, "MY_API_KEY": "key-1234", "PATH": "/usr/bin", "A_KEY": "ab"}
    told = without_known_secrets(
        f"401 for {SECRET} at https://me:pw@hub, tried key-1234, ab", environment
    )
    assert told == "401 for *** at https://***@hub, tried ***, ab"


def test_an_engine_has_a_key_of_its_own_that_no_command_line_shows(tmp_path: Path):
    servers = [
        EngineServer(EngineSettings(), "m", scratch=tmp_path, clips_per_prompt=1, log_path=tmp_path)
        for _ in range(2)
    ]
    first, second = (server._api_key for server in servers)
    assert first != second
    assert len(first) >= 32
