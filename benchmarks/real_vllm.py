"""A whole build against real vLLM, held against a bare client that sends ready files.

    python -m benchmarks.real_vllm --clips 1000

The engine is started once, apart; both sides ask it in turn (A B A B), each time about clips that
it has never heard, of the same lengths, so that its caches serve neither.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.builds import BUILD, HOUSE, prefect_server, run_python
from benchmarks.table import Row, print_rows
from earwitness.engine.given import in_flight
from earwitness.engine.replies import parse_metrics
from earwitness.engine.server import EngineServer
from earwitness.settings import EngineSettings
from tests.integration.workbench import record, write_clip, write_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

GOAL = 1.05
CLIPS = 1000
ROUNDS = 2
SLOTS = 32
MAX_TOKENS = 32
RATE_HZ = 16_000
SHORTEST_S, LONGEST_S = 2.0, 10.0
BARE = "import sys; from benchmarks.bare_client import main; main()"
TIMED_BUILD = f"""
import threading, time
from earwitness.progress import Advanced, listen
from earwitness.runtime import current, is_running
answered, sent = [], []
listen(lambda event: answered.append(time.monotonic()) if isinstance(event, Advanced) else None)
def look():
    while not (is_running() and current().engine.requests_sent):
        time.sleep(0.02)
    sent.append(time.monotonic())
threading.Thread(target=look, daemon=True).start()
{BUILD.replace("print(json.dumps(counts))", "")}
print(json.dumps({{**counts, "first_s": sent[0], "last_s": answered[-1]}}))
"""
MODEL = Path(os.environ.get("EARWITNESS_TEST_MODEL", HOUSE / "demo_model" / "weights"))


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """A real engine on the loopback.

    Attributes:
        url: Its address, with `/v1`.
        key: Its API key.
        start_s: How long it took to start.
        server: The server itself.
    """

    url: str
    key: str
    start_s: float
    server: EngineServer

    def metric(self, name: str) -> float:
        """One of its counters, summed over its labels."""
        import urllib.request

        root = self.url.removesuffix("/v1")
        with urllib.request.urlopen(f"{root}/metrics", timeout=30) as page:  # noqa: S310 - ours
            return parse_metrics(page.read().decode()).get(name, 0.0)


@contextmanager
def vllm(folder: Path, *, slots: int = SLOTS, api_servers: int = 1) -> Iterator[RunningEngine]:
    """The demo model on real vLLM, on this machine's CPU.

    Args:
        folder: The only one it may read clips from.
        slots: Requests it answers at once.
        api_servers: Processes that prepare audio.
    """
    settings = EngineSettings(
        dtype="float32",
        max_num_seqs=slots,
        api_server_count=api_servers,
        vllm_args=("--enforce-eager",),
    )
    log = folder / "vllm.log"
    server = EngineServer(settings, str(MODEL), scratch=folder, clips_per_prompt=16, log_path=log)

    async def start() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        address = await server.start()
        # its connections end with this loop; whoever asks opens their own
        await address.hang_up()
        return address.url, loop.time() - began_s

    try:
        url, start_s = asyncio.run(start())
        yield RunningEngine(f"{url}/v1", server._api_key, start_s, server)
    finally:
        asyncio.run(server.stop())


def lengths_s(count: int) -> list[float]:
    """How long clips are: the same for every set of so many."""
    return [float(x) for x in np.random.default_rng(7).uniform(SHORTEST_S, LONGEST_S, count)]


def write_sounds(folder: Path, count: int, seed: int) -> list[Path]:
    """Clips that no other seed gives, of the same lengths as any other seed's."""
    dice = np.random.default_rng(seed)
    clips = []
    for number, length_s in enumerate(lengths_s(count)):
        times = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
        tone = np.sin(2 * np.pi * dice.uniform(100, 3000) * times)
        samples = 0.2 * tone + 0.02 * dice.standard_normal(len(times))
        clips.append(write_clip(folder / f"{number:06d}.wav", samples.astype(np.float32), RATE_HZ))
    return clips


@dataclass(frozen=True, slots=True)
class Took:
    """How long one side took.

    Attributes:
        wall_s: From its first request, or its process's start, to its end.
        head_s: Of it, the time before the first request.
        tail_s: Of it, the time after the last answer.
    """

    wall_s: float
    head_s: float
    tail_s: float

    @property
    def answering_s(self) -> float:
        """From the first request to the last answer."""
        return self.wall_s - self.head_s - self.tail_s


