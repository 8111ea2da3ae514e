"""A stand-in for a bad network and a bad day of object storage: a proxy that does harm on purpose.

It stands before a real S3 endpoint and passes every request on as it is, Host header included, so
that signatures stay valid. A share of the calls is disturbed, each by chance of its own seed: the
n-th call of a method and path has the same fate in every run with the same seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

import aiohttp
from aiohttp import web
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
STATUS = {"InternalError": 500, "SlowDown": 503}

ANY = ("InternalError", "SlowDown", "reset before", "reset after", "stall")
READ = (*ANY, "cut body", "wrong ETag")
TOLD = (*ANY, "wrong ETag")
"""What can happen to calls: to all, to those that give bytes, to those that only tell of them."""


@dataclass
class Fault:
    """What is done to one call, and where in its body."""

    kind: str
    share: float


@dataclass
class FaultProxy:
    """The proxy; runs in a thread of its own.

    Attributes:
        target: Address of the endpoint.
        seed: Of all chance.
        rate: Share of calls that are disturbed; may be changed at any moment.
        late_s: How long listings do not show what was written.
        stall_s: How long a stalled call hangs; longer than clients wait.
        refused: Regex of `METHOD path` → S3 error code that such calls are refused with (403).
        expecting: How many requests waited to be told to send their body.
        done: Disturbances so far, by kind.
        calls: `METHOD path` → how often it was asked.
    """

    target: str
    seed: str
    rate: float = 0.0
    late_s: float = 0.0
    stall_s: float = 6.0
    refused: dict[str, str] = field(default_factory=dict)
    expecting: int = 0
    done: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    _moments: list[tuple[re.Pattern[str], Callable[[], None]]] = field(default_factory=list)
    _forced: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    _turns: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _written: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def quiet(self) -> None:
        """Disturb nothing from now on."""
        self.rate = self.late_s = 0.0
        self.refused = {}

    def at(self, request: str, act: Callable[[], None]) -> None:
        """Act once, before the first request `METHOD path` that matches is passed on."""
        self._moments.append((re.compile(request), act))

    def force(self, request: str, kind: str) -> None:
        """Do this to the first request `METHOD path` that matches, whatever the rate."""
        self._forced.append((re.compile(request), kind))

    def count(self, request: str) -> int:
        """How often requests that match were made."""
        return sum(n for name, n in self.calls.items() if re.match(request, name))

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        server = web.Server(self._answer)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue":
            self.expecting += 1
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        name = f"{request.method} {unquote(urlsplit(request.raw_path).path)}"
        self.calls[name] += 1
        for moment in [one for one in self._moments if one[0].match(name)]:
            with contextlib.suppress(ValueError):
                self._moments.remove(moment)
                moment[1]()
        code = next((code for rule, code in self.refused.items() if re.match(rule, name)), "")
        if code:
            await request.content.read()
            self.done[code] += 1
            return _error(request, code, 400 if code == "ExpiredToken" else 403)
        fault = self._fault(request, name)
        if fault is not None:
            self.done[fault.kind] += 1
        return await self._disturbed(request, name, fault)

    def _fault(self, request: web.BaseRequest, name: str) -> Fault | None:
        for pattern, kind in self._forced:
            if pattern.match(name):
                self._forced.remove((pattern, kind))
                return Fault(kind, 0.5)
        key = f"{name}?{request.raw_path.partition('?')[2]}"
        self._turns[key] += 1
        chance = random.Random(f"{self.seed}-{key}-{self._turns[key]}")
        if chance.random() >= self.rate:
            return None
        kinds = READ if request.method == "GET" else TOLD if request.method == "HEAD" else ANY
        if self.rate == 1:
            # an outage: nothing gets through
            kinds = tuple(kind for kind in kinds if kind != "wrong ETag")
        return Fault(chance.choice(kinds), chance.random())

    async def _disturbed(
        self, request: web.BaseRequest, name: str, fault: Fault | None
    ) -> web.StreamResponse:
        kind = fault.kind if fault else ""
        if kind in STATUS:
            await request.content.read()
            return _error(request, kind, STATUS[kind])
        if kind == "reset before":
            return _reset(request)
        if kind == "stall" and fault and fault.share < 0.5:
            await asyncio.sleep(self.stall_s)
            return _reset(request)
        status, headers, body = await self._passed_on(request, name)
        if kind == "stall":
            await asyncio.sleep(self.stall_s)
        if kind in {"stall", "reset after"}:
            return _reset(request)
        if kind == "wrong ETag" and "ETag" in headers:
            headers["ETag"] = f'"{random.Random(time.monotonic_ns()).randbytes(16).hex()}"'
        if kind == "cut body" and fault and body:
            return await self._cut(request, status, headers, body[: int(len(body) * fault.share)])
        return await _whole(request, status, headers, body)

    async def _passed_on(
        self, request: web.BaseRequest, name: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Have the endpoint do it; what it answers, listings as late as wanted."""
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
        async with self._session.request(
            request.method,
            URL(self.target + request.raw_path, encoded=True),
            headers=headers,
            data=await request.content.read(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            if answer.status < 300 and request.method in {"PUT", "POST"}:
                self._written.setdefault(name.partition(" ")[2], time.monotonic())
            query = parse_qs(urlsplit(request.raw_path).query, keep_blank_values=True)
            if self.late_s and request.method == "GET" and "prefix" in query:
                body = self._late(name.partition(" ")[2].rstrip("/"), body)
            return answer.status, kept, body

    def _late(self, bucket: str, body: bytes) -> bytes:
        """A listing as it was a while ago: without what was written since."""
        since = time.monotonic() - self.late_s

        def shown(found: re.Match[str]) -> str:
            name = f"{bucket}/{unquote_plus(found[1])}"
            if name.endswith("/"):
                times = [at for path, at in self._written.items() if path.startswith(name)]
                hidden = bool(times) and min(times) > since
            else:
                hidden = self._written.get(name, 0.0) > since
            self.done["late listing"] += hidden
            return "" if hidden else found[0]

        text = re.sub(
            r"<Contents>(?:(?!</Contents>).)*?<Key>([^<]*)</Key>.*?</Contents>",
            shown,
            body.decode(),
            flags=re.DOTALL,
        )
        pattern = r"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>\s*</CommonPrefixes>"
        return re.sub(pattern, shown, text).encode()

    async def _cut(
        self, request: web.BaseRequest, status: int, headers: dict[str, str], part: bytes
    ) -> web.StreamResponse:
        """Less than was announced, then the end of the connection."""
        whole = int(headers.pop("Content-Length", 0)) or len(part) + 100
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = max(whole, len(part) + 1)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await response.write(part)
        await asyncio.sleep(0.01)
        return _reset(request, response, gently=True)


def _error(request: web.BaseRequest, code: str, status: int) -> web.Response:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{code} by the fault proxy</Message>"
        f"<Resource>{urlsplit(request.raw_path).path}</Resource>"
        "<RequestId>0</RequestId></Error>"
    )
    text = "" if request.method == "HEAD" else body
    return web.Response(status=status, text=text, content_type="application/xml")


def _reset(
    request: web.BaseRequest, response: web.StreamResponse | None = None, *, gently: bool = False
) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close() if gently else request.transport.abort()
    return response or web.Response()


async def _whole(
    request: web.BaseRequest, status: int, headers: dict[str, str], body: bytes
) -> web.StreamResponse:
    if request.method == "HEAD":
        return web.Response(status=status, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    if body:
        await response.write(body)
    await response.write_eof()
    return response
