"""One way to every storage: local folders, S3, http and whatever else fsspec speaks."""

from __future__ import annotations

import io
import math
import os
import posixpath
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from earwitness.addresses import absolute_uri, address_fault, split_protocol
from earwitness.errors import EarwitnessError, FatalError, SettingsError
from earwitness.storage_calls import S3, abort_uploads, asked, filesystem, open_file, write_limit
from earwitness.storage_errors import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")

_HALF_WRITTEN = ".tmp-"
_DELETERS = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing.

    Attributes:
        size_bytes: Its size.
        modified_s: When it was written, in seconds since the epoch; infinite where storage does
            not say, so that it never counts as old.
    """

    size_bytes: int
    modified_s: float


def _modified_s(info: dict[str, Any]) -> float:
    for name in ("mtime", "LastModified", "last_modified", "updated"):
        known = info.get(name)
        if isinstance(known, datetime):
            return known.timestamp()
        if isinstance(known, int | float):
            return float(known)
    return math.inf


class Store:
    """A folder on any storage: whole objects written at once, markers trusted only when there.

    Args:
        root: Folder or URL everything is under.
    """

    def __init__(self, root: str) -> None:
        fault = address_fault(root)
        if fault is not None:
            raise SettingsError(fault)
        self.root = absolute_uri(root).rstrip("/")
        self._fs, self._base = filesystem(self.root)
        self._base = self._base.rstrip("/")
        self._protocol = split_protocol(root)
        self.local = self._protocol == "file"

    def uri(self, path: str) -> str:
        """The full address of an object."""
        return f"{self.root}/{path}" if path else self.root

    def _path(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base

    def sub(self, path: str) -> Store:
        """The store rooted at a folder inside this one."""
        return Store(self.uri(path))

    def _asked(self, path: str, call: Callable[[], T]) -> T:
        with self._permitted(path):
            return asked(self.uri(path), call)

    @contextmanager
    def _permitted(self, path: str) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            if self.local:
                raise
            raise FatalError(f"there is no permission for {self.uri(path)}: {error}") from error

    def read_bytes(self, path: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: There is no such object.
            StorageUnavailableError: Storage does not answer now.
        """
        # one request: s3fs would ask for a large object's parts, which may be of two versions
        whole = {"max_concurrency": 1} if self._protocol in S3 else {}
        return cast(
            "bytes", self._asked(path, lambda: self._fs.cat_file(self._path(path), **whole))
        )

    def open(self, path: str) -> BinaryIO:
        """An object opened for reading, seekable; see `open_file`."""
        with self._permitted(path):
            return open_file(self.uri(path))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write an object whole: readers see all of it or the one before it.

        Raises:
            StorageUnavailableError: Storage does not answer now.
            FatalError: The disk is full.
        """

        def write() -> None:
            if self.local:
                _replace_file(Path(self._path(path)), io.BytesIO(data))
            else:
                self._fs.pipe_file(self._path(path), data, **write_limit(self._protocol, len(data)))

        self._asked(path, write)

    def upload(self, source: Path, path: str) -> None:
        """Write a local file as an object, whole; the source stays.

        Raises:
            StorageUnavailableError: Storage does not answer now.
            FatalError: The disk is full.
        """

        def write() -> None:
            if self.local:
                with source.open("rb") as file:
                    _replace_file(Path(self._path(path)), file)
            else:
                limit = write_limit(self._protocol, source.stat().st_size)
                self._fs.put_file(str(source), self._path(path), **limit)

        self._asked(path, write)

    def exists(self, path: str) -> bool:
        """True when the object is there."""
        return bool(self._asked(path, lambda: self._fs.exists(self._path(path))))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Objects below a folder; storage may list one a while after it was written.

        Returns:
            Path relative to the store → size in bytes, sorted; empty when the folder is missing.
        """
        half_written = f"/{_HALF_WRITTEN}"
        return {
            path: entry.size_bytes
            for path, entry in self.entries(prefix).items()
            if half_written not in f"/{path}"
        }

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Everything below a folder, also what is only half written.

        Returns:
            Path relative to the store → size and time, sorted; empty when the folder is missing.
        """
        try:
            found = self._asked(prefix, lambda: self._fs.find(self._path(prefix), detail=True))
        except FileNotFoundError:
            return {}
        start = len(self._base) + 1
        return {
            name[start:]: Entry(int(found[name]["size"] or 0), _modified_s(found[name]))
            for name in sorted(found)
            # s3fs gives the folder itself where its first object appears during the call
            if found[name]["type"] != "directory"
        }

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below a folder, sorted."""
        try:
            entries = self._asked(prefix, lambda: self._fs.ls(self._path(prefix), detail=True))
        except FileNotFoundError:
            return []
        return sorted(
            posixpath.basename(entry["name"].rstrip("/"))
            for entry in entries
            if entry["type"] == "directory"
        )

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; those already gone are fine."""
        for path in paths:
            with suppress(FileNotFoundError):
                self._asked(path, partial(self._fs.rm_file, self._path(path)))

    def delete_many(self, paths: Sequence[str]) -> None:
        """Delete objects, many at once; those already gone are fine."""
        with ThreadPoolExecutor(_DELETERS) as pool:
            list(pool.map(lambda path: self.delete([path]), paths))

    def sweep(self, prefix: str) -> None:
        """Delete what killed processes left half written below a folder."""
        if self.local:
            for path in Path(self._path(prefix)).rglob(f"{_HALF_WRITTEN}*"):
                path.unlink(missing_ok=True)
        elif self._protocol in S3:
            # housekeeping: tried once; servers differ in what they say where there are none
            with suppress(EarwitnessError, OSError), translated(self.uri(prefix)):
                abort_uploads(self._fs, self._path(prefix))

    def delete_folder(self, prefix: str) -> None:
        """Delete everything below a folder and the folder itself."""
        with suppress(FileNotFoundError):
            self._asked(prefix, lambda: self._fs.rm(self._path(prefix), recursive=True))


def _replace_file(path: Path, source: BinaryIO) -> None:
    """Write a local file atomically and durably.

    A temporary file, its fsync, the rename, and the folder's fsync: without the last a power cut
    may take the name back, while what was written after it stays.
    """
    _make_folder(path.parent)
    temporary = path.parent / f"{_HALF_WRITTEN}{secrets.token_hex(6)}"
    try:
        with temporary.open("wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems cannot, and need not
            os.fsync(number)
    finally:
        os.close(number)
