"""Small studies of the engine's front and of what lies between shards; none has a goal.

    python -m benchmarks.engine_front

On real vLLM (the CPU, the demo model): seeds of each request's own, clips by address or inline,
five questions a clip, API servers. On the stand-in: the gap between shards, the first answer.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bare_client import ask_all, asked_about
from benchmarks.builds import BUILD, prefect_server, run_python
from benchmarks.real_vllm import MODEL, SLOTS, vllm, write_sounds
from benchmarks.saturation import served, write_clips
from benchmarks.table import Row, print_rows
from earwitness.engine.given import in_flight
from tests.integration.workbench import record, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.real_vllm import RunningEngine

SCRIPT = "python -m benchmarks.engine_front"
CLIPS = 60
ROUNDS = 2
SEED_ROUNDS = 5
QUESTIONS = 5
TOKENS = 24
SHARD_ROWS, SHARDS, SHARD_RATE = 1_000, 3, 250
GAP_SLOTS = 64
START_S = 10.0
WATCHED_BUILD = f"""
import time
from earwitness.progress import Advanced, EngineReady, EngineStarting, listen
when = {{}}
def hear(event):
    if not isinstance(event, Advanced) or event.generated:
        when.setdefault(type(event).__name__, time.monotonic())
listen(hear)
{BUILD.replace("print(json.dumps(counts))", "")}
print(json.dumps({{**counts, **when}}))
"""


def bodies(
    clips: Iterable[Path], *, inline: bool, asks: int = 1, seeded: bool = False
) -> list[Any]:
    """Requests about clips, those about the same clip side by side."""
    made = []
    for number, clip in enumerate(clips):
        for question in range(asks):
            text = f"What do you hear{', tell me' * question}?"
            seed = number * asks + question if seeded else None
            asked = asked_about(clip, (text,), seed=seed)
            made.append(partial(_encoded, asked, inline=inline))
    return made


def _encoded(asked: Any, *, inline: bool, **others: Any) -> bytes:
    body = {**json.loads(asked.encoded(str(MODEL), inline=inline)), "max_tokens": TOKENS, **others}
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


def rate(engine: RunningEngine, asked: list[Any], flight: int = 0) -> float:
    """Requests a second."""
    work = ask_all(engine.url, asked, in_flight=flight or in_flight(SLOTS), api_key=engine.key)
    return len(asked) / float(asyncio.run(work)["wall_s"])


def in_turn(sides: dict[str, Callable[[int], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """The median of each side, measured in turn; each is told the round's number."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            found[name].append(side(number))
    return {name: statistics.median(figures) for name, figures in found.items()}


def row(measure: str, value: str, note: str = "") -> Row:
    """A row without a goal."""
    return Row(measure, value, "", None, SCRIPT, note)


def seeds(engine: RunningEngine, home: Path, flight: int) -> Row:
    """Texts alone, so that sampling is a large share: with a seed of its own each, and without."""
    clip = write_sounds(home / "seeds", 1, seed=1)[0]

    def side(number: int, *, seed: bool) -> float:
        asked = []
        for count in range(2 * CLIPS):
            ask = asked_about(clip, seed=1000 * number + count if seed else None)
            text = [{"role": "user", "content": f"Say something about sound {count}, {number}."}]
            made = partial(_encoded, ask, inline=False, messages=text, ignore_eos=True)
            asked.append(made)
        return rate(engine, asked, flight)

    sides = {"with": partial(side, seed=True), "without": partial(side, seed=False)}
    found = in_turn(sides, SEED_ROUNDS)
    return row(
        f"real vLLM: requests with a seed each / without, {flight} in flight",
        f"{found['with'] / found['without']:.2f}",
        f"{found['with']:.1f} and {found['without']:.1f} requests/s, {TOKENS} tokens each",
    )


def seeds_with_clips(engine: RunningEngine, home: Path) -> Row:
    """The same where hearing is a large share: every request is about a clip of its own."""

    def side(number: int, *, seed: bool) -> float:
        where = home / f"seeds-{seed}-{number}"
        clips = write_sounds(where, CLIPS, seed=100 + 2 * number + seed)
        return rate(engine, bodies(clips, inline=True, seeded=seed))

    sides = {"with": partial(side, seed=True), "without": partial(side, seed=False)}
    found = in_turn(sides, SEED_ROUNDS)
    return row(
        f"real vLLM: requests about clips with a seed each / without, {in_flight(SLOTS)} in flight",
        f"{found['with'] / found['without']:.2f}",
        f"{found['with']:.1f} and {found['without']:.1f} requests/s, clips of 2-10 s, up to "
        f"{TOKENS} tokens each",
    )


def ways(engine: RunningEngine, home: Path) -> Row:
    """Clips by address against clips inside the requests."""

    def side(number: int, *, inline: bool) -> float:
        clips = write_sounds(home / f"way-{inline}-{number}", CLIPS, seed=10 + 2 * number + inline)
        return rate(engine, bodies(clips, inline=inline))

    found = in_turn({"file": partial(side, inline=False), "inline": partial(side, inline=True)})
    return row(
        "real vLLM: clips by file:// / inline",
        f"{found['file'] / found['inline']:.2f}",
        f"{found['file']:.1f} and {found['inline']:.1f} requests/s, clips of 2-10 s",
    )


