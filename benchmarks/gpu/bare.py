"""A client that does nothing but ask, and what the engine and the GPU do meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from earwitness.engine.wire import AskRequest, chat_payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from earwitness.settings import SamplingSettings

_EVERY_S = 0.25
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


@dataclass(frozen=True, slots=True)
class Server:
    """An engine that runs.

    Attributes:
        url: Its root.
        key: Its API key.
        model: The name it serves.
        slots: Requests it answers at once.
    """

    url: str
    key: str
    model: str
    slots: int

    @property
    def headers(self) -> dict[str, str]:
        """What every request bears."""
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What every clip is asked.

    Attributes:
        question: The text beside it.
        tokens: How long every answer is, to the token.
        sampling: As a build's.
    """

    question: str
    tokens: int
    sampling: SamplingSettings


@dataclass(slots=True)
class Watched:
    """Samples taken while something ran.

    Attributes:
        running: Requests in the engine's batch.
        gpu: Utilisation that the driver reports, in per cent; empty without a GPU.
    """

    running: list[float] = field(default_factory=list)
    gpu: list[float] = field(default_factory=list)

    def without_request(self) -> float:
        """Share of the samples in which the engine had nothing to do."""
        return sum(one == 0 for one in self.running) / max(1, len(self.running))

    def gpu_busy(self) -> float | None:
        """Mean utilisation from 0 to 1; None without a GPU."""
        return statistics.mean(self.gpu) / 100 if self.gpu else None


@asynccontextmanager
async def watching(server: Server) -> AsyncIterator[Watched]:
    """Sample the engine's metrics and the GPU for as long as the block runs."""
    watched = Watched()
    tasks = [asyncio.create_task(_watch_engine(server, watched))]
    if shutil.which("nvidia-smi"):
        tasks.append(asyncio.create_task(_watch_gpu(watched)))
    try:
        yield watched
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _watch_engine(server: Server, watched: Watched) -> None:
    async with aiohttp.ClientSession(headers=server.headers) as session:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{server.url}/metrics") as reply:
                    text = await reply.text()
                watched.running.append(_sum(text, _RUNNING) + _sum(text, _WAITING))
            await asyncio.sleep(_EVERY_S)


def _sum(text: str, metric: str) -> float:
    lines = (line for line in text.splitlines() if line.startswith((f"{metric}{{", f"{metric} ")))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def _watch_gpu(watched: Watched) -> None:
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    while True:
        told = await asyncio.to_thread(
            subprocess.run, query, capture_output=True, text=True, check=False
        )
        watched.gpu += [float(line) for line in told.stdout.split() if line.isdigit()]
        await asyncio.sleep(_EVERY_S)


async def ask_all(
    server: Server, clips: Sequence[Path], asked: Asked, *, seeded: bool = False
) -> float:
    """Ask about every clip, 1.1 times the engine's slots at once.

    Args:
        server: The engine; it reads the clips itself.
        clips: At 16 kHz.
        asked: Asked of each.
        seeded: Each request brings a seed of its own, as those of a seeded build do.

    Returns:
        Seconds from the first request to the last answer.

    Raises:
        RuntimeError: An answer was not one.
    """
    slots = asyncio.Semaphore(-(-11 * server.slots // 10))
    timeout = aiohttp.ClientTimeout(total=3600)
    connector = aiohttp.TCPConnector(limit=0)
    headers = server.headers

    async def ask(number: int, clip: Path) -> None:
        body = _body(server.model, clip, asked, number if seeded else None)
        async with slots, session.post(f"{server.url}/v1/chat/completions", json=body) as reply:
            said = await reply.json()
        if reply.status != 200 or said["usage"]["completion_tokens"] != asked.tokens:
            raise RuntimeError(f"clip {number}: {reply.status} {str(said)[:500]}")

    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers
    ) as session:
        started = time.perf_counter()
        await asyncio.gather(*(ask(number, clip) for number, clip in enumerate(clips)))
        return time.perf_counter() - started


def _body(model: str, clip: Path, asked: Asked, seed: int | None) -> dict[str, Any]:
    parts: Any = [{"type": "audio", "clip": 0}, {"type": "text", "text": asked.question}]
    turns = ({"role": "user", "content": parts},)
    request = AskRequest(turns, (clip,), asked.sampling, asked.tokens, seed)
    body = chat_payload(request, model, inline=False)
    return {**body, "ignore_eos": True, "min_tokens": asked.tokens}
