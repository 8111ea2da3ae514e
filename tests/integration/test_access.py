"""Nobody's manifest opens what it must not: redirects, names and proxies, and whole builds."""

from __future__ import annotations

import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from workbench import Published, WebServer, clip_bytes, record, tone, write_clip, write_manifest

from earwitness.access import AccessPolicy, make_policy
from earwitness.audio.fetch import ClipFetcher, stat_clips
from earwitness.builds.prepare import resolve_settings
from earwitness.check import Report, check_clips, lint_manifest
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Rejection
from earwitness.settings import BuildSettings, InputSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

BYTES = b"audio" * 1000
TRUSTED = AccessPolicy(trusted=True)


class Servers:
    """Two servers on loopback addresses: `here` redirects as its path says, `there` counts."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.here = self.there = ""

    async def respond(self, request: web.Request) -> web.Response:
        self.asked[request.host] += 1
        if request.path == "/to":
            return web.Response(status=302, headers={"Location": request.query["url"]})
        return web.Response(body=BYTES, headers={"ETag": '"1"'})

    def to(self, url: str) -> str:
        return f"{self.here}/to?url={url}"

    def asked_there(self) -> int:
        return self.asked[self.there.removeprefix("http://")]


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    servers = Servers()
    app = web.Application()
    app.router.add_route("*", "/{name:.*}", servers.respond)
    runner = web.AppRunner(app)
    await runner.setup()
    for address in ("127.0.0.1", "127.0.0.2"):
        await web.TCPSite(runner, address, 0).start()
    servers.here, servers.there = (
        f"http://{address}:{port}" for address, port in sorted(runner.addresses)
    )
    yield servers
    await runner.cleanup()


def untrusted(*allow: str) -> AccessPolicy:
    return make_policy("https://host/m.jsonl", None, trusted=False, allow=allow)


async def outcome(uri: str, access: AccessPolicy, scratch: Path) -> Rejection | None:
    """What became of fetching; asking for the stamp must agree."""
    stated = (await stat_clips([uri], access=access))[uri]
    rejection = None
    async with ClipFetcher(access=access) as fetcher:
        try:
            await fetcher.fetch(uri, scratch, 10**6)
        except BadRecordError as error:
            rejection = error.rejection
    assert getattr(stated, "reason", None) is getattr(rejection, "reason", None)
    return rejection


async def refused(uri: str, access: AccessPolicy, scratch: Path) -> str:
    rejection = await outcome(uri, access, scratch)
    assert rejection
    assert rejection.reason is Reason.ADDRESS_REFUSED
    return rejection.detail


async def test_a_redirect_to_the_same_server_is_followed(servers: Servers, tmp_path: Path):
    uri = servers.to(servers.to("/a.wav").removeprefix(servers.here))
    assert await outcome(uri, TRUSTED, tmp_path) is None


@pytest.mark.parametrize("spelling", ["http://127.0.0.2", "//127.0.0.2"])
async def test_a_redirect_to_another_internal_server_is_not(
    servers: Servers, tmp_path: Path, spelling: str
):
    uri = servers.to(servers.there.replace("http://127.0.0.2", spelling) + "/a.wav")
    assert "--allow" in await refused(uri, TRUSTED, tmp_path)
    assert servers.asked_there() == 0
    allowed = make_policy("/m.jsonl", None, trusted=None, allow=["127.0.0.2"])
    assert await outcome(uri, allowed, tmp_path) is None


async def test_a_redirect_to_another_port_of_the_host_is_not(servers: Servers, tmp_path: Path):
    with WebServer({"/a.wav": BYTES}) as other:
        await refused(servers.to(f"{other.url}/a.wav"), TRUSTED, tmp_path)
        assert not other.downloads


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://2852039166/",
        "http://metadata.google.internal/",
        "file:///etc/passwd",
        "ftp://8.8.8.8/a.wav",
    ],
)
async def test_redirects_to_metadata_and_other_schemes_are_not(
    servers: Servers, tmp_path: Path, url: str
):
    await refused(servers.to(url), TRUSTED, tmp_path)
    await refused(servers.to(url), untrusted("127.0.0.0/8"), tmp_path)


async def test_a_detour_does_not_lead_back_in(servers: Servers, tmp_path: Path):
    back = f"{servers.here}/a.wav"
    uri = servers.to(f"{servers.there}/to?url={back}")
    access = make_policy("/m.jsonl", None, trusted=None, allow=["127.0.0.2"])
    await refused(uri, access, tmp_path)


async def test_an_untrusted_manifest_reaches_no_internal_server(servers: Servers, tmp_path: Path):
    uri = f"{servers.here}/a.wav"
    detail = await refused(uri, untrusted(), tmp_path)
    assert "--allow 127.0.0.1)" in detail
    assert not servers.asked
    host = servers.here.removeprefix("http://")
    assert await outcome(uri, untrusted(host), tmp_path) is None


async def test_a_name_is_judged_by_the_addresses_it_has(servers: Servers, tmp_path: Path):
    name = socket.gethostname()
    port = servers.here.rpartition(":")[2]
    try:
        if socket.gethostbyname(name) != "127.0.0.1":
            pytest.skip("this machine's name is not on loopback")
    except OSError:
        pytest.skip("this machine's name has no address")
    uri = f"http://{name}:{port}/a.wav"
    await refused(uri, untrusted(), tmp_path)
    await refused(servers.to(uri), TRUSTED, tmp_path)
    assert await outcome(uri, TRUSTED, tmp_path) is None
    assert await outcome(uri, untrusted("127.0.0.1"), tmp_path) is None
    assert await outcome(uri, untrusted(f"{name}:{port}"), tmp_path) is None


async def test_through_a_proxy_addresses_are_judged_as_written(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", servers.there)
    monkeypatch.delenv("no_proxy", raising=False)
    assert await outcome("http://clips.example/a.wav", untrusted(), tmp_path) is None
    asked = servers.asked.total()
    assert asked
    for url in ("http://10.0.0.5/a.wav", "http://localhost/a.wav", "http://0xa9fea9fe/"):
        await refused(url, untrusted(), tmp_path)
    assert servers.asked.total() == asked


def reasons(published: Published) -> dict[int, str]:
    return {row["id"]: row["earwitness"]["reason"] for row in published.rejections()}


@pytest.fixture
def night(tmp_path: Path, web: WebServer) -> dict[str, Any]:
    """A manifest on a web server that names clips everywhere."""
    root = tmp_path / "clips"
    write_clip(tmp_path / "secret.wav", tone(400))
    write_clip(root / "a.wav", tone(500))
    (root / "link.wav").symlink_to("../secret.wav")
    url = web.put("/b.wav", clip_bytes(tmp_path, 600))
    audio = ["a.wav", "link.wav", url, "../secret.wav", "file:///etc/passwd", "local:///a.wav"]
    lines = write_manifest(tmp_path / "m", [record(one, id=n) for n, one in enumerate(audio)])
    return {
        "manifest": web.put("/m.jsonl", lines.read_bytes()),
        "input": InputSettings(audio_root=str(root)),
        "allow": (f"{tmp_path}/", "127.0.0.1"),
    }


REFUSED = dict.fromkeys(range(1, 5), "address_refused") | {5: "bad_uri"}


def test_what_one_build_may_read_another_may_not(
    tmp_path: Path, web: WebServer, night: dict[str, Any], build: Callable[..., dict[str, Any]]
):
    published = Published(tmp_path / "out")
    settings = {"max_rejected": 1.0, "max_tokens": 20}

    def run(**changes: Any) -> dict[str, Any]:
        source = night["input"].model_copy(update=changes)
        return build(night["manifest"], tmp_path / "out", input=source, **settings)

    assert run(allow=night["allow"])["generated"] == 3
    assert reasons(published) == {4: "address_refused", 5: "bad_uri"}
    downloads = web.downloads["/b.wav"]

    counts = run()
    assert reasons(published) == REFUSED, "what is cached does not open what is closed"
    assert counts["reused"] == 1
    assert web.downloads["/b.wav"] == downloads

    counts = run(allow=night["allow"])
    assert counts["answered"] == 4, "a refusal is remembered of no clip"


def test_check_obeys_it(night: dict[str, Any]):
    def checked(**changes: Any) -> Report:
        source = night["input"].model_copy(update=changes)
        given = BuildSettings(manifest=night["manifest"], output="o", input=source)
        settings = resolve_settings(given)
        report = lint_manifest(settings)
        check_clips(settings, report)
        return report

    found = checked().rejections
    assert {reason: one.rows for reason, one in found.items()} == {
        "address_refused": 4,
        "bad_uri": 1,
    }
    assert checked(allow=night["allow"]).rejected == 2
    assert "address_refused" not in checked(trusted=True).rejections


def test_a_page_instead_of_a_clip_is_not_audio(tmp_path: Path, web: WebServer):
    url = web.put("/a.wav", b"<!DOCTYPE html><html><body>Please log in</body></html>")
    manifest = write_manifest(tmp_path / "m.jsonl", [record(url)])
    settings = resolve_settings(BuildSettings(manifest=str(manifest), output="o"))
    report = lint_manifest(settings)
    check_clips(settings, report)
    assert list(report.rejections) == ["not_audio"]
