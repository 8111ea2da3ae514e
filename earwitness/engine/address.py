"""One engine's HTTP address: asks it, and asks after it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from earwitness.engine.replies import (
    LARGEST_REPLY_BYTES,
    Setback,
    Trouble,
    answering_model,
    error_message,
    parse_metrics,
    parsed,
    read_reply,
    retry_after_s,
    steady,
)
from earwitness.engine.shared import RUN_HEADER, STRIKES_HEADER
from earwitness.engine.wrong_address import (
    other_server,
    tls_fault,
    unreachable_for_good,
    why_silent,
)
from earwitness.errors import (
    CredentialsError,
    EngineUnavailableError,
    ModelIdentityError,
    SettingsError,
)
from earwitness.records import Answer, Rejection

if TYPE_CHECKING:
    from earwitness.engine.wire import Request
    from earwitness.records import Json

_OK = 200
_NO_ACCESS = frozenset({401, 403})
_DEAD = 503  # what vLLM's /health says once its engine process is gone
_RANK_HEADER = "X-data-parallel-rank"
"""vLLM's header of a request that one certain replica has to answer."""
_CONNECT_S = 10
_TOLD_CHARS = 160
_PAGES = ("/chat/completions", "/completions", "/models", "/health", "/metrics", "/docs")
"""Pages of the API that people copy in place of its address."""
_HOST_AND_PORT = re.compile(r"\s*[\w.-]+(:\d+)?(/|\s*$)")
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=10)
# uvicorn closes a connection after 5 s of rest: never send on one it is about to close
_KEEPALIVE_S = 4.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A line of `/v1/models`.

    Attributes:
        id: The name it is served under.
        root: Where the engine has it from, when it says so.
        max_model_len: Its context limit in tokens, when it says so.
    """

    id: str
    root: str | None = None
    max_model_len: int | None = None


def base_url(url: str) -> str:
    """An address without the API's `/v1` and without a slash at its end.

    Args:
        url: `http://host:port`, with or without `/v1`.

    Returns:
        The server's root.

    Raises:
        SettingsError: It is no http(s) address of a whole server.
    """
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError as error:
        raise SettingsError(
            f"an engine's address is like http://host:8000/v1, not {url!r}"
        ) from error
    scheme, path = parts.scheme.lower(), parts.path.rstrip("/")
    if scheme not in {"http", "https"} or not parts.netloc:
        meant = f" (did you mean http://{url.strip()}?)" if _HOST_AND_PORT.match(url) else ""
        raise SettingsError(f"an engine's address is like http://host:8000/v1, not {url!r}{meant}")
    server = f"{scheme}://{parts.netloc}"
    page = next((page for page in _PAGES if path.endswith(page)), None)
    if page is not None:
        root = server + path.removesuffix(page).rstrip("/").removesuffix("/v1")
        raise SettingsError(
            f"the engine's address {url} is the address of one endpoint: write "
            f"{root.rstrip('/')}/v1"
        )
    if parts.query or parts.fragment:
        raise SettingsError(
            f"the engine's address {url} has a part after {'?' if parts.query else '#'}: remove "
            "that part"
        )
    return server + path.removesuffix("/v1").rstrip("/")


class EngineAddress:
    """Speaks to the engine at one address. Lives in the loop it is first used in.

    Args:
        url: The server's root.
        api_key: Sent as a bearer token; empty: none.
        inline: Send clips inside requests, not as `file://`.
        request_timeout_s: How long a request may take, from its sending; None: whoever is there
            sets the limit.
        run: Who asks, for a worker's front, which shares its engine's time out.

    Attributes:
        url: The server's root.
        request_timeout_s: As given.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        inline: bool = True,
        request_timeout_s: float | None = 600,
        run: str = "",
    ) -> None:
        self.url = url
        self._api_key = api_key
        self._run = run
        self._inline = inline
        self.request_timeout_s = request_timeout_s
        self._answering: str | None = None
        self._is_api = False
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def ask(
        self,
        request: Request,
        model: str,
        *,
        timeout_s: float | None = None,
        rank: int | None = None,
    ) -> Answer | Rejection | Setback:
        """Sends one request and reads its reply.

        Args:
            request: What is asked.
            model: The name the engine serves the model under.
            timeout_s: Another limit than `request_timeout_s`.
            rank: The replica that has to answer. Default: whichever the engine chooses.

        Returns:
            The answer, the record's rejection, or why neither is known yet.

        Raises:
            FatalError: The engine refuses the key or the model (see `read_reply`).
            EarwitnessError: A worker's engine front passes it on.
        """
        if self._inline:
            # reading and encoding clips takes milliseconds: away from the loop
            payload = await asyncio.to_thread(request.encoded, model, inline=True)
        else:
            # their addresses take less than it takes to wake a thread
            payload = request.encoded(model, inline=False)
        headers = {"Content-Type": "application/json"}
        if self._run and request.strikes:
            headers[STRIKES_HEADER] = str(request.strikes)
        if rank is not None:
            headers[_RANK_HEADER] = str(rank)
        limit_s = timeout_s or self.request_timeout_s
        timeout = aiohttp.ClientTimeout(total=limit_s, sock_connect=_CONNECT_S)
        try:
            async with self._open().post(
                f"{self.url}/v1/chat/completions",
                data=payload,
                headers=headers,
                timeout=timeout,
                # followed, a question would arrive as a GET without its body
                allow_redirects=False,
            ) as reply:
                body = await _read(reply)
                result = self._read_reply(reply, body, model)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError):
            return Setback(Trouble.UNREACHABLE)
        except TimeoutError:
            return Setback(Trouble.TIMEOUT, f"no answer within {limit_s:g} s")
        except (aiohttp.ClientError, OSError):
            return Setback(Trouble.BROKEN)
        if isinstance(result, Answer):
            self._check_who_answered(answering_model(body))
            request.keep(body)
        return result

    def _read_reply(
        self, reply: aiohttp.ClientResponse, body: bytes, model: str
    ) -> Answer | Rejection | Setback:
        try:
            result = read_reply(reply.status, body, url=self.url, model=model)
        except SettingsError:
            if not self._is_api:
                raise
            # there was an API: something stands in for it while it is away
            return Setback(Trouble.SERVER_ERROR, _said(reply.status, body))
        if isinstance(result, Trouble):
            wait_s = retry_after_s(reply.headers.get("Retry-After"))
            return Setback(result, _said(reply.status, body), wait_s)
        return result

    def _check_who_answered(self, name: str) -> None:
        if self._answering is None:
            self._answering = name
        if self._answering != name:
            raise ModelIdentityError(
                f"the engine at {self.url} answered with model {self._answering!r} before, and now "
                f"answers with model {name!r}: one address has to serve one model"
            )

    async def healthy(self) -> bool | None:
        """Whether the engine lives: None when it neither confirms nor denies it."""
        try:
            async with self._open().get(f"{self.url}/health", timeout=_PROBE_TIMEOUT) as reply:
                if reply.status == _OK:
                    return True
                return False if reply.status == _DEAD else None
        except TimeoutError:
            return None
        except (aiohttp.ClientError, OSError):
            return False

    async def served_models(self) -> list[ServedModel]:
        """What the engine serves, from `/v1/models`.

        Raises:
            EngineUnavailableError: It does not answer.
            CredentialsError: It refused the API key.
            SettingsError: There is no OpenAI-compatible API at this address.
        """
        try:
            reply = parsed(await self._get("/v1/models"))
            served = [
                ServedModel(str(card["id"]), card.get("root"), card.get("max_model_len"))
                for card in reply["data"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"there is no OpenAI-compatible API at {self.url}") from error
        self._is_api = True
        return served

    async def check(self) -> None:
        """Find what no waiting mends: a wrong page, protocol, name or server.

        An engine that does not answer yet, or is busy, may come up: nothing is raised.

        Raises:
            SettingsError: The address is wrong; the text says how.
            CredentialsError: The engine refused the API key.
        """
        try:
            await self.served_models()
        except EngineUnavailableError as error:
            fault = await unreachable_for_good(self.url, error.__cause__)
            if fault is not None:
                raise fault from error

    async def version(self) -> str:
        """The engine's own version, from `/version`; empty when it does not tell.

        Raises:
            EngineUnavailableError: It does not answer.
        """
        try:
            return str(parsed(await self._get("/version"))["version"])
        except (KeyError, TypeError, SettingsError):
            return ""

    async def metrics(self) -> dict[str, float]:
        """Counters from `/metrics`, each summed over its labels.

        Raises:
            EngineUnavailableError: It does not answer.
            SettingsError: It has no metrics.
        """
        return parse_metrics(await self.metrics_text())

    async def metrics_text(self) -> str:
        """The page behind `metrics`, as it came.

        Raises:
            EngineUnavailableError: It does not answer.
            SettingsError: It has no metrics.
        """
        return (await self._get("/metrics")).decode("utf-8", "replace")

    async def account(self, *, last: bool = False) -> Json:
        """What this run has had of a worker's engine; `last`: it needs no more of it."""
        found: Json = parsed(await self._get(f"/account{'?last=1' if last else ''}"))
        return found

    async def close(self) -> None:
        """Closes its connections; it answers nothing from then on."""
        self._closed = True
        await self.hang_up()

    async def hang_up(self) -> None:
        """Breaks off every request under way; later ones open connections anew."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _get(self, path: str) -> bytes:
        try:
            async with self._open().get(
                self.url + path, timeout=_PROBE_TIMEOUT, allow_redirects=False
            ) as reply:
                body = await _read(reply)
                status, elsewhere = reply.status, reply.headers.get("Location", "")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            fault = tls_fault(self.url, error) if isinstance(error, aiohttp.ClientError) else None
            silent = f"no engine answers at {self.url}: {why_silent(error)}"
            raise (fault or EngineUnavailableError(silent)) from error
        if status in _NO_ACCESS:
            raise CredentialsError(
                f"the engine at {self.url} refused the API key (HTTP {status}); "
                "set VLLM_API_KEY to the key it was started with"
            )
        if status in {429, 500, 502, 503, 504}:
            raise EngineUnavailableError(f"the engine at {self.url} answers HTTP {status}")
        if status != _OK:
            raise other_server(self.url, path, status, elsewhere, body)
        return body

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise aiohttp.ClientConnectionError("closed")
        if self._session is None:
            headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
            if self._run:
                headers[RUN_HEADER] = self._run
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self._session


def _said(status: int, body: bytes) -> str:
    """What a reply that is no answer says, on one short line."""
    page = body.lstrip().startswith(b"<")
    message = "with an HTML page" if page else error_message(body)[:_TOLD_CHARS]
    return steady(f"HTTP {status} {message or 'without a message'}")


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > LARGEST_REPLY_BYTES:
            raise aiohttp.ClientPayloadError("the reply is too large")
    return bytes(body)
