"""Builds to be disturbed: what they are made of, their processes, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

import earwitness
from deployments.processes import marked
from earwitness.builds.layout import FILE_FOLDERS
from tests.integration.workbench import (
    Published,
    record,
    tone,
    write_clip,
)

if TYPE_CHECKING:
    from collections.abc import Callable


ROOT = Path(__file__).parents[2]
LIMIT_S = 600.0
GONE_WITHIN_S = 60.0
MARKER = "EARWITNESS_TEST_RUN"


class BrokenPromiseError(Exception):
    """Something that was promised did not hold."""


def hold(what: object, told: str) -> None:
    """Fail with words where a promise is broken."""
    if not what:
        raise BrokenPromiseError(told)


@dataclass(frozen=True)
class Layout:
    """How large the builds are."""

    rows: int = 2_000
    shard_rows: int = 500
    batch_rows: int = 100
    window: int = 2
    clips: int = 40

    @property
    def window_rows(self) -> int:
        return self.window * self.batch_rows

    def words(self) -> list[str]:
        flags = {"shard-rows": self.shard_rows, "batch-rows": self.batch_rows}
        flags["window-batches"] = self.window
        return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def write_dataset(folder: Path, layout: Layout) -> Path:
    """Clips and a manifest with missing and silent clips, bad lines and duplicates in it.

    The same bytes wherever they are written.
    """
    for number in range(layout.clips):
        write_clip(folder / "clips" / f"{number}.wav", tone(200 + 30 * number, 0.08))
    write_clip(folder / "clips" / "silent.wav", tone(300) * 0)
    lines = []
    for row in range(layout.rows):
        # of each four batches the last three ask what the first asks
        batch, at = divmod(row % layout.shard_rows, layout.batch_rows)
        asked = row - batch % 4 * layout.batch_rows
        name = {13: "none", 57: "silent"}.get(at, str(asked % layout.clips))
        one = json.dumps(record(f"clips/{name}.wav", f"What is number {asked}?", id=row))
        lines.append("{no JSON" if row % layout.shard_rows == 7 else one)
    manifest = folder / "m.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def processes(mark: str) -> dict[int, str]:
    """Living processes that bear a mark in their environment, with their command lines."""
    found = {}
    for pid in marked(f"{MARKER}={mark}"):
        with contextlib.suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def parts(mark: str, main: int) -> dict[str, list[int]]:
    """The processes of a build by what they are."""
    found = processes(mark)
    forks = [pid for pid, words in found.items() if "forkserver" in words]
    kinds: dict[str, list[int]] = {"main": [main] if main in found else []}
    for pid, words in found.items():
        parent = -1
        with contextlib.suppress(OSError):
            parent = parent_of(pid)
        if pid in forks:
            kind = "decode worker" if parent in forks else "fork server"
        elif "guardian.py" in words:
            kind = "guardian" if "uvicorn" not in words else "server's guardian"
        elif "support.standin" in words:
            kind = "engine"
        elif "uvicorn" in words:
            kind = "Prefect server"
        else:
            continue
        kinds.setdefault(kind, []).append(pid)
    return kinds


class Run:
    """One start of `earwitness build`, in a session of its own, its children marked."""

    def __init__(
        self,
        *words: Any,
        env: dict[str, str],
        before: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
    ) -> None:
        self.mark = uuid.uuid4().hex
        command = [*before, sys.executable, "-m", "cli.main", "build", *words, "--no-print", *after]
        self.began_s = time.monotonic()
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**env, MARKER: self.mark},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def parts(self) -> dict[str, list[int]]:
        return parts(self.mark, self.pid)

    def wait(self, seconds: float) -> bool:
        """Let it run until so long after its start; True when it ended before."""
        left = self.began_s + seconds - time.monotonic()
        try:
            self.process.wait(max(left, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def until(self, moment: Callable[[], object]) -> bool:
        """Let it run until a moment; True when it ended before."""
        limit = time.monotonic() + LIMIT_S
        while not moment():
            if self.process.poll() is not None:
                return True
            hold(time.monotonic() < limit, "the moment never came")
            time.sleep(0.03)
        return False

    def hit(self, *, group: bool) -> None:
        """Kill it, with its process group or alone."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)

    def end(self) -> tuple[int, str]:
        """Wait for its end; its status and what it said."""
        try:
            _, said = self.process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            raise BrokenPromiseError(f"a build hung for {LIMIT_S:g} s") from None
        nothing_is_left(self.mark)
        return self.process.returncode, said

    def finish(self) -> str:
        """Wait for its good end; what it said."""
        status, said = self.end()
        hold(status == 0, f"the build ended with {status}: {said[-2000:]}")
        return said


