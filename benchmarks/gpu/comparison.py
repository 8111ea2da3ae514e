"""The engine's own peak by a bare client, against the whole of earwitness on the same engine.

The engine is started by the product's own code, once for each number of API servers. First the
bare client asks about every clip, ready at 16 kHz; then it does so again, now that the engine has
the clips' features ready: the better one is the GPU's own peak. Then the same questions with
seeds. Then a build of as many clips that need resampling, in a process of its own, which finds the
engine as a worker's flow runs do. Prefixes are not cached in the engine: a second round would skip
the GPU's work.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.builds import build, prefect_server
from benchmarks.gpu.bare import Asked, Server, Watched, ask_all, watching
from benchmarks.gpu.checkpoint import QUESTION, write_checkpoint
from benchmarks.gpu.clips import Clips, write_clips
from benchmarks.table import Row
from earwitness.engine.server import EngineServer
from earwitness.engine.shared import SharedEngine
from earwitness.identity import identify_model
from earwitness.scratch import SCRATCH_VARIABLE
from earwitness.settings import EngineSettings, SamplingSettings
from tests.integration.workbench import record, write_manifest

SCRIPT = "python -m benchmarks.gpu"
GOAL_SHARE = 0.97


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is asked.

    Attributes:
        clips: How many.
        tokens: How long every answer is.
        slots: The engine's `max_num_seqs`.
        api_servers: Counts to try.
        tiny: On the CPU, with every size of the model cut down.
        temperature: Of sampling. At 0 in small: vLLM's CPU build dies of a request with a seed
            whose prompt it reads in two steps ("CPU Generator does not use offset").
    """

    clips: int = 3000
    tokens: int = 100
    slots: int = 256
    api_servers: tuple[int, ...] = (1, 2, 4, 8)
    tiny: bool = False
    temperature: float = 0.3

    @property
    def asked(self) -> Asked:
        """What every clip is asked."""
        return Asked(QUESTION, self.tokens, SamplingSettings(temperature=self.temperature))


