"""One engine for every flow run of a machine: an address that hides its restarts.

A worker puts this in front of its engine. All flow runs on the machine ask here, so that they
share the engine's slots first come first served, and so that a record that kills the engine is
found among the requests of all of them. They never see a restart: their requests just take longer.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from earwitness.engine.shared import (
    FAILED,
    REJECTED,
    RUN_HEADER,
    STRIKES_HEADER,
    RelayedRequest,
    error_json,
    verdict_json,
)
from earwitness.engine.usage import EngineTime
from earwitness.errors import EarwitnessError, EngineStartError, EngineUnavailableError
from earwitness.records import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from earwitness.engine.client import Engine


_SETTLE_EVERY_S = 0.1
"""Shares are taken as they stand once in so long: a request costs next to nothing here."""
_GONE_AFTER_S = 60.0
"""Who has asked nothing for so long may have been killed, and has no part in idle time."""
_FORGOTTEN_AFTER_S = 3600.0


class _Run:
    """A flow run's part.

    Attributes:
        open: Its requests that are under way.
        spent: What it has had.
        idle: Its part of the time since nobody asked anything; its own once it asks again.
        uncounted_s: Its busy seconds since the engine's tokens were last read.
        seen_s: When it was last heard of.
    """

    def __init__(self) -> None:
        self.open = 0
        self.spent = EngineTime()
        self.idle = EngineTime()
        self.uncounted_s = 0.0
        self.seen_s = 0.0


class Shares:
    """Who has had how much of an engine. Lives in one thread.

    Args:
        total: The engine's time until now.
        clock: Seconds that only grow.
    """

    def __init__(
        self, total: Callable[[], EngineTime], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._known = EngineTime()
        self._settled_s = clock()
        self._open = 0

    def enter(self, run: str) -> None:
        """A request of a run has come."""
        self._settle(now=not self._open)
        found = self._run(run)
        if found.idle.engine_s or found.idle.start_s:
            found.spent, found.idle = found.spent + found.idle, EngineTime()
        found.open += 1
        self._open += 1

    def leave(self, run: str) -> None:
        """A request of a run is over."""
        self._settle(now=self._open == 1)
        self._run(run).open -= 1
        self._open -= 1

    def spent(self, run: str) -> EngineTime:
        """What a run has had so far; from its first call on it has a part."""
        self._settle(now=True)
        return self._run(run).spent

    def forget(self, run: str) -> None:
        """A run needs the engine no more."""
        self._settle(now=True)
        found = self._runs.get(run)
        if found is not None and not found.open:
            del self._runs[run]

    def _run(self, name: str) -> _Run:
        if name not in self._runs:
            self._runs[name] = _Run()
        found = self._runs[name]
        found.seen_s = self._clock()
        return found

    def _settle(self, *, now: bool) -> None:
        """Divide what has passed since the last time."""
        now_s = self._clock()
        if not now and now_s - self._settled_s < _SETTLE_EVERY_S:
            return
        total = self._total()
        passed, self._known, self._settled_s = total - self._known, total, now_s
        self._divide_time(replace(passed, prompt_tokens=0, completion_tokens=0), now_s)
        if passed.prompt_tokens or passed.completion_tokens:
            self._divide_tokens(passed.prompt_tokens, passed.completion_tokens)

    def _divide_time(self, passed: EngineTime, now_s: float) -> None:
        if self._open:
            for run in self._runs.values():
                if run.open:
                    part = passed * (run.open / self._open)
                    run.spent += part
                    run.uncounted_s += part.busy_s
            return
        self._drop_the_dead(now_s)
        here = [run for run in self._runs.values() if now_s - run.seen_s < _GONE_AFTER_S]
        for run in here:
            run.idle += passed * (1 / len(here))

    def _divide_tokens(self, prompt: float, completion: float) -> None:
        """Tokens are read now and then: they belong to all who were busy since the last time."""
        whole_s = sum(run.uncounted_s for run in self._runs.values())
        for run in self._runs.values():
            if run.uncounted_s:
                part = EngineTime(prompt_tokens=prompt, completion_tokens=completion)
                run.spent += part * (run.uncounted_s / whole_s)
                run.uncounted_s = 0.0

    def _drop_the_dead(self, now_s: float) -> None:
        dead = [name for name, run in self._runs.items() if now_s - run.seen_s > _FORGOTTEN_AFTER_S]
        for name in dead:
            del self._runs[name]


_HOST = "127.0.0.1"
_LARGEST_REQUEST_BYTES = 2**30
_BAD_REQUEST = 400
_UNAVAILABLE = 503
_STOP_S = 1.0


class EngineFront:
    """Serves an engine to this machine's flow runs. Lives in the engine's loop.

    Args:
        engine: Who is asked; closed by its owner.
        scratch: The only folder clips are read from, for engines that cannot read it themselves.
        hand_back_s: How long an engine that is given up for good keeps its askers waiting, so
            that whoever runs them can take them back before they fail.

    Attributes:
        key: The API key it asks for.
        url: Its address, once started.
    """

    def __init__(self, engine: Engine, *, scratch: Path, hand_back_s: float = 0.0) -> None:
        self._engine = engine
        self._scratch = scratch
        self._hand_back_s = hand_back_s
        self._runner: web.AppRunner | None = None
        self._models_json: dict[str, Any] = {}
        self._version_text = ""
        self._shares = Shares(engine.account.total)
        self.key = secrets.token_urlsafe(24)
        self.url = ""

    async def start(self) -> None:
        """Starts the engine if need be, and serves it on a free port of the loopback.

        Raises:
            EarwitnessError: The engine does not start, or does not answer.
        """
        # asked once: who comes while the engine restarts is answered all the same
        name = await self._engine.model_id()
        cards = [asdict(card) for card in await self._engine.served_models() if card.id == name]
        data = [{**card, "object": "model"} for card in cards]
        self._models_json = {"object": "list", "data": data}
        self._version_text = await self._engine.version()
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            # who goes away is not asked for any longer: the engine drops the request
            handler_cancellation=True,
            shutdown_timeout=_STOP_S,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, _HOST, 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://{_HOST}:{port}/v1"

    async def close(self) -> None:
        """Ends serving; requests under way are given up."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _application(self) -> web.Application:
        app = web.Application(
            client_max_size=_LARGEST_REQUEST_BYTES, middlewares=[self._check_key, self._tell]
        )
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/account", self._account)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    @web.middleware
    async def _check_key(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        known = secrets.compare_digest(given.encode(), f"Bearer {self.key}".encode())
        if not known and request.path != "/health":
            return web.json_response({"error": "Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    @web.middleware
    async def _tell(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except EngineUnavailableError as error:
            if request.method == "POST":
                return web.json_response(error_json(error), status=FAILED)
            return web.json_response(error_json(error), status=_UNAVAILABLE)
        except EarwitnessError as error:
            return web.json_response(error_json(error), status=FAILED)
        return response

    async def _health(self, _request: web.Request) -> web.Response:
        # the front lives as long as its worker; whether the engine does is the front's own care
        return web.Response()

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": self._version_text})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=await self._engine.metrics_text())

    async def _account(self, request: web.Request) -> web.Response:
        """What the flow run that asks has had of the engine's time."""
        await self._engine.account.count_tokens()
        run = _run(request)
        spent = self._shares.spent(run)
        if "last" in request.query:
            self._shares.forget(run)
        return web.json_response(asdict(spent))

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response(self._models_json)

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            strikes = int(request.headers.get(STRIKES_HEADER, 0))
            asked = RelayedRequest(body, self._scratch, strikes=strikes)
        except ValueError as error:
            told = {"message": str(error), "type": "BadRequestError", "code": _BAD_REQUEST}
            return web.json_response({"error": told}, status=_BAD_REQUEST)
        self._shares.enter(_run(request))
        try:
            result = await self._engine.ask(asked)
        except EngineStartError:
            await asyncio.sleep(self._hand_back_s)
            raise
        finally:
            self._shares.leave(_run(request))
        if isinstance(result, Rejection):
            return web.json_response(verdict_json(result), status=REJECTED)
        return web.Response(body=asked.reply, content_type="application/json")


def _run(request: web.Request) -> str:
    return request.headers.get(RUN_HEADER, "")


async def watch(engine: Engine, gave_up: Callable[[EarwitnessError], None]) -> None:
    """Waits until an engine is given up for good, which may be never.

    Args:
        engine: The one that is kept running.
        gave_up: Told why, once.
    """
    while True:
        failure = engine.failure
        if isinstance(failure, EngineStartError):
            gave_up(failure)
            return
        await asyncio.sleep(_STOP_S / 4)