def nothing_is_left(mark: str) -> None:
    limit = time.monotonic() + GONE_WITHIN_S
    while left := processes(mark):
        hold(time.monotonic() < limit, f"left behind: {left}")
        time.sleep(0.05)


def files(output: Path) -> dict[str, bytes]:
    """What a build's receipts name as published, with whatever else lies beside it."""
    folder = Published(output).folder
    paths = [path for part in FILE_FOLDERS for path in (folder / part).iterdir()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def counts(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Published(output).folder / "build.json").read_text())
    return dict(found["counts"])


def builds(output: Path, document: str) -> list[str]:
    return [path.parent.name for path in (output / "builds").glob(f"*/{document}")]


def stored_answers(output: Path) -> int:
    """Answers the engine gave that lie safe in the unpublished build, each question once."""
    total = 0
    for folder in output.glob("builds/*/work/*/"):
        asked = set()
        for path in folder.glob("batch-*.parquet"):
            table = pq.read_table(path, columns=["cache_key", "reused", "reason"])
            asked |= {
                row["cache_key"]
                for row in table.to_pylist()
                if not row["reused"] and row["reason"] is None
            }
        total += len(asked)
    return total


def steps(output: Path) -> int:
    """Files a build has written so far: how far it is."""
    walked = os.walk(output / "builds")
    return sum(not name.startswith(".") for _, _, names in walked for name in names)


def stage(output: Path) -> str:
    """How far a build that was interrupted had come."""
    if not builds(output, "plan.json"):
        return "planning"
    (folder,) = (path.parent for path in output.glob("builds/*/plan.json"))
    shards = len(list((folder / "plan").iterdir()))
    receipts = len(list(folder.glob("receipts/*")))
    if receipts == shards:
        return "published" if (output / "latest.json").exists() else "publishing"
    work = folder / "work" / f"shard-{receipts:05d}"
    segments = len(list(work.glob("batch-*.parquet")))
    if not segments:
        return "fetching"
    whole = work / "batches.json"
    done = whole.exists() and segments >= len(json.loads(whole.read_text()))
    return "persisting" if done else "generating"


@dataclass(frozen=True)
class Reference:
    """An undisturbed build: what all others must equal.

    Attributes:
        files: What it published.
        counts: Its ledger.
        asked: Requests it made.
        start_s: Seconds until it had a plan.
        steps: Files it wrote.
    """

    files: dict[str, bytes]
    counts: dict[str, Any]
    asked: int = 0
    start_s: float = 0.0
    steps: int = 0

    @classmethod
    def of(cls, output: Path, asked: int = 0, start_s: float = 0.0, steps: int = 0) -> Reference:
        """The build that lies at an output."""
        return cls(files(output), counts(output), asked, start_s, steps)


def check_published(output: Path, undisturbed: Reference, scratch: Path) -> None:
    """All that must hold once a disturbed build has come to its end."""
    planned = builds(output, "plan.json")
    hold(len(planned) == 1, f"builds: {planned}")
    hold(builds(output, "build.json") == planned == [Published(output).folder.name], "not one")
    found = files(output)
    differs = sorted(
        name
        for name in found.keys() | undisturbed.files.keys()
        if found.get(name) != undisturbed.files.get(name)
    )
    hold(not differs, f"differs from the undisturbed build: {differs}")
    ledger = counts(output)
    told = f"ledger {ledger} for {undisturbed.counts}"
    hold(ledger == undisturbed.counts, told)
    hold(ledger["rows"] == ledger["answered"] + ledger["rejected"], f"not balanced: {told}")
    hold(ledger["answered"] == ledger["generated"] + ledger["reused"], f"not balanced: {told}")
    hold(not (Published(output).folder / "work").exists(), "work/ is still there")
    hold(len(earwitness.load(str(output))) == ledger["answered"], "load gives other rows")
    left = [path.name for path in scratch.iterdir()]
    hold(not left, f"left in scratch: {left}")
