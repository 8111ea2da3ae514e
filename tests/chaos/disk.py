"""Full and read-only disks, under the scratch folder and under the output.

The disks are small tmpfs mounts in a mount namespace of their own, which a sleeping process keeps
while builds enter it: needs root, or user namespaces.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.builds import (
    BrokenPromiseError,
    Reference,
    check_published,
    hold,
)
from tests.chaos.report import Held
from tests.chaos.servers import Bench, start_plain, undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOMY = "256m"


def missing() -> str:
    """Why disks cannot be mounted here; empty: they can."""
    for tool in ("unshare", "nsenter", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"no mount namespaces: {tried.stderr.strip()}"


@dataclass
class Disk:
    """A small disk at a folder, seen by those who enter its namespace."""

    folder: Path
    holder: subprocess.Popen[bytes]

    @property
    def enter(self) -> tuple[str, ...]:
        pid = str(self.holder.pid)
        return ("nsenter", "-t", pid, "-U", "-m", "--preserve-credentials", "--")

    @property
    def seen(self) -> Path:
        """The folder as seen from outside."""
        return Path(f"/proc/{self.holder.pid}/root{self.folder}")

    def remount(self, options: str) -> None:
        command = [*self.enter, "mount", "-o", f"remount,{options}", str(self.folder)]
        subprocess.run(command, check=True)


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Disk]:
    """Mount a tmpfs in a namespace of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    script = 'mount -t tmpfs -o "$1" none "$2" && touch "$2/.mounted" && exec sleep infinity'
    words = ["unshare", "-rm", "sh", "-c", script, "sh", options, str(folder)]
    disk = Disk(folder, subprocess.Popen(words))
    try:
        limit = time.monotonic() + 30
        while not (disk.seen / ".mounted").exists():
            hold(disk.holder.poll() is None and time.monotonic() < limit, "no disk was mounted")
            time.sleep(0.02)
        (disk.seen / ".mounted").unlink()
        yield disk
    finally:
        disk.holder.kill()
        disk.holder.wait()


@dataclass(frozen=True)
class Case:
    """One way a disk fails.

    Attributes:
        name: What is told.
        part: scratch or output.
        options: How the disk is mounted first.
        mended: How it is remounted before the command is given again.
    """

    name: str
    part: str
    options: str
    mended: str = f"size={ROOMY}"


CASES = (
    Case("scratch full while clips come", "scratch", "size=48k"),
    Case("scratch full while clips are decoded", "scratch", "size=150k"),
    Case("output full from the start", "output", "size=4k"),
    Case("output full while answers come", "output", "size=220k"),
    Case("scratch read-only", "scratch", f"ro,size={ROOMY}", "rw"),
    Case("output read-only", "output", f"ro,size={ROOMY}", "rw"),
)


def try_disk(work: Bench, case: Case, reference: Reference) -> str:
    """Build on a disk that fails, see it told, mend the disk, and give the same command again.

    Returns:
        The line it ended with.
    """
    home = work.folder / f"disk-{case.name.replace(' ', '-')}"
    scratch, output = home / "scratch", home / "out"
    scratch.mkdir(parents=True)
    output.mkdir()
    bad = scratch if case.part == "scratch" else output
    # made before the disk is mounted over it: a read-only one cannot be written to
    options = case.options.removeprefix("ro,")
    with small_disk(bad, options) as disk:
        if options != case.options:
            disk.remount("ro")
        status, said = start_plain(work, output, scratch, before=disk.enter).end()
        lines = said.strip().splitlines() or [""]
        told = [line for line in lines if line.startswith(("error:", "unexpected"))]
        hold(status == 1, f"{case.name}: ended with {status}: {said[-800:]}")
        hold(len(told) == 1 and "Traceback" not in said, f"{case.name}: unclear: {said[-1500:]}")
        hold(told[0].startswith("error:") and str(bad) in told[0], f"{case.name}: {told[0]}")
        hold("again" in told[0], f"{case.name}: does not say what to do: {told[0]}")
        seen_output = disk.seen if bad == output else output
        hold(not (seen_output / "latest.json").exists(), f"{case.name}: published")
        disk.remount(case.mended)
        start_plain(work, output, scratch, before=disk.enter).finish()
        seen_scratch = disk.seen if bad == scratch else scratch
        check_published(seen_output, reference, seen_scratch)
    return told[0]


def fill_disks(work: Bench, *, cases: tuple[Case, ...] = CASES) -> Held:
    """Try every way a disk fails."""
    what = "disk full or read-only: one clear line, nothing published, then the same command ends"
    reason = missing()
    if reason:
        return Held(what, 0, 0, f"NOT TRIED: {reason}")
    reference = undisturbed(work)
    held, detail = 0, ", ".join(case.name for case in cases)
    for case in cases:
        try:
            line = try_disk(work, case, reference)
            held += 1
            print(f"kills: {case.name}: {line}", flush=True)
        except (BrokenPromiseError, OSError, json.JSONDecodeError) as error:
            detail += f"\n  {error}"
            print(f"kills: {case.name}: BROKEN", flush=True)
    return Held(what, len(cases), held, detail)
