"""An address goes out as it was given: what is signed is the text of the request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from workbench import RCLONE, record, write_manifest

from earwitness.access import AccessPolicy
from earwitness.audio.fetch import ClipFetcher, stat_clips
from earwitness.builds.prepare import resolve_settings
from earwitness.manifest.lint import Linter, lint_rules
from earwitness.manifest.read import open_manifest
from earwitness.records import Stamp
from earwitness.settings import BuildSettings, InputSettings

if TYPE_CHECKING:
    from workbench import S3Server, WebServer

TRUSTING = AccessPolicy(trusted=True)
BYTES = b"audio" * 1000
TARGETS = [
    "/plain.wav",
    "/a%2Fb.wav",
    "/a%2fb.wav",
    "/%7Euser/a.wav",
    "/~user/a.wav",
    "/it%27s.wav",
    "/it's.wav",
    "/a%20b+c.wav?x=a+b%20c",
    "//two//slashes.wav",
    "/a;b=1;c.wav?x=1;y=2",
    "/%E4%B8%AD.wav",
    "/%e4%b8%ad.wav",
    "/a.wav?path=%2Fx%3D&name=%27a%27&empty=",
    "/a[1].wav?b[]=1",
    "/a/./b/../c.wav",
    "/a.wav?",
    "/100%25.wav",
    "/a%2Bb@c:d!$&(),.wav",
    "/a.wav?X-Amz-Credential=k%2f1%2Fs3&X-Amz-Signature=%7e0",
]


async def fetched(uri: str, folder: Path) -> bytes:
    stated = (await stat_clips([uri], access=TRUSTING))[uri]
    assert isinstance(stated, Stamp)
    async with ClipFetcher(access=TRUSTING) as fetcher:
        return (await fetcher.fetch(uri, folder, 10**6)).path.read_bytes()


@pytest.mark.parametrize("target", TARGETS)
async def test_a_given_address_is_asked_for_as_it_is(web: WebServer, tmp_path: Path, target: str):
    assert await fetched(web.put(target, BYTES), tmp_path) == BYTES


@pytest.mark.parametrize("target", TARGETS)
async def test_a_redirect_is_followed_to_the_address_it_names(
    web: WebServer, tmp_path: Path, target: str
):
    web.places["/start"] = web.put(target, BYTES)
    assert await fetched(f"{web.url}/start", tmp_path) == BYTES


@pytest.mark.parametrize(
    ("start", "location", "target"),
    [
        ("/a/start", "/b%2Fc%7E.wav", "/b%2Fc%7E.wav"),
        ("/a%7E/start", "b%27.wav", "/a%7E/b%27.wav"),
        ("/a//start", "b//c.wav", "/a//b//c.wav"),
        ("/a/b/start", "../c%2F.wav", "/a/c%2F.wav"),
        ("/a/start", "../../../c.wav", "/c.wav"),
        ("/a/start?x=/y/z", "./c.wav?d=%2F", "/a/c.wav?d=%2F"),
        ("/a%2F/start?x", "?d=%2F", "/a%2F/start?d=%2F"),
    ],
)
async def test_a_relative_redirect_keeps_its_text(
    web: WebServer, tmp_path: Path, start: str, location: str, target: str
):
    web.places[start] = location
    web.put(target, BYTES)
    assert await fetched(web.url + start, tmp_path) == BYTES


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("/中 文.wav", "/%E4%B8%AD%20%E6%96%87.wav"),
        ("/ä%20b.wav?q=ü", "/%C3%A4%20b.wav?q=%C3%BC"),
        ("/100%.wav", "/100%25.wav"),
        ("/a.wav#part", "/a.wav"),
        ("/a\r\nX-Evil: 1.wav", "/a%0D%0AX-Evil:%201.wav"),
        ("", "/"),
        ("?a=%27", "/?a=%27"),
    ],
)
async def test_what_no_request_can_hold_is_encoded_once(
    web: WebServer, tmp_path: Path, given: str, sent: str
):
    web.put(sent, BYTES)
    assert await fetched(web.url + given, tmp_path) == BYTES


@pytest.mark.parametrize("target", ["/m%2Fa%7E'%27.jsonl", "//m//a.jsonl?x=a+b;c%7E"])
def test_the_manifest_itself_is_asked_for_as_it_is(web: WebServer, target: str):
    web.places["/start"] = web.put(target, b'{"audio": "a.wav"}\n')
    for url in (web.url + target, f"{web.url}/start"):
        with open_manifest(url, max_line_bytes=1000) as source:
            assert len(list(source)) == 1


def planned_clips(root: str, relative: str, folder: Path) -> tuple[str, ...]:
    manifest = write_manifest(folder / "m.jsonl", [record(relative)])
    settings = BuildSettings(
        manifest=str(manifest), output="o", input=InputSettings(audio_root=root)
    )
    linter = Linter(lint_rules(resolve_settings(settings), None))
    with open_manifest(str(manifest), max_line_bytes=10_000) as source:
        return linter.lint(next(iter(source))).clips


@pytest.mark.parametrize(
    ("root", "relative", "clip"),
    [
        ("s3://B/f", "a//x.wav", "s3://B/f/a//x.wav"),
        ("s3://B/f/", "a//x.wav", "s3://B/f/a//x.wav"),
        ("s3://B/f//", "x.wav", "s3://B/f//x.wav"),
        ("s3://B", "a//b/../x.wav", "s3://B/a//x.wav"),
        ("s3://B/f", "a%20#?b.wav", "s3://B/f/a%20#?b.wav"),
        ("s3://B/f", "./a/../x y+z.wav", "s3://B/f/x y+z.wav"),
        ("http://h/f", "a//x%2Fy%7E.wav?a=/b", "http://h/f/a//x%2Fy%7E.wav?a=/b"),
        ("http://h/f//", "x.wav", "http://h/f//x.wav"),
        ("http://h", "a//../x.wav", "http://h/a/x.wav"),
    ],
)
def test_a_relative_clip_keeps_its_text(tmp_path: Path, root: str, relative: str, clip: str):
    assert planned_clips(root, relative, tmp_path) == (clip,)


@pytest.mark.skipif(not Path(RCLONE).exists(), reason="rclone is not installed")
@pytest.mark.parametrize("name", ["a%20b#c?d=e.wav", "ä b+c.wav", "it's [1];x~.wav", "%2F.wav"])
async def test_a_key_on_s3_is_asked_for_as_it_is(s3: S3Server, tmp_path: Path, name: str):
    (s3.folder / "keys" / "f").mkdir(parents=True, exist_ok=True)
    (s3.folder / "keys" / "f" / name).write_bytes(BYTES)
    assert await fetched(f"s3://keys/f/{name}", tmp_path) == BYTES


@pytest.mark.parametrize("key", ["a//x.wav", "/x.wav", "a/./x.wav", "a//"])
async def test_no_slash_of_a_key_on_s3_is_lost(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    web.put(f"/keys/{key}", BYTES)
    assert await fetched(f"s3://keys/{key}", tmp_path) == BYTES
