"""Clips come from where they may: folders, hosts and schemes, whoever wrote the manifest."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import typer
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import ValidationError
from typer.testing import CliRunner

from cli.options import options_of, with_options
from earwitness.access import AccessPolicy, literal_address, make_policy
from earwitness.audio.fetch import ClipFetcher, stat_clips
from earwitness.audio.web import JudgingResolver, NotFollowedError
from earwitness.builds.batch import Batch, ClipState
from earwitness.builds.prepare import resolve_settings
from earwitness.errors import BadRecordError
from earwitness.manifest.lint import lint_line, lint_rules
from earwitness.records import Reason, Rejection, Stage
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

REMOTE = "s3://bucket/set/m.jsonl"
LOCAL = "/data/set/m.jsonl"
INTERNAL = (
    "10.0.0.5",
    "127.0.0.1",
    "192.168.1.1",
    "172.16.9.9",
    "100.64.0.1",
    "[::1]",
    "[fd00::1]",
)
LOOPBACK = ("2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "localhost")
NEVER = (
    "169.254.169.254",
    "2852039166",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "100.100.100.200",
    "168.63.129.16",
    "metadata.google.internal",
    "0.0.0.0",  # noqa: S104 - nothing is bound
    "[::]",
    "224.0.0.1",
)


def policy(manifest: str = REMOTE, root: str | None = None, **given: Any) -> AccessPolicy:
    return make_policy(manifest, root, **{"trusted": None, "allow": (), **given})


def planned(audio: str, **settings: Any) -> Rejection | None:
    made = BuildSettings(manifest=REMOTE, output="/out", input=settings)
    record = {"audio": [audio], "conversation": [{"from": "human", "value": "What?"}]}
    return lint_line(json.dumps(record).encode(), 0, lint_rules(made, None)).rejection


def reason(audio: str, **settings: Any) -> Reason | None:
    rejection = planned(audio, **settings)
    return rejection.reason if rejection else None


@pytest.mark.parametrize("host", [*INTERNAL, *LOOPBACK])
def test_a_remote_manifest_may_not_name_internal_addresses_in_any_spelling(host: str):
    uri = f"http://{host}/a.wav"
    assert reason(uri) is Reason.ADDRESS_REFUSED
    assert policy(LOCAL).refusal(uri) is None


@pytest.mark.parametrize("host", NEVER)
def test_not_even_a_trusted_manifest_may_name_metadata_addresses(host: str):
    for allow in ((), ("0.0.0.0/0", "::/0"), (host.strip("[]"),) if "google" in host else ()):
        assert policy(LOCAL, allow=allow).refusal(f"http://{host}:80/a.wav")


@pytest.mark.parametrize("allow", ["169.254.169.254", "169.254.0.0/16", "169.254.169.0/24"])
def test_a_metadata_address_is_opened_by_itself_alone(allow: str):
    uri = "http://169.254.169.254/a.wav"
    assert policy(LOCAL, allow=[allow]).refusal(uri) is None
    assert policy(REMOTE, allow=[allow]).refusal(uri) is None


@pytest.mark.parametrize("host", ["93.184.215.14", "example.org:81", "[2606:2800:21f::1]", "1.1"])
def test_public_addresses_need_no_permission(host: str):
    assert reason(f"https://{host}/a.wav") is None


@pytest.mark.parametrize(
    ("allow", "host"),
    [
        ("10.0.0.0/8", "10.0.0.5"),
        ("10.0.0.5", "10.0.0.5:8080"),
        ("10.0.0.5:8080", "10.0.0.5:8080"),
        ("fd00::/8", "[fd00::1]:80"),
        ("[::1]:9000", "[::1]:9000"),
        ("LocalHost", "localhost"),
        ("localhost:81", "localhost:81"),
    ],
)
def test_what_is_allowed_may_be_named(allow: str, host: str):
    uri = f"http://{host}/a.wav"
    assert reason(uri) is Reason.ADDRESS_REFUSED
    assert reason(uri, allow=(allow,)) is None


def test_an_allowed_port_allows_no_other():
    assert policy(allow=["localhost:81"]).refusal("http://localhost:82/a.wav")


def test_an_allowed_host_allows_no_other():
    assert policy(allow=["localhost"]).refusal("http://localhost.localhost/a.wav")


@pytest.mark.parametrize(
    "audio",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file:///data/set/..%2f..%2fetc/passwd",
        "file:///data/set/..%2f..%2fpasswd",
        "file:///data/set/..",
        "/data/set/../../etc/passwd",
        "../../etc/passwd",
        "..",
        "/data/settings/a.wav",
    ],
)
def test_a_remote_manifest_names_local_files_below_the_root_alone(audio: str):
    rejection = planned(audio, audio_root="/data/set")
    assert rejection
    assert rejection.reason is Reason.ADDRESS_REFUSED
    assert "--allow FOLDER" in rejection.detail
    assert planned(audio, audio_root="/data/set", trusted=True) is None


@pytest.mark.parametrize(
    "audio", ["a.wav", "x/../a.wav", "/data/set/x/a.wav", "file:///data/set/a"]
)
def test_below_the_root_and_allowed_folders_local_files_may_be_named(audio: str):
    assert reason(audio, audio_root="/data/set") is None
    assert reason(f"/other{audio}" if audio[0] == "/" else "/other/a", allow=("/other/",)) is None


def test_without_a_local_root_a_remote_manifest_names_no_local_file():
    assert reason("/etc/passwd") is Reason.ADDRESS_REFUSED
    assert reason("//etc/passwd", audio_root="http://8.8.8.8/set") is None, "another host"
    assert reason("//127.0.0.1/a", audio_root="http://8.8.8.8/x") is Reason.ADDRESS_REFUSED


def test_a_local_manifest_is_trusted_until_said_otherwise():
    assert policy(LOCAL).refusal("/etc/passwd") is None
    assert policy(LOCAL, trusted=False).refusal("/etc/passwd")
    assert policy(REMOTE, trusted=True).refusal("/etc/passwd") is None


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://host/a.wav",
        "local:///etc/passwd",
        "simplecache::file:///etc/passwd",
        "zip://a::file:///x.zip",
        "memory://a",
        "github://owner:repo@main/a",
        "data://a",
    ],
)
def test_schemes_off_the_list_are_no_addresses_even_for_a_trusted_manifest(uri: str):
    assert reason(uri, trusted=True) is Reason.BAD_URI


@pytest.mark.parametrize("uri", ["ftp://8.8.8.8/a", "memory://a", "ﬁle:///etc/passwd"])
async def test_schemes_off_the_list_are_not_opened(uri: str, tmp_path: Path):
    everything = AccessPolicy(trusted=True)
    found = (await stat_clips([uri], access=everything))[uri]
    assert isinstance(found, Rejection)
    assert found.reason is Reason.BAD_URI
    async with ClipFetcher(access=everything) as fetcher:
        with pytest.raises(BadRecordError):
            await fetcher.fetch(uri, tmp_path, 1000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a").write_bytes(b"audio")
    (folder / "link").symlink_to("../outside/secret")
    (folder / "dangling").symlink_to("../outside/none")
    (folder / "folder").symlink_to("../outside")
    (folder / "inside").symlink_to("a")
    os.mkfifo(folder / "pipe")
    return folder


async def outcome(uri: str, access: AccessPolicy, scratch: Path) -> Reason | None:
    stated = (await stat_clips([uri], access=access))[uri]
    fetched = None
    async with ClipFetcher(access=access) as fetcher:
        try:
            await fetcher.fetch(uri, scratch, 1000)
        except BadRecordError as error:
            fetched = error.rejection.reason
    # where storage does not tell without reading, reading does
    assert stated is None or getattr(stated, "reason", None) is fetched
    return fetched


@pytest.mark.parametrize(
    "name", ["link", "dangling", "folder/secret", "folder/none", "folder/../outside/secret", "../a"]
)
async def test_links_lead_no_untrusted_manifest_out(root: Path, tmp_path: Path, name: str):
    access = policy(root=str(root))
    assert await outcome(f"{root}/{name}", access, tmp_path) is Reason.ADDRESS_REFUSED
    trusting = AccessPolicy(trusted=True)
    assert await outcome(f"{root}/{name}", trusting, tmp_path) is not Reason.ADDRESS_REFUSED


async def test_a_refusal_does_not_tell_whether_the_file_is_there(root: Path):
    access = policy(root=str(root))
    there, gone = f"{root}/folder/secret", f"{root}/folder/gone"
    found = await stat_clips([there, gone], access=access)
    assert str(found[there]).replace(there, "") == str(found[gone]).replace(gone, "")


async def test_links_inside_and_a_root_that_is_a_link_are_followed(root: Path, tmp_path: Path):
    (tmp_path / "alias").symlink_to(root)
    access = policy(root=str(tmp_path / "alias"))
    assert await outcome(f"{tmp_path}/alias/inside", access, tmp_path) is None
    assert await outcome(f"{root}/a", access, tmp_path) is None
    assert await outcome(f"{root}/none", access, tmp_path) is Reason.CLIP_MISSING
    assert await outcome(f"{root}/pipe", access, tmp_path) is Reason.CLIP_MISSING


def test_a_refusal_that_another_build_may_not_have_is_remembered_of_no_clip():
    clip = ClipState("https://host/a.wav", stamp="5:etag")
    batch = Batch([], {clip.uri: clip})
    clip.rejection = Rejection(Stage.FETCH, Reason.CLIP_MISSING, "gone")
    assert batch.clip_records()
    for reason in (Reason.ADDRESS_REFUSED, Reason.CLIP_TOO_LARGE, Reason.FETCH_TIMEOUT):
        clip.rejection = Rejection(Stage.FETCH, reason, "not now")
        assert batch.clip_records() == []


class Rebinding(AbstractResolver):
    """Stand-in for a name server whose answer changes from public to internal."""

    def __init__(self) -> None:
        self.answers = iter([["8.8.8.8"], ["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], []])

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=one, port=port, family=family, proto=0, flags=0)
            for one in next(self.answers)
        ]

    async def close(self) -> None:
        pass


async def test_what_a_name_means_is_judged_each_time_it_is_looked_up():
    resolver = JudgingResolver(policy(), strict=True, inner=Rebinding())
    assert [one["host"] for one in await resolver.resolve("evil", 80)] == ["8.8.8.8"]
    with pytest.raises(NotFollowedError):
        await resolver.resolve("evil", 80)
    assert [one["host"] for one in await resolver.resolve("evil", 80)] == ["8.8.8.8"]
    assert await resolver.resolve("evil", 80) == []


async def test_a_refused_name_comes_out_of_the_client_as_it_went_in():
    names = Rebinding()
    next(names.answers)
    connector = aiohttp.TCPConnector(resolver=JudgingResolver(policy(), strict=True, inner=names))
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(NotFollowedError):
            await session.get("http://evil/")


@pytest.mark.parametrize("text", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "017700000001"])
def test_every_spelling_of_an_address_is_read(text: str):
    assert str(literal_address(text)) == "127.0.0.1"
    assert str(literal_address(f"{text}.")) == "127.0.0.1"


@pytest.mark.parametrize("entry", ["10.0.0.0/99", "http://host/x", "ho st", "*.org", "", "a:b:c"])
def test_what_nobody_could_mean_is_refused_as_a_setting(entry: str):
    with pytest.raises(ValidationError, match="it has to be a folder"):
        BuildSettings(manifest="m", output="o", input={"allow": [entry]})


def test_settings_mean_the_same_however_often_they_are_resolved(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    given = BuildSettings(
        manifest=REMOTE, output="o", input={"allow": ["./clips", "host", "10.0.0.0/8"]}
    )
    once = resolve_settings(given)
    assert once.input.allow == (f"{tmp_path}/clips", "host", "10.0.0.0/8")
    assert once.input.trusted is False
    assert resolve_settings(once) == once
    assert resolve_settings(given.model_copy(update={"manifest": "m.jsonl"})).input.trusted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], (None, ())),
        (["--trusted"], (True, ())),
        (["--untrusted", "--allow", "host", "--allow", "/x/"], (False, ("host", "/x/"))),
    ],
)
def test_the_command_line_says_who_is_trusted_and_what_is_allowed(
    words: list[str], said: tuple[Any, ...]
):
    seen: dict[str, Any] = {"manifest": REMOTE, "output": "o"}

    @with_options(options_of("Input"))
    def command(ctx: typer.Context, *, given: dict[str, Any]) -> None:
        seen.update(given, name=ctx.info_name)

    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, words).exit_code == 0
    del seen["name"]
    source = BuildSettings(**seen).input
    assert (source.trusted, source.allow) == said
