"""Hosts that a manifest or a redirect names get no login and no cookie of ours."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from workbench import WebServer

from earwitness.access import AccessPolicy
from earwitness.audio.fetch import ClipFetcher
from earwitness.manifest.read import open_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRUSTING = AccessPolicy(trusted=True)
BYTES = b"audio" * 1000
SECRETS = {"authorization", "cookie", "proxy-authorization"}


@pytest.fixture
def other() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture(autouse=True)
def logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login me password mine\ndefault login me password mine\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def fetch_twice(uri: str, folder: Path) -> None:
    async with ClipFetcher(access=TRUSTING) as fetcher:
        await fetcher.stat(uri)
        for _ in range(2):
            await fetcher.fetch(uri, folder, 10**6)


def told(server: WebServer) -> set[str]:
    assert server.requests
    return {name for _, headers in server.requests for name in headers} & SECRETS


async def test_no_login_out_of_netrc_is_sent(web: WebServer, tmp_path: Path):
    web.places["/start"] = web.put("/a.wav", BYTES)
    await fetch_twice(f"{web.url}/start", tmp_path)
    assert told(web) == set()


async def test_a_cookie_is_neither_kept_nor_sent(web: WebServer, tmp_path: Path):
    web.sent = {"Set-Cookie": "track=me; Path=/; Domain=localhost"}
    name = web.url.replace("127.0.0.1", "localhost")
    web.put("/a.wav", BYTES)
    await fetch_twice(f"{name}/a.wav", tmp_path)
    assert told(web) == set()


async def test_a_login_in_an_address_stays_with_its_host(
    web: WebServer, other: WebServer, tmp_path: Path
):
    web.places["/a.wav"] = other.put("/b.wav", BYTES)
    access = AccessPolicy(trusted=True, hosts=frozenset({"127.0.0.1"}))
    async with ClipFetcher(access=access) as fetcher:
        uri = web.url.replace("://", "://user:word@") + "/a.wav"
        await fetcher.fetch(uri, tmp_path, 10**6)
    assert told(web) == {"authorization"}
    assert told(other) == set()


def test_the_manifests_host_gets_no_login_and_no_cookie_back(web: WebServer, other: WebServer):
    other.sent = web.sent = {"Set-Cookie": "track=me; Path=/; Domain=localhost"}
    web.places["/m.jsonl"] = other.put("/n.jsonl", b'{"audio": "a.wav"}\n')
    name = web.url.replace("127.0.0.1", "localhost")
    for _ in range(2):
        with open_manifest(f"{name}/m.jsonl", max_line_bytes=1000) as source:
            assert len(list(source)) == 1
    assert told(web) == told(other) == set()


async def test_a_proxy_out_of_the_environment_is_asked(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", web.url)
    web.put("http://clips.example/a%7E.wav", BYTES)
    await fetch_twice("http://clips.example/a%7E.wav", tmp_path)
    assert told(web) == set()


async def test_a_proxys_own_login_goes_to_the_proxy(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", web.url.replace("://", "://us%40er:word@"))
    web.put("http://clips.example/a.wav", BYTES)
    await fetch_twice("http://clips.example/a.wav", tmp_path)
    login = base64.b64encode(b"us@er:word").decode()
    assert {headers["proxy-authorization"] for _, headers in web.requests} == {f"Basic {login}"}


@pytest.mark.parametrize("spared", ["127.0.0.1", "127.0.0.1:{port}", "*"])
async def test_hosts_that_no_proxy_names_are_asked_directly(
    web: WebServer,
    other: WebServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spared: str,
):
    monkeypatch.setenv("http_proxy", other.url)
    monkeypatch.setenv("no_proxy", spared.format(port=web.url.rpartition(":")[2]))
    await fetch_twice(web.put("/a.wav", BYTES), tmp_path)
    assert not other.requests
