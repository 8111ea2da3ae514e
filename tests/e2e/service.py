"""The whole service as the operating guide sets it up: what tests of it have in common."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import guide

if TYPE_CHECKING:
    from pool import Pool, Worker

HOUSE = Path(__file__).parents[2]
MODEL = Path(os.environ.get("EARWITNESS_TEST_MODEL", HOUSE / "demo_model/weights")).resolve()
STAND_IN = os.environ.get("EARWITNESS_TEST_STAND_IN", "")
"""A command that is started in vLLM's place, to work on these tests in a hurry."""
GUIDES_SERVER, GUIDES_MODEL = "http://prefect:4200", "Qwen/Qwen2-Audio-7B-Instruct"
ENGINE = {"dtype": "float32"}
"""What a build's `engine` must say to ask the model these workers serve."""
GPU_WORKERS = ("gpu-a", "gpu-b")


def here(pool: Pool) -> dict[str, object]:
    """What the guide calls by another name."""
    return {GUIDES_SERVER: pool.ui_url, GUIDES_MODEL: MODEL}


def start_gpu_worker(pool: Pool, name: str, *flags: str) -> Worker:
    """Starts the guide's worker with an engine; wait with `pool.wait_for_workers()`."""
    words = _worker_words("--pool gpu")
    # there are no two GPUs here
    given = [word.replace(GUIDES_MODEL, str(MODEL)) for word in words][:2]
    assert given == ["--model", str(MODEL)], words
    given += ["--dtype", ENGINE["dtype"], "--max-num-seqs", "8", *flags]
    if STAND_IN:
        given += ["--command", STAND_IN]
    return pool.start_worker("gpu", *given, "--", "--enforce-eager", name=name)


def start_default_worker(pool: Pool, name: str = "parents") -> Worker:
    """Starts the guide's worker for parents."""
    return pool.start_worker("default", *_worker_words("--pool default"), name=name)


def _worker_words(pool: str) -> list[str]:
    start = f"earwitness worker {pool}"
    return shlex.split(guide.line(start).removeprefix(start))
