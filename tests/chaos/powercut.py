"""Power cuts: a build dies at a seeded write, and with it all that no fsync had made safe.

No disk is harmed: a stand-in on PYTHONPATH (`standins/powercut`) notes what was synced, and kills
the build at one entry of its journal. What a disk may lose then is taken away: tails that were
never synced are cut or zeroed, renames and new folders whose folder was not synced afterwards are
undone, each by a throw of the seed. Then the same command must end as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.builds import (
    BrokenPromiseError,
    Reference,
    Run,
    check_published,
    hold,
)
from tests.chaos.report import Held
from tests.chaos.servers import Bench, start_plain

STANDIN = Path(__file__).with_name("standins") / "powercut"
KEPT_BY_LUCK = ZEROED = 0.5


@dataclass
class Losses:
    """What a power cut took, for the report."""

    cut: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"cut {self.cut}, renames undone {self.undone}, folders lost {self.folders}"


def read_journal(folder: Path) -> Journal:
    """The journal that a stand-in wrote."""
    lines = (folder / "journal").read_bytes().split(b"\n")
    return Journal([json.loads(line) for line in lines if line.endswith(b"}")])


class Journal:
    """What a build's machine had made safe when its power went.

    Args:
        entries: What the stand-in noted until then.
    """

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.entries = entries
        self._ends = {entry["begun"]: entry for entry in self.entries if "begun" in entry}
        whole = [e for e in self.entries if e["op"] == "sync" and e["n"] in self._ends]
        self._folder_syncs = [(e["path"], e["n"]) for e in whole if e["folder"]]
        self.sizes: dict[int, int] = {
            e["inode"]: self._ends[e["n"]]["size"] for e in whole if not e["folder"]
        }

    def names_at_risk(self) -> list[dict[str, Any]]:
        """Renames and new folders that no sync of their folder followed, the last first."""
        return [
            entry
            for entry in reversed(self.entries)
            if entry["op"] in {"rename", "mkdir"} and not self._safe(entry)
        ]

    def _safe(self, entry: dict[str, Any]) -> bool:
        done = self._ends.get(entry["n"], entry)["n"]
        parent = str(Path(entry["path"]).parent)
        return any(path == parent and number > done for path, number in self._folder_syncs)


def lose_power(output: Path, journal: Journal, chance: random.Random) -> Losses:
    """Take away what the disk had not promised to keep."""
    losses = Losses()
    for path in [path for path in sorted(output.rglob("*")) if path.is_file()]:
        safe = journal.sizes.get(path.stat().st_ino, 0)
        if path.stat().st_size > safe:
            _spoil(path, safe, chance)
            losses.cut.append(path.name)
    for entry in journal.names_at_risk():
        path = Path(entry["path"])
        if chance.random() < KEPT_BY_LUCK or not path.exists() or path == output:
            continue
        if entry["op"] == "mkdir":
            shutil.rmtree(path)
            losses.folders.append(path.name)
        elif path.stat().st_ino == entry["inode"]:
            path.unlink()
            if entry["kept"]:
                shutil.copyfile(entry["kept"], path)
            losses.undone.append(path.name)
    return losses


def _spoil(path: Path, safe: int, chance: random.Random) -> None:
    data = path.read_bytes()
    cut = chance.randint(safe, len(data))
    zeros = bytes(len(data) - cut) if chance.random() < ZEROED else b""
    path.write_bytes(data[:cut] + zeros)


def check_markers(output: Path) -> None:
    """Whatever marks something as whole may only be there while it is."""
    for plan_path in output.glob("builds/*/plan.json"):
        folder = plan_path.parent
        for number, shard in enumerate(json.loads(plan_path.read_bytes())["shards"]):
            _check(folder / "plan" / f"shard-{number:05d}.jsonl", shard["sha256"], plan_path)
        for receipt in folder.glob("receipts/*"):
            for file in json.loads(receipt.read_bytes())["files"]:
                _check(folder / file["path"], file["sha256"], receipt)
    if (output / "latest.json").exists():
        pointed = json.loads((output / "latest.json").read_bytes())["build"]
        hold((output / "builds" / pointed / "build.json").exists(), "latest.json leads nowhere")


def _check(path: Path, sha256: str, marker: Path) -> None:
    hold(path.exists(), f"{marker.name} is there, {path.name} is not")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    hold(digest == sha256, f"{marker.name} is there, {path.name} is damaged")


class Cuts:
    """Builds of one small dataset that lose power.

    Args:
        work: The servers.
        seed: Of the campaign.
    """

    def __init__(self, work: Bench, seed: int) -> None:
        self._work, self._seed = work, seed
        self.entries = 0
        self.reference: Reference | None = None

    def undisturbed(self) -> Reference:
        """The build nothing happens to, and how many entries its journal has."""
        if self.reference is None:
            output, scratch, journal = self._folders("undisturbed")
            self._start(output, scratch, journal, 0).finish()
            self.entries = len(read_journal(journal).entries)
            self.reference = Reference.of(output)
            self._work.references["plain", ""] = self.reference
        return self.reference

    def cut(self, number: int) -> Losses:
        """Cut the power once, and let the build end."""
        undisturbed = self.undisturbed()
        chance = random.Random(f"{self._seed}-power-{number}")
        output, scratch, journal = self._folders(str(number))
        at = chance.randint(1, self.entries)
        status, said = self._start(output, scratch, journal, at).end()
        hold(status < 0, f"it ended with {status} before entry {at}: {said[-500:]}")
        losses = lose_power(output, read_journal(journal), chance)
        check_markers(output)
        self._start(output, scratch, journal, 0).finish()
        check_published(output, undisturbed, scratch)
        return losses

    def _folders(self, name: str) -> tuple[Path, Path, Path]:
        home = self._work.folder / f"power-{name}"
        for part in ("scratch", "journal"):
            (home / part).mkdir(parents=True)
        return home / "out", home / "scratch", home / "journal"

    def _start(self, output: Path, scratch: Path, journal: Path, at: int) -> Run:
        env = {
            "PYTHONPATH": str(STANDIN),
            "EARWITNESS_TEST_JOURNAL": str(journal),
            "EARWITNESS_TEST_UNDER": str(output),
            "EARWITNESS_TEST_CUT_AT": str(at),
        }
        return start_plain(self._work, output, scratch, env=env)


def cut_power(work: Bench, *, seed: int, cuts: int, first: int = 0) -> Held:
    """Cut the power of so many builds."""
    these, held, detail = Cuts(work, seed), 0, ""
    lost = Losses()
    for number in range(first, first + cuts):
        try:
            one = these.cut(number)
            held += 1
            lost.cut += one.cut
            lost.undone += one.undone
            lost.folders += one.folders
        except (BrokenPromiseError, OSError, ValueError) as error:
            again = f"python -m tests.chaos.kills --seed {seed} --cuts 1 --number {number}"
            detail += f"\n  cut {number}: {error}\n  again: {again}"
        print(f"kills: power cut {number - first + 1} of {cuts}, {held} held", flush=True)
    facts = (
        f"of {these.entries} writes one each; files cut {len(lost.cut)}, renames undone "
        f"{len(lost.undone)}, folders lost {len(lost.folders)}"
    )
    what = "power cut at a write: unsynced data and names lost, no marker without its files"
    return Held(what, cuts, held, facts + detail)
