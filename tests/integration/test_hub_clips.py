"""Clips on a hub, a real server in its place: what its answers mean, and who gets the token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fsspec.config import conf
from huggingface_hub import HfFileSystem
from workbench import WebServer, clip_bytes, free_port, record, tone, write_clip, write_manifest

from earwitness import storage_calls
from earwitness.audio.fetch import ClipFetcher, stat_clips, unavailable
from earwitness.builds.prepare import resolve_settings
from earwitness.check import check_clips, lint_manifest
from earwitness.errors import BadRecordError, CredentialsError, StorageUnavailableError
from earwitness.records import Rejection, Stamp
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URI = "hf://datasets/x/y/a.wav"
REPO = "/api/datasets/x/y"
TREE = f"{REPO}/tree/main?recursive=false&expand=false"
FILE = "/datasets/x/y/resolve/main/a.wav"


class Hub(WebServer):
    """A hub with one data set and one clip in it."""

    def open(self, clip: bytes) -> None:
        self.put(REPO, json.dumps({"id": "x/y", "sha": "1" * 40}).encode())
        entry = {"type": "file", "oid": "2" * 40, "size": len(clip), "path": "a.wav"}
        self.put(TREE, json.dumps([entry]).encode())
        self.put(FILE, clip)


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        server.open(clip_bytes(tmp_path, 440))
        use(server.url, monkeypatch)
        yield server
    storage_calls._filesystem.cache_clear()


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conf, "hf", {"endpoint": url, "token": "hf_secret"})
    HfFileSystem.clear_instance_cache()
    storage_calls._filesystem.cache_clear()


def manifest(folder: Path) -> Path:
    write_clip(folder / "b.wav", tone(500))
    return write_manifest(folder / "m.jsonl", [record(URI), record("b.wav")])


def checked(path: Path) -> dict[str, int]:
    settings = resolve_settings(BuildSettings(manifest=str(path), output="o"))
    report = lint_manifest(settings)
    check_clips(settings, report)
    return {reason: found.rows for reason, found in report.rejections.items()}


async def reason(folder: Path, uri: str = URI) -> str | None:
    """Why a clip is not had, as fetching tells; asking for the stamp must not say otherwise."""
    stated = (await stat_clips([uri]))[uri]
    try:
        async with ClipFetcher() as fetcher:
            await fetcher.fetch(uri, folder, 10**6)
    except BadRecordError as error:
        found = error.rejection.reason
        assert not isinstance(stated, Stamp)
        assert getattr(stated, "reason", found) is found
        return str(found)
    except StorageUnavailableError as error:
        assert not isinstance(stated, Rejection)
        return str(unavailable(error).reason)
    return None


async def test_a_clip_on_a_hub_is_fetched(tmp_path: Path, hub: Hub):
    assert await reason(tmp_path) is None
    assert hub.downloads[FILE]


ANSWERS = {
    "429 at the repository": (REPO, 429, {}, "fetch_failed"),
    "503 at the repository": (REPO, 503, {}, "fetch_failed"),
    "no such repository": (REPO, 404, {"X-Error-Code": "RepoNotFound"}, "clip_missing"),
    "a private repository": (REPO, 401, {"X-Error-Code": "RepoNotFound"}, "clip_missing"),
    "a repository that wants a login": (REPO, 401, {}, "access_denied"),
    "a gated repository": (REPO, 403, {"X-Error-Code": "GatedRepo"}, "access_denied"),
    "a disabled repository": (
        REPO,
        403,
        {"X-Error-Message": "Access to this resource is disabled."},
        "access_denied",
    ),
    "no such folder": (TREE, 404, {"X-Error-Code": "EntryNotFound"}, "clip_missing"),
    "a gated file": (FILE, 403, {"X-Error-Code": "GatedRepo"}, "access_denied"),
    "a gated file without login": (FILE, 401, {"X-Error-Code": "GatedRepo"}, "access_denied"),
    "a file that is gone": (FILE, 404, {"X-Error-Code": "EntryNotFound"}, "clip_missing"),
    "a forbidden file": (FILE, 403, {}, "access_denied"),
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_what_a_hub_answers_is_about_one_clip(tmp_path: Path, hub: Hub, kind: str):
    target, status, headers, expected = ANSWERS[kind]
    hub.statuses[target], hub.sent = status, headers
    if target == FILE:  # what is said of the file is not known before it is read
        with pytest.raises(BadRecordError) as caught:
            async with ClipFetcher() as fetcher:
                await fetcher.fetch(URI, tmp_path, 10**6)
        assert caught.value.rejection.reason == expected
    else:
        assert await reason(tmp_path) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "hf://datasets/x/y/none.wav",
        "hf://datasets/x/none/a.wav",
        "hf://datasets/x/y",
        "hf://datasets/x/y@none/a.wav",
        "hf://a.wav",
        "hf://",
        "hf:///",
        "hf://datasets/x/y@/a.wav",
        "hf://datasets/..//a.wav",
    ],
)
@pytest.mark.usefixtures("hub")
async def test_what_is_no_clip_on_a_hub_is_one_rejection(tmp_path: Path, uri: str):
    assert await reason(tmp_path, uri) in {"clip_missing", "bad_uri", "clip_empty"}


def test_a_hub_that_is_not_there_is_a_passing_fault(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, build: Any
):
    path = manifest(tmp_path)
    use(f"http://127.0.0.1:{free_port()}", monkeypatch)
    assert checked(path) == {"fetch_failed": 1}
    counts = build(path, tmp_path / "out")
    assert (counts["answered"], counts["transient"]) == (1, 1)
    use(hub.url, monkeypatch)
    counts = build(path, tmp_path / "out")
    assert (counts["answered"], counts["rejected"]) == (2, 0)


async def test_a_hub_that_is_busy_for_a_moment_is_asked_again(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "20")
    hub.busy[REPO] = 3
    assert await reason(tmp_path) is None
    assert sum(target == REPO for target, _ in hub.requests) >= 3


async def test_a_token_the_hub_does_not_know_rejects_nothing(tmp_path: Path, hub: Hub):
    hub.statuses[REPO] = 401
    hub.sent = {"X-Error-Message": "Invalid credentials in Authorization header"}
    with pytest.raises(CredentialsError, match="HF_TOKEN"):
        await reason(tmp_path)


async def test_the_token_stays_with_the_hub(tmp_path: Path, hub: Hub):
    with WebServer() as other:
        # cookies and logins know no ports: another name is another host
        place = other.put("/blob", hub.objects.pop(FILE)).replace("127.0.0.1", "localhost")
        hub.places[FILE], hub.sent = place, {"Set-Cookie": "track=me; Path=/"}
        assert await reason(tmp_path) is None
        assert other.requests
        told = {name for _, headers in other.requests for name in headers}
        assert not told & {"authorization", "cookie"}
    assert any(headers.get("authorization") for _, headers in hub.requests)
