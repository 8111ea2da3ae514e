"""Who restarts or waits for an engine: ours is started again, others' are waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

from earwitness.engine.health import Probe, Restarts, Watchdog
from earwitness.errors import (
    EngineStartError,
    EngineUnavailableError,
    FatalError,
    ModelIdentityError,
)
from earwitness.progress import EngineReady, EngineStarting, tell

if TYPE_CHECKING:
    from earwitness.engine.endpoints import Endpoint, Endpoints
    from earwitness.engine.server import EngineServer


class Keeper(Protocol):
    """Starts endpoints, says whether one died, and brings it back.

    Attributes:
        kills_to_convict: How often a request must kill an engine while alone with it.
        shared: Others ask the same engines. A death may be their doing: the request is asked again
            by the next build, and its deaths are counted over builds.
    """

    kills_to_convict: int
    shared: bool

    async def start(self) -> None:
        """Brings the first endpoint up, or raises."""

    async def died(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint that gave trouble is dead.

        Args:
            endpoint: The endpoint.
        """

    async def probe(self, endpoint: Endpoint) -> Probe:
        """Whether an endpoint's engine answers a question of our own.

        Args:
            endpoint: The endpoint.
        """

    def restart(self, endpoint: Endpoint, why: str = "") -> None:
        """Begins to bring a dead endpoint back; does nothing if that is under way.

        Args:
            endpoint: The endpoint.
            why: What is wrong with an engine that runs but does not answer.
        """

    def explain(self, deaths: set[int]) -> None:
        """Takes note that records are known to have caused these deaths.

        Args:
            deaths: Numbers of deaths (`Endpoint.deaths` as each left it).
        """

    async def close(self) -> None:
        """Ends what it started."""


_log = logging.getLogger(__name__)

_FIRST_PROBE_S = 0.2
_LONGEST_PROBE_S = 5.0