def ask_bare(engine: RunningEngine, clips: Path, *, slots: int = SLOTS) -> Took:
    """Have a bare client ask about every clip of a folder."""
    words = ["--model", str(MODEL), "--api-key", engine.key, "--inline"]
    words += ["--in-flight", str(in_flight(slots)), "--max-tokens", str(MAX_TOKENS)]
    counts = run_python(BARE, engine.url, str(clips), *words).counts
    return Took(counts["wall_s"], 0.0, 0.0)


def whole_build(
    engine: RunningEngine, folder: Path, clips: list[Path], env: dict[str, str]
) -> Took:
    """Have a build of its own process ask about clips."""
    manifest = write_manifest(folder / "m.jsonl", [record(clip) for clip in clips])
    settings = {
        "manifest": str(manifest),
        "output": str(folder / "out"),
        "max_tokens": MAX_TOKENS,
        "engine": {"url": [engine.url], "max_num_seqs": SLOTS},
    }
    began_s = time.monotonic()
    asked_with = {**env, "VLLM_API_KEY": engine.key}
    cost = run_python(TIMED_BUILD, json.dumps(settings), environment=asked_with)
    if cost.counts["answered"] != len(clips):
        raise SystemExit(f"not all were answered: {cost.counts}")
    head_s, last_s = cost.counts["first_s"] - began_s, cost.counts["last_s"] - began_s
    return Took(cost.wall_s, head_s, cost.wall_s - last_s)


def compare(
    engine: RunningEngine, home: Path, count: int, env: dict[str, str], rounds: int
) -> tuple[list[Took], list[Took]]:
    """What both sides took, in turn."""
    alone, whole = [], []
    # the first questions after a start are slow, whoever asks them
    write_sounds(home / "first", 2 * SLOTS, seed=0)
    ask_bare(engine, home / "first")
    for number in range(rounds):
        write_sounds(home / f"bare-{number}", count, seed=100 + number)
        alone.append(ask_bare(engine, home / f"bare-{number}"))
        folder = home / f"build-{number}"
        whole.append(
            whole_build(engine, folder, write_sounds(folder, count, seed=200 + number), env)
        )
    return alone, whole


def measure(count: int = CLIPS, rounds: int = ROUNDS) -> list[Row]:
    """Two rows: the whole, and from the first request to the last answer."""
    names = [
        f"real vLLM: {count:,} clips of 2-10 s, whole build / bare client",
        "real vLLM: the same, from the first request to the last answer",
    ]
    script = f"python -m benchmarks.real_vllm --clips {count}"
    if importlib.util.find_spec("vllm") is None:
        missing = "vLLM is not installed"
        return [Row(name, "not measured", "", None, script, missing) for name in names]
    with tempfile.TemporaryDirectory(prefix="real-vllm-") as folder:
        home = Path(folder)
        with prefect_server(home / "prefect") as env, vllm(home) as engine:
            alone, whole = compare(engine, home, count, env, rounds)
            start_s = engine.start_s
    bare_s = statistics.median(one.wall_s for one in alone)
    build_s = statistics.median(one.wall_s for one in whole)
    head_s = statistics.median(one.head_s for one in whole)
    tail_s = statistics.median(one.tail_s for one in whole)
    note = (
        f"bare client {bare_s:.1f} s ({count / bare_s:.1f} clips/s), build {build_s:.1f} s from "
        f"start to end of its process, of these {head_s:.1f} s before its first request (hidden if "
        f"the build starts its own engine, which takes {start_s:.0f} s here) and {tail_s:.1f} s "
        f"after its last answer; start and end do not grow with the number of clips"
    )
    ratio = build_s / bare_s
    steady = statistics.median(one.answering_s for one in whole) / statistics.median(
        one.answering_s for one in alone
    )
    return [
        Row(names[0], f"{ratio:.2f}", f"<= {GOAL}", ratio <= GOAL, script, note),
        Row(names[1], f"{steady:.2f}", "", None, script, "the limit that longer builds approach"),
    ]


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    print_rows(measure(options.clips, options.rounds))


if __name__ == "__main__":
    main()
