"""The command line, real vLLM, the examples: local and on S3, one worker and two, twice."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import safetensors.numpy

import earwitness

HOUSE = Path(__file__).parents[2]
MODEL = Path(os.environ.get("EARWITNESS_TEST_MODEL", HOUSE / "demo_model/weights")).resolve()
GOOD_ROWS = 18
SEEDED = ("--model", str(MODEL), "--seed", "1")
"""How builds are made that are compared byte for byte."""

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's home of its own: Prefect's database, remembered digests."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def earwitness_build(home: Path):
    def run(manifest: Path | str, output: Path | str, *options: str, **environment: str) -> str:
        command = [Path(sys.executable).parent / "earwitness", "build", manifest, output]
        command += ["--dtype", "float32", "--max-tokens", "24", "--max-num-seqs", "8", *options]
        given = {"PREFECT_HOME": str(home / "prefect"), "XDG_CACHE_HOME": str(home / "cache")}
        done = subprocess.run(
            [*map(str, command), "--", "--enforce-eager"],
            env={**os.environ, **given, **environment},
            cwd=HOUSE,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def first(earwitness_build, home: Path) -> tuple[Path, str]:
    """The examples built once: the output and what was printed."""
    output = home / "out"
    return output, earwitness_build("examples/manifest.jsonl", output, *SEEDED)


def facts(output: Path) -> dict:
    build = json.loads((output / "latest.json").read_bytes())["build"]
    return json.loads((output / "builds" / build / "build.json").read_bytes())


def data_digests(found: dict) -> dict[str, str]:
    return {
        f["path"]: f["sha256"] for f in found["files"] if f["path"].startswith(("data/", "jsonl/"))
    }


def test_every_row_is_answered_or_rejected_with_its_reason(first):
    output, _ = first
    counts = facts(output)["counts"]
    assert counts["rows"] == counts["answered"] + counts["rejected"] == GOOD_ROWS + 2
    assert counts["reasons"] == {"clip_missing": 1, "not_audio": 1}
    assert facts(output)["versions"]["engine"].startswith("0.")


def test_every_answer_is_what_a_person_hears(first):
    output, _ = first
    heard = earwitness.load(str(output))
    wrong = heard[heard["answer"] != heard["expected"]]
    assert wrong.empty, wrong[["id", "answer", "expected"]]


def test_a_line_for_each_answer_and_each_rejection_is_printed(first):
    output, printed = first
    for answer in earwitness.load(str(output))["answer"]:
        assert answer.split()[0] in printed
    assert "clip_missing" in printed
    assert "not_audio" in printed


def test_the_second_run_starts_no_engine_and_publishes_the_same_bytes(first, earwitness_build):
    output, _ = first
    before = facts(output)
    printed = earwitness_build(
        "examples/manifest.jsonl", output, *SEEDED, "--command", "/bin/false"
    )
    assert "0 engine requests, 0 downloads" in printed
    after = facts(output)
    assert after["build"] != before["build"]
    assert after["counts"]["reused"] == GOOD_ROWS
    assert after["counts"]["generated"] == 0
    assert data_digests(after) == data_digests(before)


def test_two_workers_on_s3_write_the_bytes_of_one_worker_on_disk(
    first, earwitness_build, s3_bucket
):
    output, _ = first
    bucket, environment = s3_bucket
    shutil.copytree(HOUSE / "examples", bucket / "examples")
    earwitness_build(
        "s3://bucket/examples/manifest.jsonl",
        "s3://bucket/out",
        *(*SEEDED, "--tensor-parallel-size", "2"),
        **environment,
    )
    remote = facts(bucket / "out")
    assert remote["counts"]["generated"] == GOOD_ROWS
    assert data_digests(remote) == data_digests(facts(output))


def test_changed_weights_in_the_same_folder_are_asked_again(earwitness_build, first, home: Path):
    output, _ = first
    model = home / "model"
    shutil.copytree(MODEL, model)
    weights = model / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    name = next(name for name in tensors if name.endswith("lm_head.weight"))
    tensors[name] = tensors[name][::-1].copy()
    earwitness_build("examples/manifest.jsonl", output, "--model", str(model), "--dry-run")
    safetensors.numpy.save_file(tensors, weights, metadata={"format": "pt"})
    earwitness_build("examples/manifest.jsonl", output, "--model", str(model))
    assert facts(output)["counts"]["generated"] == GOOD_ROWS


def test_the_dataset_opens_in_datasets_and_pandas(first):
    import datasets
    import pandas as pd

    output, _ = first
    folder = output / "builds" / facts(output)["build"]
    opened = datasets.load_dataset(str(folder))["train"]
    assert opened.num_rows == GOOD_ROWS
    frame = pd.read_parquet(folder / "data")
    assert list(frame["answer"]) == list(opened["answer"])


def test_s3_output_loads_by_its_address(s3_bucket, monkeypatch: pytest.MonkeyPatch):
    _, environment = s3_bucket
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    assert len(earwitness.load("s3://bucket/out")) == GOOD_ROWS
