"""A stand-in for vLLM: speaks its HTTP API and answers at once, without any model.

For tests, and for measuring everything but the model. It is no language model: an answer is made of
words picked by the SHA-256 of what was asked (messages, the clips' bytes, seed), so equal requests
get equal answers, in any order and at any concurrency.

`python -m tests.support.standin --port 8000`, or as `engine.command` of a build: it takes
vLLM's flags and ignores those it does not know. Faults can be asked for: see `--help`.
"""

from __future__ import annotations

import argparse
import asyncio
import binascii
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.standin_answers import Asked, natural_words, read_request
from tests.support.standin_faults import Faults, add_fault_options, error_reply, fail_to_start

_TOKEN_S = 0.5
VERSION = "0.0.0+earwitness.standin"


@dataclass
class Counters:
    """What `/metrics` tells of the server."""

    received: int = 0
    peak_open: int = 0
    open: int = 0


@dataclass
class Replica:
    """One copy of the model: its slots, and what `/metrics` tells of it under vLLM's names."""

    rank: int
    slots: asyncio.Semaphore
    asked: int = 0
    open: int = 0
    running: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0})

    def metrics(self, model: str) -> list[str]:
        """Its lines of the page."""
        label = f'engine="{self.rank}",model_name="{model}"'
        return [
            *(
                f'vllm:request_success_total{{finished_reason="{reason}",{label}}} {count}'
                for reason, count in self.finished.items()
            ),
            f"vllm:num_requests_running{{{label}}} {self.running}",
            f"vllm:prompt_tokens_total{{{label}}} {self.prompt_tokens}",
            f"vllm:generation_tokens_total{{{label}}} {self.generation_tokens}",
        ]


