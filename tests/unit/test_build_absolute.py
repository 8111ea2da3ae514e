"""In a deployment's run no setting names a place that is deleted with the run."""

from __future__ import annotations

from typing import Any

import pytest

from earwitness.builds.absolute import check_absolute
from earwitness.errors import SettingsError
from earwitness.settings import BuildSettings


def settings(**changes: Any) -> BuildSettings:
    whole = {"manifest": "s3://bucket/m.jsonl", "output": "/data/out", "model": "owner/name"}
    return BuildSettings.model_validate({**whole, **changes})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("manifest", {"manifest": "clips.jsonl"}),
        ("manifest", {"manifest": "./clips.jsonl"}),
        ("manifest", {"manifest": "~/clips.jsonl"}),
        ("manifest", {"manifest": "file:clips.jsonl"}),
        ("output", {"output": "out"}),
        ("output", {"output": "."}),
        ("output", {"output": "../out"}),
        ("output", {"output": "~/out"}),
        ("output", {"output": "~"}),
        ("output", {"output": "file://out"}),
        ("output", {"output": "file:/out"}),
        ("output", {"output": "FILE:out"}),
        ("output", {"output": '"~/out"'}),
        ("output", {"output": " /data/out"}),
        ("output", {"output": "s3:/bucket/out"}),
        ("output", {"output": "s3:bucket/out"}),
        ("question", {"question": "@question.txt"}),
        ("question", {"question": "@~/question.txt"}),
        ("model", {"model": "./weights"}),
        ("model", {"model": "~/weights"}),
        ("model", {"model": "models/qwen/weights"}),
        ("model", {"model": "weights/"}),
        ("model", {"model": "file:weights"}),
        ("input.audio_root", {"input": {"audio_root": "clips"}}),
        ("input.audio_root", {"input": {"audio_root": "~/clips"}}),
        ("input.allow", {"input": {"allow": ["/data/", "clips/"]}}),
        ("input.allow", {"input": {"allow": ["./"]}}),
        ("engine.chat_template", {"engine": {"chat_template": "template.jinja"}}),
        ("engine.hub_cache", {"engine": {"hub_cache": "hub"}}),
        ("engine.python", {"engine": {"python": ".venv/bin/python"}}),
        ("engine.command", {"engine": {"command": ["./serve", "--x"]}}),
        ("engine.vllm_args", {"engine": {"vllm_args": ["--download-dir", "models"]}}),
        ("engine.vllm_args", {"engine": {"vllm_args": ["--download-dir=./models"]}}),
        ("engine.vllm_args", {"engine": {"vllm_args": ["--tokenizer", "../tokenizer"]}}),
    ],
)
def test_a_relative_path_is_refused_by_the_settings_name(name: str, changes: dict[str, Any]):
    with pytest.raises(SettingsError) as refused:
        check_absolute(settings(**changes))
    assert str(refused.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"manifest": "/data/clips.jsonl"},
        {"manifest": "hf://datasets/owner/name/clips.jsonl"},
        {"output": "file:///data/out"},
        {"output": "file://localhost/data/out"},
        {"output": "s3a://bucket/out"},
        {"output": "S3://bucket/out"},
        {"question": "What do you hear in ./this?"},
        {"question": "@/data/question.txt"},
        {"model": "/data/weights"},
        {"model": "gpt2"},
        {"model": "./served", "engine": {"url": ["http://gpu1:8000/v1"]}},
        {"input": {"audio_root": "s3://bucket/clips"}},
        {"input": {"allow": ["/data/", "host", "host:80", "10.0.0.0/8", "file:///data/"]}},
        {"engine": {"chat_template": "{{ messages }}"}},
        {"engine": {"chat_template": "/data/template.jinja"}},
        {"engine": {"python": "python3", "command": ["serve"]}},
        {"engine": {"vllm_args": ["--enforce-eager", "--tokenizer", "owner/name"]}},
    ],
)
def test_what_means_the_same_everywhere_is_taken(changes: dict[str, Any]):
    check_absolute(settings(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": "out"}, "Give an absolute path such as /data/dataset, or a URL such as s3://"),
        ({"output": "s3:/bucket/out"}, "did you mean s3://bucket/out?"),
        ({"question": "@q.txt"}, "such as @/data/question.txt"),
    ],
)
def test_the_refusal_says_what_to_give_instead(changes: dict[str, Any], said: str):
    with pytest.raises(SettingsError, match=r"relative path|nor a URL") as refused:
        check_absolute(settings(**changes))
    assert said in str(refused.value)