TINY = Scale(clips=24, tokens=8, slots=8, api_servers=(1,), tiny=True, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Found:
    """What one number of API servers gave.

    Attributes:
        api_servers: How many.
        clips: How many were asked about.
        audio_s: How long they are together.
        first_s: The bare client's first round.
        ready_s: Its second, with features ready.
        seeded_s: Its third, with a seed in each request.
        build_s: The whole build.
        idle: While the build ran.
    """

    api_servers: int
    clips: int
    audio_s: float
    first_s: float
    ready_s: float
    seeded_s: float
    build_s: float
    idle: Watched


def has_gpu() -> bool:
    """True where the driver answers."""
    command = shutil.which("nvidia-smi")
    return (
        bool(command) and not subprocess.run([command], capture_output=True, check=False).returncode
    )


def engine_settings(scale: Scale, api_servers: int) -> EngineSettings:
    """How the engine is started."""
    words = ("--load-format", "dummy", "--no-enable-prefix-caching")
    return EngineSettings(
        max_num_seqs=scale.slots,
        max_model_len=2048,
        api_server_count=api_servers,
        dtype="float32" if scale.tiny else "bfloat16",
        vllm_args=(*words, "--enforce-eager") if scale.tiny else words,
    )


def compare(scale: Scale, folder: Path) -> list[Found]:
    """Measure every number of API servers.

    Args:
        scale: How much is asked.
        folder: For the checkpoint, the clips, the builds; on a disk with a MB a clip to spare.
    """
    model = write_checkpoint(folder / "dummy-qwen2-audio", tiny=scale.tiny)
    scratch = folder / "scratch"
    clips = write_clips(folder / "clips", scratch / "ready", scale.clips)
    records = [record(str(clip), QUESTION, id=n) for n, clip in enumerate(clips.sources)]
    manifest = write_manifest(folder / "manifest.jsonl", records)
    with prefect_server(folder / "prefect") as prefect:
        return [
            asyncio.run(_Comparison(scale, model, clips, manifest, prefect).with_servers(count))
            for count in scale.api_servers
        ]


@dataclass(frozen=True, slots=True)
class _Comparison:
    scale: Scale
    model: Path
    clips: Clips
    manifest: Path
    prefect: dict[str, str]

    async def with_servers(self, count: int) -> Found:
        """Start the engine with so many API servers; ask it barely, and by a build."""
        settings = engine_settings(self.scale, count)
        folder, name = self.manifest.parent, str(self.model)
        scratch = self.clips.ready[0].parents[1]
        log = folder / f"engine-{count}.log"
        engine = EngineServer(settings, name, scratch=scratch, clips_per_prompt=1, log_path=log)
        address = await engine.start()
        try:
            server = Server(address.url, engine._api_key, name, self.scale.slots)
            first_s, ready_s, seeded_s = await self._ask(server)
            identity = identify_model(name, settings, declared=False)
            shared = SharedEngine(server.url, server.key, identity, server.slots)
            asked = {
                "manifest": str(self.manifest),
                "output": str(folder / f"out-{count}"),
                "model": name,
                "max_tokens": self.scale.tokens,
                "sampling": self.scale.asked.sampling.model_dump(),
                "engine": settings.model_dump(mode="json"),
            }
            env = {**self.prefect, **shared.environment(), SCRATCH_VARIABLE: str(scratch)}
            async with watching(server) as watched:
                cost = await asyncio.to_thread(build, asked, env)
        finally:
            await engine.stop()
        asked_about = len(self.clips.sources)
        if cost.counts["generated"] != asked_about:
            raise RuntimeError(f"not every clip was answered: {cost.counts}")
        times_s = (first_s, ready_s, seeded_s, cost.wall_s)
        return Found(count, asked_about, self.clips.audio_s, *times_s, watched)

    async def _ask(self, server: Server) -> tuple[float, float, float]:
        ready, asked = self.clips.ready, self.scale.asked
        # not measured: what vLLM compiles and allocates at the first requests
        await ask_all(server, ready[: max(1, server.slots // 4)], asked)
        return (
            await ask_all(server, ready, asked),
            await ask_all(server, ready, asked),
            await ask_all(server, ready, asked, seeded=True),
        )


def rows(found: list[Found]) -> list[Row]:
    """What was found, as the table wants it; shares are of the best peak of all."""
    peak = max(one.clips / min(one.first_s, one.ready_s) for one in found)
    made = [Row("GPU: peak, bare client", f"{peak:.1f} clips/s", "", None, SCRIPT)]
    for one in found:
        name = f"GPU: {one.api_servers} API server{'s' if one.api_servers > 1 else ''}"
        rate = one.clips / one.build_s
        busy = one.idle.gpu_busy()
        notes = (
            f"bare client: {one.clips / one.first_s:.1f} clips/s",
            f"features ready: {one.clips / one.ready_s:.1f}",
            f"and with seeds: {one.clips / one.seeded_s:.1f}",
            f"{one.audio_s / one.build_s:.0f} audio hours per GPU hour",
            f"engine without a request {one.idle.without_request():.1%} of the time",
            "" if busy is None else f"GPU busy {busy:.0%}",
        )
        value = f"{rate:.1f} clips/s, {rate / peak:.1%} of the peak"
        made.append(Row(name, value, "", None, SCRIPT, "; ".join(filter(None, notes))))
    best = max(one.clips / one.build_s for one in found) / peak
    goal = f">= {GOAL_SHARE:.0%}"
    made.append(
        Row(
            "GPU: whole build / peak", f"{best:.1%}", goal, best >= GOAL_SHARE, SCRIPT, "best count"
        )
    )
    return made


def not_measured(found: list[Found]) -> list[Row]:
    """The rows of a machine without a GPU; the script ran all the same."""
    one = found[0]
    note = (
        f"no GPU available; the same script ran on the CPU with a reduced model: {one.clips} clips "
        f"by the bare client and by a build, {one.clips / one.ready_s:.1f} and "
        f"{one.clips / one.build_s:.1f} clips/s"
    )
    goal = f">= {GOAL_SHARE:.0%}"
    return [
        Row("GPU: peak, bare client", "not measured", "", None, SCRIPT, note),
        Row("GPU: whole build / peak", "not measured", goal, None, SCRIPT),
        Row("GPU: 1, 2, 4, 8 API servers", "not measured", "", None, SCRIPT),
    ]


def measure(scale: Scale | None = None) -> list[Row]:
    """Compare at full size where there is a GPU, else in small, to see that the script works.

    Args:
        scale: Another size.
    """
    chosen = scale or (Scale() if has_gpu() else TINY)
    root = os.environ.get("EARWITNESS_SCRATCH")
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=root) as folder:
        found = compare(chosen, Path(folder))
    return not_measured(found) if chosen.tiny else rows(found)
