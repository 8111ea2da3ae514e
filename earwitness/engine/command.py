"""The command line that starts vLLM, made from the settings."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from earwitness.cpus import usable_cpus

if TYPE_CHECKING:
    from earwitness.settings import EngineSettings

LAUNCHER = Path(__file__).with_name("launcher.py")
HOST = "127.0.0.1"
_MOST_API_SERVERS = 8
_CORES_PER_API_SERVER = 4


def serve_command(
    settings: EngineSettings,
    model: str,
    *,
    scratch: Path,
    port: int,
    api_key: str,
    clips_per_prompt: int,
) -> tuple[list[str], dict[str, str]]:
    """The command that starts the engine, and what it adds to the environment.

    Args:
        settings: The engine's settings.
        model: Local folder or hub id.
        scratch: The only folder the engine may read clips from.
        port: Where it listens, on the loopback.
        api_key: Travels by environment: everyone on the machine can read a command line.
        clips_per_prompt: Most clips in one record.

    Returns:
        The command, word by word, and the environment's additions.
    """
    launch = [settings.python or sys.executable, str(LAUNCHER), "serve"]
    command = [*(settings.command or launch), model]
    command += ["--host", HOST, "--port", str(port), "--served-model-name", model]
    command += ["--allowed-local-media-path", str(scratch.resolve())]
    command += ["--limit-mm-per-prompt", json.dumps({"audio": clips_per_prompt})]
    command += ["--max-num-seqs", str(settings.max_num_seqs)]
    command += ["--api-server-count", str(_api_servers(settings))]
    # requests name every sampling parameter; the model's own defaults (and its hidden limit on
    # the answer's length) must not come in beside them
    command += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    command += _model_flags(settings)
    return [*command, *settings.vllm_args], _environment(settings, model, api_key)


def _model_flags(settings: EngineSettings) -> list[str]:
    flags: list[str] = []
    for name in (
        "revision",
        "gpu_memory_utilization",
        "max_model_len",
        "dtype",
        "quantization",
        "chat_template",
    ):
        value = getattr(settings, name)
        if value is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    for name in ("tensor_parallel_size", "data_parallel_size"):
        count = getattr(settings, name)
        if count > 1:
            flags += [f"--{name.replace('_', '-')}", str(count)]
    if settings.trust_remote_code:
        flags.append("--trust-remote-code")
    return flags


def _api_servers(settings: EngineSettings) -> int:
    if settings.api_server_count:
        return settings.api_server_count
    by_cores = min(_MOST_API_SERVERS, usable_cpus() // _CORES_PER_API_SERVER or 1)
    # vLLM's own default is one for each replica: never go below it
    return max(by_cores, settings.data_parallel_size)


def _environment(settings: EngineSettings, model: str, api_key: str) -> dict[str, str]:
    env = {
        "VLLM_API_KEY": api_key,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if settings.hub_cache is not None:
        env["HF_HUB_CACHE"] = settings.hub_cache
    if Path(model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    # read on CPUs only; without them vLLM takes 4 GiB, and wants one NUMA node a worker
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    workers = settings.tensor_parallel_size * settings.data_parallel_size
    if workers > 1:
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = split_cores(_cores(), workers)
    return env | {name: value for name, value in defaults.items() if name not in os.environ}


def split_cores(cores: list[int], workers: int) -> str:
    """Shares cores out to workers, as vLLM's VLLM_CPU_OMP_THREADS_BIND wants it.

    Args:
        cores: Ids of the cores to use.
        workers: How many workers.

    Returns:
        `0,1|2,3` for four cores and two workers; with fewer cores than workers they share.
    """
    share = len(cores) // workers
    if share == 0:
        return "|".join(str(cores[number % len(cores)]) for number in range(workers))
    groups = (cores[number * share : (number + 1) * share] for number in range(workers))
    return "|".join(",".join(map(str, group)) for group in groups)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))