def several_questions(engine: RunningEngine, home: Path) -> list[Row]:
    """One question a clip; five, side by side; five, far apart."""

    def side(name: str, asks: int, number: int) -> float:
        count = CLIPS // asks
        where = home / f"{name.replace(' ', '-')}-{number}"
        # a seed of their own for every side and round: nothing was heard before
        clips = write_sounds(where, count, seed=1000 * asks + 10 * len(name) + number)
        asked = bodies(clips, inline=True, asks=asks)
        if name == "apart":
            random.Random(number).shuffle(asked)  # noqa: S311 - an order, no secret
        return rate(engine, asked)

    found = in_turn(
        {
            "one": partial(side, "one", 1),
            "adjacent": partial(side, "adjacent", QUESTIONS),
            "apart": partial(side, "apart", QUESTIONS),
        }
    )
    note = f"{found['one']:.1f} requests/s with one question per clip"
    return [
        row(
            f"real vLLM: {QUESTIONS} questions per clip, {name} / one question per clip, "
            "requests/s",
            f"{found[key] / found['one']:.2f}",
            f"{found[key]:.1f} requests/s; {note}",
        )
        for key, name in (("adjacent", "adjacent"), ("apart", "in any order"))
    ]


def api_servers(home: Path, one: float) -> Row:
    """Two processes that prepare audio, against one."""
    with vllm(home, api_servers=2) as engine:
        rate(engine, bodies(write_sounds(home / "warm-2", 16, seed=3), inline=True))
        clips = write_sounds(home / "two", 2 * CLIPS, seed=4)
        two = rate(engine, bodies(clips, inline=True))
    return row(
        "real vLLM: --api-server-count 2 / 1",
        f"{two / one:.2f}",
        f"{two:.1f} and {one:.1f} requests/s; two cores leave none free for the second server",
    )


def on_vllm(home: Path) -> list[Row]:
    """All that needs the real engine; nothing where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return [row("real vLLM: the engine's front", "not measured", "vLLM is not installed")]
    with vllm(home) as engine:
        rate(engine, bodies(write_sounds(home / "warm", 16, seed=2), inline=True))
        rows = [seeds(engine, home, flight) for flight in (8, 32)]
        rows += [seeds_with_clips(engine, home), ways(engine, home)]
        rows += several_questions(engine, home)
        clips = write_sounds(home / "single", 2 * CLIPS, seed=5)
        one = rate(engine, bodies(clips, inline=True))
    return [*rows, api_servers(home, one)]


def stand_in_settings(home: Path, name: str, rows: int, *flags: str) -> dict[str, Any]:
    """A build over so many clips with a stand-in of its own."""
    clips = write_clips(home / "clips", rows)
    model = home / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    return {
        "manifest": str(write_manifest(home / f"{name}.jsonl", [record(c) for c in clips])),
        "output": str(home / name),
        "model": str(model),
        "engine": {
            "command": [sys.executable, "-m", "tests.support.standin", *flags],
            "max_num_seqs": GAP_SLOTS,
        },
    }


def gap(home: Path, env: dict[str, str]) -> Row:
    """What the engine misses between shards that one process answers one after the other."""
    times = home / "gap.times"
    flags = ["--times-file", str(times), "--latency-s", str(GAP_SLOTS / SHARD_RATE)]
    idle = {}
    for shard_rows in (SHARD_ROWS * SHARDS, SHARD_ROWS):
        name = f"shards-of-{shard_rows}"
        settings = stand_in_settings(home, name, SHARD_ROWS * SHARDS, *flags)
        settings["layout"] = {"shard_rows": shard_rows}
        run_python(BUILD, json.dumps(settings), environment=env)
        idle[shard_rows] = served(times, GAP_SLOTS).idle_s
        times.unlink()
    each_s = (idle[SHARD_ROWS] - idle[SHARD_ROWS * SHARDS]) / (SHARDS - 1)
    share = each_s / (each_s + 20_000 / SHARD_RATE)
    return row(
        "stand-in: engine time lost between two shards of one process",
        f"{each_s:.1f} s",
        f"at {SHARD_RATE}/s, compared with the same records in one shard; {share:.1%} of a shard "
        "of 20,000 records at that rate. A worker avoids this by running two shards at "
        "the same time",
    )


def first_answer(home: Path, env: dict[str, str]) -> Row:
    """How much of a build's head shows behind the start of an engine of its own."""
    settings = stand_in_settings(home, "first", 600, "--start-delay-s", str(START_S))
    began_s = time.monotonic()
    told = run_python(WATCHED_BUILD, json.dumps(settings), environment=env).counts
    starting, ready, answer = (
        told[name] - began_s for name in ("EngineStarting", "EngineReady", "Advanced")
    )
    return row(
        "stand-in: first answer after the engine is ready",
        f"{answer - ready:.2f} s",
        f"the engine started {starting:.1f} s after the process and was ready at {ready:.1f} s "
        f"(its start was set to {START_S:.0f} s): clips are decoded during its start",
    )


def measure() -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory(prefix="engine-front-") as name:
        home = Path(name)
        with prefect_server(home / "prefect") as env:
            rows = [first_answer(home, env), gap(home, env)]
        return [*on_vllm(home), *rows]


def main() -> None:
    """Read the command line, measure, print."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print_rows(measure())


if __name__ == "__main__":
    main()
