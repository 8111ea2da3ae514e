"""The faults the stand-in engine can be told to show, each like the real thing's.

Where a needle is asked for, it is the SHA-256 of a clip as the engine hears it, or part of a text.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from tests.support.standin_answers import Asked

_PAGE = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


def error_reply(
    status: int, message: str, kind: str = "BadRequestError", headers: dict[str, str] | None = None
) -> web.Response:
    """An error as vLLM words it.

    Args:
        status: The HTTP status.
        message: What is wrong.
        kind: vLLM's name for it.
        headers: Added to the reply.
    """
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return web.json_response(body, status=status, headers=headers)


def _with(answer: dict[str, Any], **changes: Any) -> web.Response:
    choice = answer["choices"][0]
    choice["message"].update(changes.pop("message", {}))
    choice.update(changes)
    return web.json_response(answer)


def _without(answer: dict[str, Any], name: str) -> web.Response:
    return web.json_response({key: value for key, value in answer.items() if key != name})


_GARBAGE: dict[str, Callable[[dict[str, Any]], web.Response]] = {
    "text": lambda _: web.Response(text="I am not JSON"),
    "html": lambda _: web.Response(text=_PAGE, content_type="text/html"),
    "html-502": lambda _: web.Response(status=502, text=_PAGE, content_type="text/html"),
    "html-404": lambda _: web.Response(status=404, text=_PAGE, content_type="text/html"),
    "html-400": lambda _: web.Response(status=400, text=_PAGE, content_type="text/html"),
    "redirect": lambda _: web.Response(status=302, headers={"Location": "/health"}),
    "not-allowed": lambda _: web.json_response({"detail": "Method Not Allowed"}, status=405),
    "error-200": lambda _: web.json_response({"error": {"message": "EngineCore died"}}),
    "no-choices": lambda answer: _without(answer, "choices"),
    "empty-choices": lambda answer: web.json_response({**answer, "choices": []}),
    "null-content": lambda answer: _with(answer, message={"content": None}),
    "list-content": lambda answer: _with(answer, message={"content": ["a"]}),
    "half-surrogate": lambda answer: _with(answer, message={"content": "\ud800"}),
    "finish-reason": lambda answer: _with(answer, finish_reason="abort"),
    "no-finish-reason": lambda answer: _with(answer, finish_reason=None),
    "huge-count": lambda answer: web.json_response({**answer, "usage": {"prompt_tokens": 2**70}}),
    "deep": lambda _: web.Response(text="[" * 200_000, content_type="application/json"),
    "list": lambda answer: web.json_response([answer]),
}
CUT, ENDLESS, RESET = "cut", "endless", "reset"
GARBAGE = (*_GARBAGE, CUT, ENDLESS, RESET)
"""What it can say instead of an answer; `cut` ends in mid-body, `reset` says nothing at all."""
_CHUNK = b" " * 2**20


def add_fault_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ask for faults.

    Args:
        parser: The stand-in's.
    """
    add = parser.add_argument
    add("--fail-start", default=None, metavar="TEXT|@FILE", help="do not start; give this reason")
    add("--starts-file", type=Path, default=None, help="file that gets one byte for each start")
    add("--fail-start-from", type=int, default=0, metavar="N", help="fail only from this start on")
    add("--fail-rate", type=float, default=0.0, help="share of requests answered 500")
    add("--busy-rate", type=float, default=0.0, help="share of requests answered 429")
    add("--busy-s", type=float, default=0.0, help="answers 429 for so long after its start")
    add("--busy-status", type=int, default=429, help="status of a busy reply")
    add("--retry-after", default=None, help="Retry-After header of a busy reply")
    add("--hang-after", type=int, default=None, metavar="N", help="answers N requests, then none")
    add("--hang-rank", type=int, default=None, metavar="RANK", help="this replica hangs")
    add("--hang-rank-after", type=int, default=0, metavar="N", help="hang after N requests to it")
    add("--hang-health", action="store_true", help="hang on /health as well")
    add("--garbage", choices=GARBAGE, default=None, help="kind of invalid reply")
    add("--garbage-rate", type=float, default=1.0, help="share of requests with an invalid reply")
    add("--garbage-s", type=float, default=float("inf"), help="invalid replies until this age")
    for name, what in (
        ("--crash-on", "dies when asked"),
        ("--hang-on", "never answers when asked; answers other requests"),
        ("--hang-all-on", "answers no request after it was asked"),
        ("--fail-on", "answers 500 when asked"),
        ("--refuse-on", "answers 400 when asked"),
    ):
        add(name, action="append", default=[], metavar="SHA256|TEXT", help=what)