class AddressKeeper:
    """Watches given addresses; whoever runs the engines restarts them.

    Args:
        endpoints: One endpoint an address.
        timeout_s: How long all of them may be down.
        stall_s: How long an engine with requests in flight may show no life.
        borrowed: The one address is a worker's front, which looks after its engine itself.
    """

    # others ask the same engine, and may have killed it each time
    kills_to_convict = 3
    shared = True

    def __init__(
        self, endpoints: Endpoints, *, timeout_s: float, stall_s: float, borrowed: bool = False
    ) -> None:
        self._endpoints = endpoints
        self._timeout_s = timeout_s
        self._watchdog = Watchdog(endpoints, stall_s=stall_s, asks=not borrowed)
        self._watches: list[asyncio.Task[None]] = []
        self._restarts = Restarts(endpoints)
        self._whys: dict[Endpoint, str] = {}

    async def start(self) -> None:
        """Waits until at least one address answers.

        Raises:
            EngineUnavailableError: None did within the time allowed.
        """
        await self._end_watches()
        healthy = await asyncio.gather(
            *(self._healthy(endpoint) for endpoint in self._endpoints.all)
        )
        for endpoint, is_up in zip(self._endpoints.all, healthy, strict=True):
            if is_up:
                self._endpoints.mark_up(endpoint)
            else:
                self.restart(endpoint)
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._timeout_s
        while not self._endpoints.any_up:
            if loop.time() > limit:
                raise self._unavailable()
            await asyncio.sleep(_FIRST_PROBE_S)
        self._watches = [
            asyncio.create_task(self._watchdog.find_hangs(endpoint, self.restart))
            for endpoint in self._endpoints.all
        ]

    async def died(self, endpoint: Endpoint) -> bool:
        """Whether the engine at this address is dead.

        Args:
            endpoint: Its endpoint.
        """
        if not endpoint.up or endpoint.address is None:
            return True
        return await endpoint.address.healthy() is False

    async def probe(self, endpoint: Endpoint) -> Probe:
        """Whether the engine answers a question of our own.

        Args:
            endpoint: Its endpoint.
        """
        return await self._watchdog.probe(endpoint)

    def restart(self, endpoint: Endpoint, why: str = "") -> None:
        """Looks after the address until it answers again.

        Args:
            endpoint: Its endpoint.
            why: What is wrong with an engine that still listens.
        """
        if self._restarts.begin(endpoint, self._wait_for):
            endpoint.hung = bool(why)
            self._whys[endpoint] = why
            self._tell(
                "gets no requests until it answers again", endpoint, why or "it cannot be reached"
            )

    def explain(self, deaths: set[int]) -> None:
        """Deaths are not counted here: whoever runs the engines decides.

        Args:
            deaths: Their numbers.
        """

    async def _wait_for(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._timeout_s
        pause_s = _FIRST_PROBE_S
        if endpoint.hung and endpoint.address is not None:
            # its requests would wait for nothing until their time is over
            await endpoint.address.hang_up()
        while not await self._alive(endpoint):
            if loop.time() > limit and not self._endpoints.any_up:
                self._endpoints.fail(self._unavailable())
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PROBE_S)
        self._endpoints.mark_up(endpoint)
        self._tell("answers again", endpoint)

    async def _alive(self, endpoint: Endpoint) -> bool:
        """True when it is the engine we knew, and answers more than `/health`."""
        if not await self._healthy(endpoint) or endpoint.address is None:
            return False
        if not self._endpoints.model:
            return True
        try:
            names = [card.id for card in await endpoint.address.served_models()]
            if self._endpoints.model not in names:
                raise ModelIdentityError(
                    f"the engine at {endpoint.address.url} now serves {', '.join(names)}, and no "
                    f"longer {self._endpoints.model}: start it with the model of this build"
                )
        except EngineUnavailableError:
            return False
        except FatalError as error:
            if not self._endpoints.any_up:
                self._endpoints.fail(error)
            return False
        return await self._watchdog.probe(endpoint) is not Probe.NONE

    async def _healthy(self, endpoint: Endpoint) -> bool:
        return endpoint.address is not None and bool(await endpoint.address.healthy())

    def _tell(self, what: str, endpoint: Endpoint, why: str = "") -> None:
        if endpoint.address is not None:
            _log.warning("the engine at %s %s%s", endpoint.address.url, what, why and f": {why}")

    def _unavailable(self) -> EngineUnavailableError:
        where = ", ".join(
            endpoint.address.url + (f" ({why})" if (why := self._whys.get(endpoint)) else "")
            for endpoint in self._endpoints.all
            if endpoint.address
        )
        return EngineUnavailableError(
            f"no engine answered for {self._timeout_s:g} s at {where}: check the address, and "
            "that the engine runs"
        )

    async def _end_watches(self) -> None:
        for watch in self._watches:
            watch.cancel()
        if self._watches:
            await asyncio.wait(self._watches)

    async def close(self) -> None:
        """Closes all connections."""
        await self._end_watches()
        await self._watchdog.close()
        await self._restarts.close()
        for endpoint in self._endpoints.all:
            if endpoint.address is not None:
                await endpoint.address.close()


_LONGEST_PAUSE_S = 30.0
_WATCH_S = 5.0
_FORGET_S = 3600.0


