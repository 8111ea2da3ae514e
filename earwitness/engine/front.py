"""One engine for every flow run of a machine: an address that hides its restarts.

A worker puts this in front of its engine. All flow runs on the machine ask here, so that they
share the engine's slots first come first served, and so that a record that kills the engine is
found among the requests of all of them. They never see a restart: their requests just take longer.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from earwitness.engine.relay import (
    FAILED,
    REJECTED,
    RUN_HEADER,
    STRIKES_HEADER,
    RelayedRequest,
    error_json,
    verdict_json,
)
from earwitness.engine.sharing import Shares
from earwitness.errors import EarwitnessError, EngineStartError, EngineUnavailableError
from earwitness.records import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from earwitness.engine.client import Engine

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
