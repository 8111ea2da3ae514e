"""Who is on this machine's GPUs already: found and named before an engine is started there."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from earwitness.engine import guardian
from earwitness.engine.command import LAUNCHER
from earwitness.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Mapping

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_TIMEOUT_S = 30
_COMMAND_CHARS = 100
_API_SERVER = re.compile(r"\bvllm\b.*\bserve\b|vllm\.entrypoints|launcher\.py serve\b")
_ENGINE_PART = re.compile(r"^VLLM::\w+")
"""vLLM names its other processes so: EngineCore, Worker, DPCoordinator…"""


@dataclass(frozen=True, slots=True)
class _Gpu:
    index: str
    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    command: str
    user: str
    gpus: str | None


def check_gpus(wanted: int) -> None:
    """Make sure that nothing is in the way of an engine.

    Args:
        wanted: How many GPUs the engine takes: the first ones that are visible.

    Raises:
        FatalError: Other processes hold memory on them, or an engine whose owner is gone still
            runs; each is named.
    """
    processes = _processes()
    found = [*_holders(wanted, processes), *_stale(processes)]
    if found:
        raise FatalError("\n".join(dict.fromkeys(found)))


def _holders(wanted: int, processes: Mapping[int, _Process]) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    gpus = [_Gpu(*row[:3]) for row in _ask("--query-gpu=index,uuid,name")]
    ours = {gpu.uuid: gpu for gpu in _visible(gpus)[:wanted]}
    told = []
    for row in _ask("--query-compute-apps=gpu_uuid,pid,process_name,used_memory"):
        uuid, pid, name, memory = row[:4]
        gpu = ours.get(uuid)
        if gpu is not None:
            told.append(_told(gpu, int(pid), name, memory, processes))
    return told


def _told(gpu: _Gpu, pid: int, name: str, memory: str, processes: Mapping[int, _Process]) -> str:
    process = processes.get(pid)
    # a process of another container: the driver sees it, we do not
    who = (
        f"{_short(process.command)}, user {process.user}"
        if process
        else f"{name}, outside this container"
    )
    amount = f"{int(memory):,} MiB" if memory.isdigit() else "memory"
    return (
        f"GPU {gpu.index} ({gpu.name}) is in use: process {pid} ({who}) has allocated {amount} on "
        f"it. End this process (kill {pid}), or give this worker other GPUs with {_VISIBLE}"
    )


def _ask(query: str) -> list[list[str]]:
    """What nvidia-smi answers, line by line; nothing where it cannot."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        reply = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FatalError(f"nvidia-smi does not work: {error}") from error
    if reply.returncode:
        said = " ".join((reply.stdout + reply.stderr).split())
        raise FatalError(f"nvidia-smi does not work (status {reply.returncode}): {said}")
    return [
        [word.strip() for word in line.split(",")] for line in reply.stdout.splitlines() if line
    ]


def _visible(gpus: list[_Gpu]) -> list[_Gpu]:
    """The GPUs that CUDA would show, in its order."""
    named = os.environ.get(_VISIBLE)
    if named is None:
        return gpus
    chosen = []
    for word in map(str.strip, named.split(",")):
        # CUDA reads up to the first one that is not there, and takes the start of an id
        found = [g for g in gpus if word == g.index or (word and g.uuid.startswith(word))]
        if not found:
            break
        chosen.append(found[0])
    return chosen


def _stale(processes: Mapping[int, _Process]) -> list[str]:
    """Parts of engines whose owner is gone."""
    told = []
    for process in processes.values():
        above = _ancestors(process, processes)
        # the guardian's own command names the engine's: it sees to its end itself
        guarded = any(guardian.__file__ in one.command for one in (process, *above))
        served = any(_API_SERVER.search(one.command) for one in above)
        launched = f"{LAUNCHER} serve" in process.command
        orphan = _ENGINE_PART.match(process.command) is not None and not served
        if (launched or orphan) and not guarded and not _elsewhere(process):
            told.append(
                f"an engine still runs, although its worker has ended: process {process.pid} "
                f"({_short(process.command)}, user {process.user}). End it: kill -9 {process.pid}"
            )
    return told


def _ancestors(process: _Process, processes: Mapping[int, _Process]) -> list[_Process]:
    found: list[_Process] = []
    above = processes.get(process.parent)
    while above is not None and above not in found:
        found.append(above)
        above = processes.get(above.parent)
    return found


def _elsewhere(process: _Process) -> bool:
    """True when it is known to run on other GPUs than ours."""
    ours = os.environ.get(_VISIBLE)
    if not ours or not process.gpus:
        return False
    return not set(ours.split(",")) & set(process.gpus.split(","))


def _processes() -> dict[int, _Process]:
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            words = (entry / "cmdline").read_bytes().split(b"\0")
            state, parent = stat.rpartition(")")[2].split()[:2]
            uid = entry.stat().st_uid
        except (OSError, ValueError):
            continue  # it ended while it was being read
        if state in "ZX":
            continue
        command = b" ".join(words).decode("utf-8", "replace").strip()
        pid = int(entry.name)
        found[pid] = _Process(pid, int(parent), command, _user(uid), _gpus_of(entry))
    return found


def _gpus_of(entry: Path) -> str | None:
    prefix = f"{_VISIBLE}=".encode()
    try:
        variables = (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    given = (one.removeprefix(prefix) for one in variables if one.startswith(prefix))
    return next((value.decode() for value in given), None)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _short(command: str) -> str:
    return command if len(command) <= _COMMAND_CHARS else f"{command[: _COMMAND_CHARS - 1]}…"
