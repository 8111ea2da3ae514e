"""What is on the GPUs already is named before an engine is started there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from deployments.gpus import check_gpus
from earwitness.engine.command import LAUNCHER
from earwitness.engine.guardian import start_guarded
from earwitness.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GPUS = "0, GPU-aaaa, NVIDIA H100\\n1, GPU-bbbb, NVIDIA H100\\n"
# a stand-in for nvidia-smi, which is not on every machine: it answers the two questions we ask it
NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) printf '{gpus}' ;;
  *) printf '{apps}' ;;
esac
exit {status}
"""
TITLES = ["VLLM::EngineCore", f"{sys.executable} {LAUNCHER} serve"]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def make(apps: str = "", gpus: str = GPUS, status: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(NVIDIA_SMI.format(gpus=gpus, apps=apps, status=status))
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return make


def test_free_gpus_are_fine(nvidia_smi: Callable[..., None]):
    nvidia_smi()
    check_gpus(2)


def test_who_holds_a_gpu_is_named(nvidia_smi: Callable[..., None]):
    nvidia_smi(apps=f"GPU-aaaa, {os.getpid()}, python, 71234\\n")
    with pytest.raises(FatalError) as raised:
        check_gpus(1)
    for said in ("GPU 0 (NVIDIA H100)", f"process {os.getpid()}", "pytest", "71,234 MiB", "user "):
        assert said in str(raised.value)


def test_another_containers_process_is_told_by_the_drivers_name(nvidia_smi: Callable[..., None]):
    nvidia_smi(apps="GPU-aaaa, 4194999, /usr/bin/train, [N/A]\\n")
    with pytest.raises(FatalError, match=r"4194999 \(/usr/bin/train"):
        check_gpus(1)


@pytest.mark.parametrize("visible", ["1", "GPU-bbbb", "1,7,0"])
def test_a_worker_with_other_gpus_is_not_refused(
    visible: str, nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    nvidia_smi(apps=f"GPU-aaaa, {os.getpid()}, python, 100\\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check_gpus(2)


def test_gpus_the_engine_does_not_take_may_be_taken(nvidia_smi: Callable[..., None]):
    nvidia_smi(apps=f"GPU-bbbb, {os.getpid()}, python, 100\\n")
    check_gpus(1)
    with pytest.raises(FatalError, match="GPU 1"):
        check_gpus(2)


def test_a_driver_that_does_not_answer_is_told(nvidia_smi: Callable[..., None]):
    nvidia_smi(gpus="Failed to initialize NVML", status=9)
    with pytest.raises(FatalError, match="Failed to initialize NVML"):
        check_gpus(1)


def _command(title: str) -> list[str]:
    """A process whose command line begins as one of vLLM's does."""
    return ["bash", "-c", f"exec -a '{title}' sleep 60"]


def _refused(said: str) -> bool:
    try:
        check_gpus(1)
    except FatalError as error:
        return said in str(error)
    return False


@pytest.mark.parametrize("title", TITLES)
def test_an_engine_whose_owner_is_gone_is_named(title: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    orphan = subprocess.Popen(_command(title))
    try:
        limit = time.monotonic() + 10
        while not _refused(f"process {orphan.pid} ("):
            assert time.monotonic() < limit
            time.sleep(0.05)
    finally:
        orphan.kill()
        orphan.wait()


@pytest.mark.parametrize("title", TITLES)
def test_an_engine_that_has_its_owner_is_none_of_our_concern(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    owned = start_guarded(_command(title), log_path=tmp_path / "log")
    try:
        time.sleep(0.5)
        check_gpus(1)
    finally:
        owned.stop()
