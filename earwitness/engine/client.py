"""The engine as the rest sees it: ask, and there is an answer or a reason."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from earwitness.engine.address import EngineAddress, ServedModel
from earwitness.engine.endpoints import Endpoint, Endpoints
from earwitness.engine.given import borrowed_address, given_addresses, in_flight, pick_model
from earwitness.engine.keepers import AddressKeeper, ServerKeeper
from earwitness.engine.replies import parse_metrics
from earwitness.engine.server import EngineServer
from earwitness.engine.suspects import Case, Judge
from earwitness.engine.usage import Accountant, make_meter
from earwitness.engine.wire import AskRequest
from earwitness.errors import EngineUnavailableError, ModelIdentityError, SettingsError
from earwitness.records import Answer, Rejection

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.engine.shared import SharedEngine
    from earwitness.engine.wire import Request
    from earwitness.errors import EarwitnessError
    from earwitness.settings import EngineSettings

__all__ = ["AskRequest", "Engine", "ServedModel"]

_SUSPECT_PATIENCE_S = 60.0


class Engine:
    """One or several engines behind one `ask`. Lives in one event loop; close it there.

    Args:
        settings: The engine's settings; with addresses in `url` those are used, otherwise an
            engine of our own is started by the first question (or by `start`).
        model: Local folder, hub id, or the name given engines serve (None: their only one).
        scratch: Folder of decoded clips, the only one an engine of our own may read.
        clips_per_prompt: Most clips in one record.
        log_path: Where an own engine's output goes. Default: a file in the temporary folder.
        api_key: For given addresses. Default: VLLM_API_KEY or OPENAI_API_KEY.
        shared: A worker's engine, to be asked instead of one of our own.
        unavailable_timeout_s: How long to wait for engines that are down.

    Attributes:
        account: What it has had of its engines' time.
    """

    def __init__(
        self,
        settings: EngineSettings,
        model: str | None,
        *,
        scratch: Path,
        clips_per_prompt: int,
        log_path: Path | None = None,
        api_key: str | None = None,
        shared: SharedEngine | None = None,
        unavailable_timeout_s: float = 600,
    ) -> None:
        self._settings = settings
        self._model = model
        self._timeout_s = unavailable_timeout_s
        self._requests_sent = 0
        self._starting: asyncio.Task[None] | None = None
        self._own = not settings.url and shared is None
        self._keeper: ServerKeeper | AddressKeeper
        room = in_flight(settings if shared is None else shared.slots)
        meter = make_meter(settings, shared)
        if self._own:
            if model is None:
                raise SettingsError(
                    "no model is given: add --model, or --engine with the address of a running "
                    "engine"
                )
            self._endpoints = Endpoints([Endpoint(None)], room=room, meter=meter)
            server = EngineServer(
                settings,
                model,
                scratch=scratch,
                clips_per_prompt=clips_per_prompt,
                log_path=log_path,
            )
            self._keeper = ServerKeeper(
                self._endpoints,
                server,
                max_restarts=settings.max_restarts,
                stall_s=settings.stall_timeout_s,
            )
        else:
            addresses = (
                given_addresses(settings, api_key=api_key)
                if shared is None
                else [borrowed_address(shared)]
            )
            endpoints = [Endpoint(address) for address in addresses]
            self._endpoints = Endpoints(endpoints, room=room, meter=meter, shared=shared is None)
            self._keeper = AddressKeeper(
                self._endpoints,
                timeout_s=unavailable_timeout_s,
                stall_s=settings.stall_timeout_s,
                borrowed=shared is not None,
            )
        self._judge = Judge(self._endpoints, self._keeper, busy_timeout_s=unavailable_timeout_s)
        self.account = Accountant(self._endpoints, borrowed=shared is not None)

    @property
    def requests_sent(self) -> int:
        """Questions sent so far, repetitions included."""
        return self._requests_sent

    @property
    def room(self) -> int:
        """Questions worth having ready at once: what all engines together hold in flight."""
        return self._endpoints.room * len(self._endpoints.all)

    @property
    def failure(self) -> EarwitnessError | None:
        """Why nobody will be answered; None while there is hope."""
        return self._endpoints.failure

    @property
    def server(self) -> EngineServer | None:
        """The engine of our own; None over given addresses."""
        return self._keeper.server if isinstance(self._keeper, ServerKeeper) else None

    async def start(self) -> None:
        """Starts the own engine, or looks up the given ones; `ask` does so by itself.

        Raises:
            EngineStartError: The own engine did not come up.
            EngineUnavailableError: None of the given ones answered in time.
            ModelIdentityError: They do not serve the model.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        # one caller's cancellation must not stop the start for the others
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        try:
            await self._keeper.start()
            if not self._own:
                for endpoint in self._endpoints.all:
                    if endpoint.up and endpoint.address is not None:
                        self._model = pick_model(
                            self._model, await endpoint.address.served_models()
                        )
            self._endpoints.model = self._model or ""
            await self.account.begin()
        except EngineUnavailableError:
            # it may pass: whoever asks next tries again
            self._starting = None
            raise

    async def ask(self, request: Request) -> Answer | Rejection:
        """Asks one question; waits its turn, and through restarts.

        Args:
            request: What is asked.

        Returns:
            The answer, or why there is none (`GENERATE`).

        Raises:
            EngineStartError: The own engine does not come up, or dies again and again.
            EngineUnavailableError: No engine has answered for `unavailable_timeout_s`.
            FatalError: The engine refuses the key or the model.
            EarwitnessError: A worker's engine front passes it on.
        """
        await self.start()
        case = Case(strikes=request.strikes)
        try:
            while True:
                result = await self._try(request, case)
                if result is not None:
                    return result
        finally:
            if case.home is not None:
                self._endpoints.clear_suspect(case.home)

    async def _try(self, request: Request, case: Case) -> Answer | Rejection | None:
        endpoint = await self._enter(case)
        alone = case.home is not None
        try:
            known = await self._judge.known(request, case) if self._judge.doubts(case) else None
            result = known or await self._send(request, case, endpoint)
        finally:
            if alone:
                self._endpoints.leave_alone(endpoint)
            else:
                self._endpoints.leave(endpoint)
        if result is None and endpoint.up:
            await case.back_off()
        return result

    async def _enter(self, case: Case) -> Endpoint:
        if case.home is None:
            return await self._endpoints.enter()
        # while it waits the suspect may move to another endpoint, or be cancelled: they know
        home, case.home = case.home, None
        patience_s = min(_SUSPECT_PATIENCE_S, self._timeout_s)
        case.home = await self._endpoints.enter_alone(home, patience_s=patience_s)
        return case.home

    async def _send(
        self, request: Request, case: Case, endpoint: Endpoint
    ) -> Answer | Rejection | None:
        address, deaths = endpoint.address, endpoint.deaths
        if address is None:
            return None
        self._requests_sent += 1
        self._endpoints.meter.begin(endpoint)
        try:
            result = await address.ask(request, self._model or "")
        except ModelIdentityError as error:
            if not self._leave_out(endpoint, deaths, error):
                raise
            return None
        finally:
            self._endpoints.meter.end(endpoint)
        if isinstance(result, Answer):
            self._judge.heard(endpoint)
        if isinstance(result, Answer | Rejection):
            return result
        return await self._judge.settle(result, case, endpoint, deaths=deaths)

    def _leave_out(self, endpoint: Endpoint, deaths: int, error: ModelIdentityError) -> bool:
        """One engine that came back with another model is no reason to stop asking the others."""
        if self._own or not any(one.up for one in self._endpoints.all if one is not endpoint):
            return False
        if endpoint.deaths == deaths and endpoint.up:
            self._endpoints.mark_down(endpoint)
            self._keeper.restart(endpoint, why=str(error))
        return True

    async def served_models(self) -> list[ServedModel]:
        """What the first engine that answers serves; starts the own engine if need be.

        Raises:
            EngineUnavailableError: No engine answers.
        """
        return await (await self._first_up()).served_models()

    async def model_id(self) -> str:
        """The name requests ask for."""
        await self.start()
        return self._model or ""

    async def version(self) -> str:
        """The engine's own version; empty when no engine answers, or it does not say.

        It is for the record only: no engine is started or waited for because of it.
        """
        for endpoint in self._endpoints.all:
            if endpoint.up and endpoint.address is not None:
                with suppress(EngineUnavailableError):
                    return await endpoint.address.version()
        return ""

    async def metrics(self) -> dict[str, float]:
        """The engines' counters, summed over labels and engines.

        Raises:
            EngineUnavailableError: One of the engines does not answer.
        """
        return parse_metrics(await self.metrics_text())

    async def metrics_text(self) -> str:
        """The engines' own pages, one after the other.

        Raises:
            EngineUnavailableError: One of the engines does not answer.
        """
        await self.start()
        addresses = [
            endpoint.address for endpoint in self._endpoints.all if endpoint.up and endpoint.address
        ]
        return "".join([await address.metrics_text() for address in addresses])

    async def _first_up(self) -> EngineAddress:
        # called by the start itself, too: then the endpoints are known already
        if not self._endpoints.any_up:
            await self.start()
        for endpoint in self._endpoints.all:
            if endpoint.up and endpoint.address is not None:
                return endpoint.address
        raise EngineUnavailableError("no engine answers")

    async def close(self) -> None:
        """Stops the own engine, and leaves given ones as they are."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self.account.end()
        await self._keeper.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