class ServerKeeper:
    """Keeps the engine of our own running.

    Args:
        endpoints: With exactly one endpoint.
        server: The engine.
        max_restarts: Unexplained deaths after which it gives up.
        stall_s: How long an engine with requests in flight may show no life.
        first_pause_s: Pause before the second restart; doubles.
        watch_s: How often an engine that nobody asks is looked after.
        forget_s: An engine that has run for so long has made up for its earlier deaths: a worker's
            runs for months.
    """

    # nobody else asks it, but the first time somebody may have killed it
    kills_to_convict = 2
    shared = False

    def __init__(
        self,
        endpoints: Endpoints,
        server: EngineServer,
        *,
        max_restarts: int,
        stall_s: float,
        first_pause_s: float = 1.0,
        watch_s: float = _WATCH_S,
        forget_s: float = _FORGET_S,
    ) -> None:
        self.server = server
        self._endpoints = endpoints
        self._max_restarts = max_restarts
        self._first_pause_s = first_pause_s
        self._watch_s = watch_s
        self._forget_s = forget_s
        self._watchdog = Watchdog(endpoints, stall_s=stall_s)
        self._watches: list[asyncio.Task[None]] = []
        self._unexplained: set[int] = set()
        self._up_since_s = time.monotonic()
        self._restarts = Restarts(endpoints)
        self._why = ""

    async def start(self) -> None:
        """Starts the engine.

        Raises:
            EngineStartError: It does not come up.
        """
        endpoint = self._endpoints.all[0]
        self._endpoints.meter.starting(endpoint)
        await self._bring_up(endpoint)
        self._watches = [
            asyncio.create_task(self._find_deaths(endpoint)),
            asyncio.create_task(self._watchdog.find_hangs(endpoint, self.restart)),
        ]

    async def _find_deaths(self, endpoint: Endpoint) -> None:
        """Finds an engine that died while nobody asked it."""
        while True:
            await asyncio.sleep(self._watch_s)
            await asyncio.to_thread(self.server.note_memory)
            deaths = endpoint.deaths
            # whoever asks may see it die while we look, and see to it
            if (
                endpoint.up
                and await self.died(endpoint)
                and endpoint.up
                and endpoint.deaths == deaths
            ):
                self._endpoints.mark_down(endpoint)
                self.restart(endpoint)

    async def _bring_up(self, endpoint: Endpoint) -> None:
        began_s = time.monotonic()
        tell(EngineStarting(self.server.model, str(self.server.log_path)))
        endpoint.address = await self.server.start()
        # a record is blamed for the next hang: the engine has to answer without it first
        if endpoint.hung and await self._watchdog.probe(endpoint) is Probe.NONE:
            await self.server.stop()
            silent = "it started, but does not answer a test request"
            raise EngineStartError(silent, str(self.server.log_path))
        self._up_since_s = time.monotonic()
        tell(EngineReady(self._up_since_s - began_s))
        self._endpoints.mark_up(endpoint)

    async def died(self, endpoint: Endpoint) -> bool:
        """Whether the engine is dead or dying.

        Args:
            endpoint: Its endpoint.
        """
        if not endpoint.up or not self.server.alive() or endpoint.address is None:
            return True
        # vLLM tells requests first that its engine process is gone, then ends itself
        return await endpoint.address.healthy() is False

    async def probe(self, endpoint: Endpoint) -> Probe:
        """Whether the engine answers a question of our own.

        Args:
            endpoint: Its endpoint.
        """
        return await self._watchdog.probe(endpoint)

    def restart(self, endpoint: Endpoint, why: str = "") -> None:
        """Restarts the engine, unless that is under way.

        Args:
            endpoint: Its endpoint.
            why: What is wrong with it, when it still runs.
        """
        if self._restarts.begin(endpoint, self._restart):
            endpoint.hung = bool(why)
            self._why = why
            if time.monotonic() - self._up_since_s >= self._forget_s:
                self._unexplained.clear()
            self._unexplained.add(endpoint.deaths)

    def explain(self, deaths: set[int]) -> None:
        """Deaths that records caused do not count against the engine.

        Args:
            deaths: Their numbers.
        """
        self._unexplained -= deaths

    async def _restart(self, endpoint: Endpoint) -> None:
        failed_starts = 0
        while True:
            words, self._why = self._why, ""
            if not words:
                await self.server.let_die()
                words = self.server.last_words()
            await self.server.stop()
            endpoint.address = None
            tries = len(self._unexplained) + failed_starts
            if tries > self._max_restarts:
                died = f"it ended unexpectedly {tries} times ({words})"
                raise EngineStartError(died, str(self.server.log_path))
            _log.warning("the engine is restarted: %s", words)
            await asyncio.sleep(self._pause_s(tries))
            try:
                await self._bring_up(endpoint)
            except EngineStartError as error:
                failed_starts += 1
                self._why = error.reason
                continue
            return

    def _pause_s(self, tries: int) -> float:
        if tries <= 1:
            return 0.0
        return min(self._first_pause_s * 2.0 ** (tries - 2), _LONGEST_PAUSE_S)

    async def close(self) -> None:
        """Stops the engine."""
        for watch in self._watches:
            watch.cancel()
        if self._watches:
            await asyncio.wait(self._watches)
        await self._watchdog.close()
        await self._restarts.close()
        await self.server.stop()