class StandIn:
    """The stand-in engine's state and its handlers.

    Args:
        options: The parsed command line.
        model: The name it serves under.
    """

    def __init__(self, options: argparse.Namespace, model: str) -> None:
        self.options = options
        self.model = model
        self.counters = Counters()
        self.api_key = os.environ.get("VLLM_API_KEY", "")
        slots = options.slots or options.max_num_seqs
        ranks = range(options.data_parallel_size)
        self._replicas = [Replica(rank, asyncio.Semaphore(slots)) for rank in ranks]
        self._faults = Faults(options)

    def application(self) -> web.Application:
        """The aiohttp application, ready to be served."""
        app = web.Application(client_max_size=2**30, middlewares=[self._check_key])
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    @web.middleware
    async def _check_key(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        # like vLLM: only the API itself is behind the key
        if self.api_key and request.path.startswith("/v1") and given != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _health(self, _request: web.Request) -> web.Response:
        return await self._faults.health()

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _models(self, _request: web.Request) -> web.Response:
        card = {
            "id": self.model,
            "object": "model",
            "owned_by": "earwitness stand-in (no model)",
            "root": self.model,
            "max_model_len": self.options.max_model_len,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _metrics(self, _request: web.Request) -> web.Response:
        counters = self.counters
        lines = [line for replica in self._replicas for line in replica.metrics(self.model)]
        lines += [
            f"standin:requests_received_total {counters.received}",
            f"standin:peak_requests_open {counters.peak_open}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        counters = self.counters
        counters.received += 1
        if self.options.count_file is not None:
            with self.options.count_file.open("ab") as file:
                file.write(b".")
        counters.open += 1
        counters.peak_open = max(counters.peak_open, counters.open)
        try:
            body = await request.json()
            known = body.get("model") in (None, self.model) or self.options.any_model
            if not known:
                name = body.get("model")
                return error_reply(404, f"The model `{name}` does not exist.", "NotFoundError")
            try:
                asked = read_request(body, self.options.allowed_local_media_path)
            except (ValueError, KeyError, TypeError, binascii.Error) as error:
                return error_reply(400, str(error))
            fault = await self._faults.before(request, asked)
            if fault is not None:
                return fault
            replica = self._replica(request.headers.get("X-data-parallel-rank"))
            limit = int(body.get("max_tokens") or 2**31)
            answer = await self._answer(replica, asked, limit)
            return await self._faults.instead(request, answer)
        finally:
            counters.open -= 1

    def _replica(self, rank: str | None) -> Replica:
        """The replica that is asked for, as with vLLM; else the one with the fewest requests."""
        if rank is not None:
            return self._replicas[int(rank)]
        return min(self._replicas, key=lambda replica: replica.open)

    async def _answer(self, replica: Replica, asked: Asked, max_tokens: int) -> web.Response:
        context = self.options.max_model_len
        if context is not None and asked.prompt_tokens >= context:
            return error_reply(
                400,
                f"The decoder prompt (length {asked.prompt_tokens}) is longer than the maximum "
                f"model length of {context}.",
            )
        replica.asked += 1
        replica.open += 1
        try:
            await self._work(replica, asked)
        finally:
            replica.open -= 1
        words = natural_words(asked, self.options.answer_tokens)
        finish_reason = "length" if len(words) > max_tokens else "stop"
        return self._completion(replica, asked, words[:max_tokens], finish_reason)

    async def _work(self, replica: Replica, asked: Asked) -> None:
        async with replica.slots:
            replica.running += 1
            began_s = time.monotonic()
            try:
                await self._faults.while_running(asked, replica.rank, replica.asked)
                await self._think(replica)
            finally:
                replica.running -= 1
                self._note_times(began_s)

    def _note_times(self, began_s: float) -> None:
        if self.options.times_file is not None:
            line = f"{began_s:.6f} {time.monotonic():.6f} {time.process_time():.6f}\n"
            with self.options.times_file.open("a", encoding="ascii") as file:
                file.write(line)

    async def _think(self, replica: Replica) -> None:
        left_s = self.options.latency_s
        # as with vLLM, a long answer's tokens are counted while it is being made
        while left_s > _TOKEN_S:
            await asyncio.sleep(_TOKEN_S)
            left_s -= _TOKEN_S
            replica.generation_tokens += 1
        await asyncio.sleep(left_s)

    def _completion(
        self, replica: Replica, asked: Asked, words: list[str], finish_reason: str
    ) -> web.Response:
        replica.finished[finish_reason] += 1
        replica.prompt_tokens += asked.prompt_tokens
        replica.generation_tokens += len(words)
        message = {"role": "assistant", "content": " ".join(words)}
        usage = {
            "prompt_tokens": asked.prompt_tokens,
            "completion_tokens": len(words),
            "total_tokens": asked.prompt_tokens + len(words),
        }
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        body = {
            "id": f"chatcmpl-standin-{self.counters.received}",
            "object": "chat.completion",
            "model": self.model,
            "choices": [choice],
            "usage": usage,
        }
        return web.json_response(body)


def parse_options(argv: list[str]) -> tuple[argparse.Namespace, str]:
    """Reads the command line, ignoring vLLM's flags that mean nothing here.

    Args:
        argv: Arguments without the program's name; `serve MODEL` may lead them.

    Returns:
        The options and the name to serve under.
    """
    parser = argparse.ArgumentParser(
        prog="standin", description="A stand-in for vLLM, without a model.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--served-model-name", "--model", default=None, help="name it serves under")
    add("--any-model", action="store_true", help="answers requests for any model")
    add("--max-num-seqs", type=int, default=128)
    add(
        "--slots",
        type=int,
        default=None,
        help="requests answered at once (default: --max-num-seqs)",
    )
    add("--data-parallel-size", type=int, default=1, help="number of replicas")
    add("--max-model-len", type=int, default=None)
    add("--allowed-local-media-path", type=Path, default=None)
    add("--latency-s", type=float, default=0.0, help="time an answer takes")
    add("--answer-tokens", type=int, default=None, help="length of every answer, in tokens")
    add("--count-file", type=Path, default=None, help="file that gets one byte for each request")
    add(
        "--times-file",
        type=Path,
        default=None,
        help="file that gets one line for each answer: start, end, CPU seconds",
    )
    add("--start-delay-s", type=float, default=0.0, help="time before it serves")
    add_fault_options(parser)
    options, others = parser.parse_known_args(argv)
    words = others[1:] if others[:1] == ["serve"] else others
    positional = words[0] if words and not words[0].startswith("-") else "stand-in"
    return options, options.served_model_name or positional


async def _serve(options: argparse.Namespace, model: str) -> None:
    await asyncio.sleep(options.start_delay_s)
    runner = web.AppRunner(
        StandIn(options, model).application(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=1,
    )
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port).start()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await runner.cleanup()


def main(argv: list[str] | None = None) -> None:
    """Serves until told to stop.

    Args:
        argv: Arguments without the program's name; default: the process's own.
    """
    options, model = parse_options(sys.argv[1:] if argv is None else argv)
    fail_to_start(options)
    asyncio.run(_serve(options, model))


if __name__ == "__main__":
    main()
