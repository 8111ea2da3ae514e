"""Requests to web servers, each hop judged: by its address as written and as connected to."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from earwitness.access import WEB, literal_address
from earwitness.addresses import exact_url, join_web
from earwitness.records import Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from yarl import URL

    from earwitness.access import AccessPolicy
    from earwitness.audio.source import Pace

MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}


class NotFollowedError(Exception):
    """An address that is not asked, or not any further.

    Attributes:
        reason: What that means for the clip.
        why: The sentence's end, after the clip's address.
    """

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why


class WebClient:
    """Asks web servers; lives in the event loop it is created in.

    The first address may be any that the policy lets this manifest name. A redirect away from its
    host, and everything after one, may lead to public addresses alone, or where it is allowed
    expressly: a server of others does not speak for whoever wrote the manifest.

    Where the environment names a proxy, the proxy looks names up: then only what an address says
    by itself can be judged.

    Args:
        connections: How many at once.
        access: Where clips may come from.
        pace: How long an answer may take.
    """

    def __init__(self, connections: int, access: AccessPolicy, pace: Pace) -> None:
        self._connections = connections
        self._access = access
        self._pace = pace
        self._proxies = getproxies()
        # connections that were opened for a laxer rule are not used again for a stricter one
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    @asynccontextmanager
    async def ask(
        self, method: str, uri: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for an address and follow redirects.

        Args:
            method: GET or HEAD.
            uri: The address.
            headers: Sent with every hop.

        Yields:
            The answer that is no redirect, its body still to be read.

        Raises:
            NotFollowedError: An address that is refused, or too many redirects.
            InvalidURL: It is no address.
            TimeoutError: No answer in time.
        """
        url = home = _url(uri)
        text = uri
        strict = not self._access.trusted
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url, strict=strict)
            session = self._session(url, strict=strict)
            async with asyncio.timeout(self._pace.answer_s):
                response = await session.request(
                    method,
                    url,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._proxy(url),
                )
            async with response:
                location = _location(response)
                if location is None:
                    yield response
                    return
            text = join_web(text, location)
            url = _url(text)
            strict = strict or not _same_host(home, url)
        raise NotFollowedError(Reason.CLIP_MISSING, f"it redirects more than {MAX_REDIRECTS} times")

    async def close(self) -> None:
        """Let go of connections."""
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()

    def _check(self, url: URL, *, strict: bool) -> None:
        if url.scheme not in WEB:
            raise NotFollowedError(
                Reason.ADDRESS_REFUSED,
                f"it redirects to {url.scheme}://, and only http and https are allowed there",
            )
        host = url.raw_host
        if not host or url.port is None:
            raise aiohttp.InvalidURL(url)
        if _spells_an_address(host) and literal_address(host) is None:
            raise aiohttp.InvalidURL(url)
        why = self._access.host_refusal(host, url.port, strict=strict)
        if why is not None:
            raise NotFollowedError(Reason.ADDRESS_REFUSED, why)

    def _session(self, url: URL, *, strict: bool) -> aiohttp.ClientSession:
        proxied = self._proxy(url) is not None
        kind = "proxied" if proxied else "strict" if strict else "lax"
        if kind not in self._sessions:
            resolver = None if proxied else JudgingResolver(self._access, strict=strict)
            self._sessions[kind] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, resolver=resolver),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=15, sock_read=self._pace.silence_s
                ),
                # the bytes as stored: a compressed copy would have another hash and length
                headers={"Accept-Encoding": "identity", "User-Agent": "earwitness"},
                auto_decompress=False,
                # strangers get no login out of ~/.netrc, and what they set is not kept
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[kind]

    def _proxy(self, url: URL) -> str | None:
        """The proxy that the environment names for an address; None: it is asked directly."""
        proxy = self._proxies.get(url.scheme)
        host = url.raw_host or ""
        if proxy is None or proxy_bypass(host) or proxy_bypass(f"{host}:{url.port}"):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


class JudgingResolver(AbstractResolver):
    """Looks names up and gives only addresses that may be connected to.

    These very addresses are connected to, so that a name that means something else a moment later
    gains nothing.

    Args:
        access: Where clips may come from.
        strict: Only public addresses and what is allowed expressly.
        inner: Looks them up. Default: the system's way.
    """

    def __init__(
        self, access: AccessPolicy, *, strict: bool, inner: AbstractResolver | None = None
    ) -> None:
        self._access = access
        self._strict = strict
        self._inner = inner or aiohttp.DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a host that may be connected to.

        Raises:
            NotFollowedError: It has none.
        """
        found = await self._inner.resolve(host, port, family)
        judged = [
            self._access.address_refusal(host, port, one["host"], strict=self._strict)
            for one in found
        ]
        allowed = [one for one, why in zip(found, judged, strict=True) if why is None]
        why = next((why for why in judged if why is not None), None)
        if not allowed and why is not None:
            raise NotFollowedError(Reason.ADDRESS_REFUSED, why)
        return allowed

    async def close(self) -> None:
        """Let go of what looking up needed."""
        await self._inner.close()


def _url(text: str) -> URL:
    try:
        return exact_url(text)
    except ValueError as error:
        raise aiohttp.InvalidURL(text) from error


def _location(response: aiohttp.ClientResponse) -> str | None:
    """Where an answer redirects to, as it says it; None: it does not."""
    return response.headers.get("Location") if response.status in _REDIRECTS else None


def _same_host(home: URL, url: URL) -> bool:
    """True for the same server: the same port, or from http's own port to that of https."""
    to_tls = home.is_default_port() and url.scheme == "https" and url.is_default_port()
    same_port = (home.scheme, home.port) == (url.scheme, url.port)
    return url.raw_host == home.raw_host and (same_port or to_tls)


def _spells_an_address(host: str) -> bool:
    """True for what aiohttp hands to the system as an address, unresolved."""
    return ":" in host or host.replace(".", "").isdigit()
