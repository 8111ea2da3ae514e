"""One engine's HTTP address: asks it, and asks after it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from earwitness.engine.wire import AskRequest, Trouble, chat_payload, read_reply
from earwitness.errors import CredentialsError, EngineUnavailableError, SettingsError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from earwitness.records import Answer

_OK = 200
_NO_ACCESS = frozenset({401, 403})
_DEAD = 503  # what vLLM's /health says once its engine process is gone
_CONNECT_S = 10
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
        SettingsError: It is no http(s) address.
    """
    root = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    if not root.startswith(("http://", "https://")):
        raise SettingsError(f"an engine's address looks like http://host:8000/v1, not {url!r}")
    return root


class EngineAddress:
    """Speaks to the engine at one address. Lives in the loop it is first used in.

    Args:
        url: The server's root.
        api_key: Sent as a bearer token; empty: none.
        inline: Send clips inside requests, not as `file://`.
        request_timeout_s: How long a request may take, from its sending.
    """

    def __init__(
        self, url: str, *, api_key: str = "", inline: bool = True, request_timeout_s: float = 600
    ) -> None:
        self.url = url
        self._api_key = api_key
        self._inline = inline
        self._request_timeout_s = request_timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def ask(self, request: AskRequest, model: str) -> Answer | Rejection | Trouble:
        """Sends one request and reads its reply.

        Args:
            request: What is asked.
            model: The name the engine serves the model under.

        Returns:
            The answer, the record's rejection, or why neither is known yet.

        Raises:
            FatalError: The engine refuses the key or the model (see `read_reply`).
        """
        # reading and encoding clips takes milliseconds: away from the loop
        payload = await asyncio.to_thread(_encoded, request, model, inline=self._inline)
        timeout = aiohttp.ClientTimeout(total=self._request_timeout_s, sock_connect=_CONNECT_S)
        try:
            async with self._open().post(
                f"{self.url}/v1/chat/completions",
                data=payload,
                headers={"Content-Type": "application/json"},
                timeout=timeout,
            ) as reply:
                body = await reply.read()
                return read_reply(reply.status, body, url=self.url, model=model)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError):
            return Trouble.UNREACHABLE
        except TimeoutError:
            detail = f"no answer within {self._request_timeout_s:g} s"
            return Rejection(Stage.GENERATE, Reason.ENGINE_TIMEOUT, detail)
        except aiohttp.ClientError:
            return Trouble.BROKEN

    async def healthy(self) -> bool | None:
        """Whether the engine lives: None when it neither confirms nor denies it."""
        try:
            async with self._open().get(f"{self.url}/health", timeout=_PROBE_TIMEOUT) as reply:
                if reply.status == _OK:
                    return True
                return False if reply.status == _DEAD else None
        except TimeoutError:
            return None
        except aiohttp.ClientError:
            return False

    async def served_models(self) -> list[ServedModel]:
        """What the engine serves, from `/v1/models`.

        Raises:
            EngineUnavailableError: It does not answer.
            CredentialsError: It refused the API key.
            SettingsError: There is no OpenAI-compatible API at this address.
        """
        try:
            reply = json.loads(await self._get("/v1/models"))
            return [
                ServedModel(str(card["id"]), card.get("root"), card.get("max_model_len"))
                for card in reply["data"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"there is no OpenAI-compatible API at {self.url}") from error

    async def version(self) -> str:
        """The engine's own version, from `/version`; empty when it does not tell.

        Raises:
            EngineUnavailableError: It does not answer.
        """
        try:
            return str(json.loads(await self._get("/version"))["version"])
        except (ValueError, KeyError, TypeError, SettingsError):
            return ""

    async def metrics(self) -> dict[str, float]:
        """Counters from `/metrics`, each summed over its labels.

        Raises:
            EngineUnavailableError: It does not answer.
            SettingsError: It has no metrics.
        """
        return parse_metrics((await self._get("/metrics")).decode("utf-8", "replace"))

    async def close(self) -> None:
        """Closes its connections; it answers nothing from then on."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _get(self, path: str) -> bytes:
        try:
            async with self._open().get(self.url + path, timeout=_PROBE_TIMEOUT) as reply:
                body = await reply.read()
                status = reply.status
        except (TimeoutError, aiohttp.ClientError) as error:
            raise EngineUnavailableError(f"no engine answers at {self.url}: {error}") from error
        if status in _NO_ACCESS:
            raise CredentialsError(
                f"the engine at {self.url} refused the API key (HTTP {status}); "
                "set VLLM_API_KEY to the key it was started with"
            )
        if status in {429, 500, 502, 503, 504}:
            raise EngineUnavailableError(f"the engine at {self.url} answers HTTP {status}")
        if status != _OK:
            raise SettingsError(f"{self.url}{path} answers HTTP {status}: not a vLLM address?")
        return body

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise aiohttp.ClientConnectionError("closed")
        if self._session is None:
            headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self._session


def _encoded(request: AskRequest, model: str, *, inline: bool) -> bytes:
    payload: dict[str, Any] = chat_payload(request, model, inline=inline)
    return json.dumps(payload, ensure_ascii=False).encode()


def parse_metrics(text: str) -> dict[str, float]:
    """Reads Prometheus' text format.

    Args:
        text: The page.

    Returns:
        By name, the sum over all labels.
    """
    totals: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        try:
            totals[name] = totals.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return totals