def fail_to_start(options: argparse.Namespace) -> None:
    """Ends the process if it was told not to start this time.

    Args:
        options: The parsed command line.
    """
    starts = 1
    if options.starts_file is not None:
        with options.starts_file.open("ab") as file:
            file.write(b".")
            starts = file.tell()
    reason = options.fail_start
    if reason is None or starts < options.fail_start_from:
        return
    if not reason.startswith("@"):
        sys.exit(f"ValueError: {reason}")
    sys.stderr.write(Path(reason[1:]).read_text(encoding="utf-8"))
    sys.exit(1)


class Faults:
    """Shows the faults it was told to.

    Args:
        options: The parsed command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._chance = random.Random(0)  # noqa: S311 - injected faults, nothing secret
        self._began_s = time.monotonic()
        self._asked = 0
        self._hangs = False

    async def health(self) -> web.Response:
        """What `/health` says."""
        if self._hangs and self._options.hang_health:
            await asyncio.Event().wait()
        return web.Response()

    async def before(self, request: web.Request, asked: Asked) -> web.Response | None:
        """What is said before there is any work.

        Args:
            request: As it came.
            asked: What it asks.

        Returns:
            None: nothing is wrong yet.
        """
        options = self._options
        self._asked += 1
        if any(map(asked.mentions, options.crash_on)):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(map(asked.mentions, options.refuse_on)):
            return error_reply(400, "The stand-in was told to refuse this request")
        if any(map(asked.mentions, options.fail_on)):
            return error_reply(500, "Injected failure", "InternalServerError")
        if self._age_s < options.busy_s or self._chance.random() < options.busy_rate:
            headers = {"Retry-After": options.retry_after} if options.retry_after else None
            return error_reply(options.busy_status, "Too many requests", "Busy", headers)
        if self._chance.random() < options.fail_rate:
            return error_reply(500, "Injected failure", "InternalServerError")
        if options.garbage == RESET and self._is_garbage() and request.transport is not None:
            request.transport.abort()
        return None

    async def while_running(self, asked: Asked, rank: int, number: int) -> None:
        """What goes wrong while a request holds a slot.

        Args:
            asked: What it asks.
            rank: The replica that has it.
            number: How many requests that replica has had.
        """
        options = self._options
        over = options.hang_after is not None and self._asked > options.hang_after
        self._hangs |= over or any(map(asked.mentions, options.hang_all_on))
        replica_hangs = rank == options.hang_rank and number > options.hang_rank_after
        if self._hangs or replica_hangs or any(map(asked.mentions, options.hang_on)):
            await asyncio.Event().wait()

    async def instead(self, request: web.Request, answer: web.Response) -> web.StreamResponse:
        """What is said in an answer's place.

        Args:
            request: As it came.
            answer: What would be right.
        """
        kind = self._options.garbage
        if kind is None or kind == RESET or not self._is_garbage():
            return answer
        body = answer.body if isinstance(answer.body, bytes) else b"{}"
        if kind == ENDLESS:
            endless = web.StreamResponse()
            await endless.prepare(request)
            while True:
                await endless.write(_CHUNK)
        if kind != CUT:
            return _GARBAGE[kind](json.loads(body))
        cut = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await cut.prepare(request)
        await cut.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return cut

    def _is_garbage(self) -> bool:
        rate: float = self._options.garbage_rate
        return self._age_s < self._options.garbage_s and self._chance.random() < rate

    @property
    def _age_s(self) -> float:
        return time.monotonic() - self._began_s
