"""Kills of builds whose engine is real vLLM on the CPU, with the demo model."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import signal
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.chaos.builds import (
    GONE_WITHIN_S,
    ROOT,
    BrokenPromiseError,
    Layout,
    Reference,
    Run,
    builds,
    check_published,
    hold,
    stored_answers,
    write_dataset,
)
from tests.chaos.report import Held
from tests.chaos.servers import PrefectServer
from tests.e2e.processes import family

MODEL = Path(os.environ.get("EARWITNESS_TEST_MODEL", ROOT / "demo_model/weights")).resolve()
LAYOUT = Layout(rows=160, shard_rows=80, batch_rows=4, window=2, clips=6)
ENGINE_WORDS = ("--dtype", "float32", "--max-tokens", "24", "--max-num-seqs", "8", "--seed", "1")
TARGETS = ("group", "alone", "engine", "guardian")
KILLS_A_BUILD = 6
ANSWERED = re.compile(r"(?m)^vllm:request_success_total\{.*\} (\S+)$")


def missing() -> str:
    """Why there is no vLLM here; empty: there is."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    return "" if MODEL.is_dir() else f"no model at {MODEL}"


class VllmBuild:
    """One build with an engine of its own, killed again and again.

    Args:
        folder: For everything of it.
        manifest: What it builds.
        server: The Prefect server.
    """

    def __init__(self, folder: Path, manifest: Path, server: PrefectServer) -> None:
        self.output, self.scratch = folder / "out", folder / "scratch"
        self.scratch.mkdir(parents=True)
        clean = {name: text for name, text in os.environ.items() if "PREFECT" not in name}
        given = {"EARWITNESS_SCRATCH": str(self.scratch), "XDG_STATE_HOME": str(folder / "state")}
        self._env = {**clean, **server.env, **given}
        self._words = (manifest, self.output, "--model", MODEL, *ENGINE_WORDS, *LAYOUT.words())

    def start(self) -> Run:
        return Run(*self._words, env=self._env, after=("--", "--enforce-eager"))

    def parts(self, run: Run) -> dict[str, int]:
        """Process ids of the engine's API server and of its guardian."""
        found = {}
        for pid, words in family(run.mark).items():
            if "launcher.py" in words:
                found["guardian" if "guardian.py" in words else "engine"] = pid
        return found

    def answered(self, run: Run) -> int:
        """What the engine that runs says it has answered."""
        for pid in self.parts(run).values():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                url = f"http://127.0.0.1:{words[words.index('--port') + 1]}/metrics"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    return round(sum(map(float, ANSWERED.findall(answer.read().decode()))))
        return 0


def kill_vllm(folder: Path, *, seed: int, kills: int) -> Held:
    """Kill builds with real vLLM so many times."""
    what = "SIGKILL of builds with real vLLM: ends identical, nothing left, one window"
    reason = missing()
    if reason:
        return Held(what, 0, 0, f"NOT TRIED: {reason}")
    folder.mkdir(parents=True)
    manifest = write_dataset(folder / "data", LAYOUT)
    server = PrefectServer(folder / "prefect")
    server.start()
    hits: Counter[str] = Counter()
    held, lost, detail, number = 0, 0, "", 0
    try:
        reference = _undisturbed(folder, manifest, server)
        while (left := kills - hits.total()) > 0:
            chance = random.Random(f"{seed}-vllm-{number}")
            build = VllmBuild(folder / f"build-{number}", manifest, server)
            hit: list[str] = []
            try:
                lost += _disturb(build, chance, reference, hit, min(left, KILLS_A_BUILD))
                held += len(hit)
            except (BrokenPromiseError, OSError, ValueError) as error:
                again = f"python -m tests.chaos.kills --seed {seed} --vllm {kills}"
                detail += f"\n  build {number} after {hit}: {error}\n  again: {again}"
            hits.update(hit or ["none"])
            print(f"kills: vLLM, build {number}: {', '.join(hit)}; {held} held", flush=True)
            number += 1
    finally:
        server.stop()
    told = ", ".join(f"{name} {count}" for name, count in hits.items())
    facts = f"{number} builds of {LAYOUT.rows} records: {told}; answers lost with a kill: {lost}"
    return Held(what, hits.total(), held, facts + detail)


def _undisturbed(folder: Path, manifest: Path, server: PrefectServer) -> Reference:
    build = VllmBuild(folder / "undisturbed", manifest, server)
    build.start().finish()
    return Reference.of(build.output)


def _disturb(
    build: VllmBuild, chance: random.Random, reference: Reference, hit: list[str], most: int
) -> int:
    """Kill a build up to so many times, each a while further on; answers that were lost."""
    answered, window = 0, LAYOUT.window_rows
    batches = reference.counts["generated"] // LAYOUT.batch_rows
    while len(hit) < most and not (build.output / "latest.json").exists():
        run = build.start()
        while len(hit) < most:
            ahead = stored_answers(build.output) + chance.randint(1, max(batches // 2, 1))
            pause_s, target = chance.uniform(0, 0.5), chance.choice(TARGETS)
            if run.until(lambda ahead=ahead: stored_answers(build.output) >= ahead):
                break
            run.wait(time.monotonic() - run.began_s + pause_s)
            sessions = _sessions(run)
            answered += build.answered(run)
            pid = build.parts(run).get(target, 0)
            hit.append(target if pid or target in {"group", "alone"} else "alone")
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                continue
            run.hit(group=target == "group")
            break
        run.end()
        _gone(sessions if run.process.returncode < 0 else set())
        lost = answered - stored_answers(build.output)
        if not (build.output / "latest.json").exists():
            hold(lost <= window * len(hit), f"{lost} answers lost by {len(hit)} kills")
    if not builds(build.output, "build.json"):
        build.start().finish()
    check_published(build.output, reference, build.scratch)
    return max(answered - reference.counts["generated"], 0)


def _sessions(run: Run) -> set[int]:
    found = set()
    for pid in family(run.mark):
        with suppress(OSError):
            found.add(os.getsid(pid))
    return found


def _gone(sessions: set[int]) -> None:
    """Nothing of these sessions may stay: vLLM's processes hide their environment."""
    limit = time.monotonic() + GONE_WITHIN_S
    while left := _members(sessions):
        hold(time.monotonic() < limit, f"left behind: {left}")
        time.sleep(0.1)


def _members(sessions: set[int]) -> set[int]:
    found = set()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z" and int(fields[3]) in sessions:
                    found.add(int(folder.name))
    return found
