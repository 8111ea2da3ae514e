"""Addresses are resolved as manifests mean them; objects are written whole; errors are sorted."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.addresses import absolute_uri, join_uri, parent_uri, split_protocol
from earwitness.errors import (
    CredentialsError,
    DiskError,
    FatalError,
    StorageUnavailableError,
)
from earwitness.storage import Store
from earwitness.storage_calls import filesystem, stamp_of
from earwitness.storage_errors import translate_error

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("base", "relative", "joined"),
    [
        ("/data/manifests", "a.wav", "/data/manifests/a.wav"),
        ("/data/manifests", "../clips/a.wav", "/data/clips/a.wav"),
        ("/data", "/other/a.wav", "/other/a.wav"),
        ("/data", "s3://bucket/a.wav", "s3://bucket/a.wav"),
        ("s3://bucket/manifests", "clips/a.wav", "s3://bucket/manifests/clips/a.wav"),
        ("s3://bucket/manifests", "../clips/a.wav", "s3://bucket/clips/a.wav"),
        ("http://host/m", "clips/a.wav", "http://host/m/clips/a.wav"),
        ("http://host/m", "../a.wav", "http://host/a.wav"),
        ("file:///data", "a b.wav", "/data/a b.wav"),
    ],
)
def test_relative_clips_start_from_their_folder(base: str, relative: str, joined: str):
    assert join_uri(base, relative) == joined


@pytest.mark.parametrize(
    ("uri", "parent"),
    [
        ("s3://bucket/a/m.jsonl", "s3://bucket/a"),
        ("http://host/m.jsonl", "http://host"),
        ("/a/m.jsonl", "/a"),
    ],
)
def test_the_parent_is_the_folder(uri: str, parent: str):
    assert parent_uri(uri) == parent


def test_a_windows_like_or_odd_name_is_a_plain_path():
    assert split_protocol("C:/x.wav") == "file"
    assert split_protocol("what is this://x") == "file"


def test_a_plain_path_is_made_absolute_and_a_url_is_not(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("out") == str(tmp_path / "out")
    assert absolute_uri("s3://bucket/out") == "s3://bucket/out"


def test_an_unknown_protocol_says_so():
    with pytest.raises(FatalError, match="gopher"):
        filesystem("gopher://x/y")


def test_what_is_written_is_read_back(tmp_path: Path):
    store = Store(str(tmp_path))
    store.write_bytes("a/b/c.bin", b"content")
    assert store.read_bytes("a/b/c.bin") == b"content"
    assert store.exists("a/b/c.bin")
    assert store.sizes("a") == {"a/b/c.bin": 7}
    assert store.folders() == ["a"]


def test_a_missing_object_is_missing(tmp_path: Path):
    store = Store(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        store.read_bytes("nothing")
    assert store.sizes("nothing") == {}
    assert store.folders("nothing") == []
    store.delete(["nothing"])
    store.delete_folder("nothing")


def test_a_failed_write_leaves_the_old_object_and_no_litter(tmp_path: Path):
    store = Store(str(tmp_path))
    store.write_bytes("a", b"old")
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "no such source", "a")
    assert store.read_bytes("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unfinished_writes_are_not_listed(tmp_path: Path):
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    assert Store(str(tmp_path)).sizes() == {}


def test_a_changed_file_has_another_stamp(tmp_path: Path):
    path = tmp_path / "clip"
    path.write_bytes(b"one")
    before = stamp_of(str(path))
    os.utime(path, ns=(1, 1))
    assert stamp_of(str(path)) != before
    assert stamp_of(str(path)).size_bytes == before.size_bytes


@given(st.binary(max_size=300))
def test_any_bytes_survive_storage(data: bytes):
    import fsspec

    fsspec.filesystem("memory").store.clear()
    store = Store("memory://bucket")
    store.write_bytes("object", data)
    assert store.read_bytes("object") == data


class ClientError(Exception):
    def __init__(self, code: str, status: int = 0) -> None:
        super().__init__(code)
        answer = {"HTTPStatusCode": status}
        self.response = {"Error": {"Code": code}, "ResponseMetadata": answer}


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (TimeoutError(), StorageUnavailableError),
        (ConnectionResetError(), StorageUnavailableError),
        (OSError(errno.EIO, "io"), StorageUnavailableError),
        (caused_by(OSError("slow"), ClientError("SlowDown")), StorageUnavailableError),
        (caused_by(PermissionError("no"), ClientError("ExpiredToken")), CredentialsError),
        (caused_by(PermissionError("no"), ClientError("InvalidAccessKeyId")), CredentialsError),
        (caused_by(PermissionError("no"), ClientError("RequestTimeTooSkewed")), CredentialsError),
        (caused_by(FileNotFoundError("no"), ClientError("NoSuchUpload")), StorageUnavailableError),
        (
            caused_by(OSError(errno.EREMOTEIO, "x"), ClientError("500", 500)),
            StorageUnavailableError,
        ),
        (caused_by(OSError(errno.EIO, "x"), ClientError("429", 429)), StorageUnavailableError),
        (OSError(errno.ENOSPC, "full"), DiskError),
    ],
)
def test_storage_errors_are_sorted_by_what_helps(error: Exception, meaning: type[Exception]):
    assert type(translate_error(error, "s3://bucket/x")) is meaning


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        caused_by(PermissionError("no"), ClientError("AccessDenied")),
        caused_by(OSError(errno.EIO, "x"), ClientError("EntityTooLarge", 400)),
        ValueError("nothing to do with storage"),
    ],
)
def test_errors_about_one_object_alone_stay_as_they_are(error: Exception):
    assert translate_error(error, "s3://bucket/x") is None
