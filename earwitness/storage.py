"""One way to every storage: local folders, S3, http and whatever else fsspec speaks."""

from __future__ import annotations

import errno
import io
import os
import posixpath
import secrets
import shutil
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from earwitness.addresses import absolute_uri, local_path, split_protocol
from earwitness.errors import CredentialsError, FatalError, StorageUnavailableError
from earwitness.records import Stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from earwitness.errors import EarwitnessError

CREDENTIAL_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
"""S3 error codes that refuse the credentials themselves, not one object."""

_PASSING_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_PASSING_MODULES = ("aiohttp.", "botocore.", "aiobotocore.", "urllib3.")
_HALF_WRITTEN = ".tmp-"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@lru_cache(maxsize=64)
def _filesystem(protocol: str) -> Any:
    import fsspec

    try:
        # listings must be fresh: other machines write into the same prefixes
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        raise FatalError(f"{protocol}:// needs a package that is not installed: {error}") from error


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system for a URI and the URI's path on it.

    Raises:
        FatalError: fsspec lacks the package for this protocol.
    """
    protocol = split_protocol(uri)
    if protocol == "file":
        return _filesystem("file"), str(local_path(uri).absolute())
    try:
        fs = _filesystem(protocol)
    except ValueError as error:
        raise FatalError(f"nothing here can open {protocol}:// addresses ({uri})") from error
    return fs, cast("str", fs._strip_protocol(uri))  # noqa: SLF001 - fsspec's way to split a URL


def _error_code(error: BaseException) -> str:
    """The S3 error code a translated error came from, or an empty string."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return ""


def translate_error(error: BaseException, uri: str) -> EarwitnessError | None:
    """What a storage library's error means for us.

    Args:
        error: What the library raised.
        uri: The object it was about.

    Returns:
        `StorageUnavailableError` when it may pass, `CredentialsError` when the credentials
        themselves were refused, `FatalError` for a full disk; None when it says something about
        the object alone (missing, access denied) or nothing known.
    """
    name = type(error).__name__
    code = _error_code(error)
    if code in CREDENTIAL_CODES or name in {"NoCredentialsError", "PartialCredentialsError"}:
        return CredentialsError(
            f"the storage of {uri} refused the credentials ({code or name}); "
            "they come from the environment (for S3 AWS_ACCESS_KEY_ID, AWS_PROFILE, …)"
        )
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        return FatalError(f"no space left for {uri}")
    module = f"{type(error).__module__}."
    passing = (
        isinstance(error, TimeoutError | ConnectionError)
        or number in _PASSING_ERRNOS
        or code in {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"}
        or (module.startswith(_PASSING_MODULES) and not code)
    )
    if passing:
        return StorageUnavailableError(f"{uri}: {name}: {error}")
    return None


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Raise our own errors for what storage libraries raise inside the block."""
    try:
        yield
    except Exception as error:
        ours = translate_error(error, uri)
        if ours is None:
            raise
        raise ours from error


class Store:
    """A folder on any storage: whole objects written at once, markers trusted only when there.

    Args:
        root: Folder or URL everything is under.
    """

    def __init__(self, root: str) -> None:
        self.root = absolute_uri(root).rstrip("/")
        self._fs, self._base = filesystem(self.root)
        self._base = self._base.rstrip("/")
        self.local = split_protocol(root) == "file"

    def uri(self, path: str) -> str:
        """The full address of an object."""
        return f"{self.root}/{path}" if path else self.root

    def _path(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base

    def sub(self, path: str) -> Store:
        """The store rooted at a folder inside this one."""
        return Store(self.uri(path))

    def read_bytes(self, path: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: There is no such object.
            StorageUnavailableError: Storage does not answer now.
        """
        with translated(self.uri(path)):
            return cast("bytes", self._fs.cat_file(self._path(path)))

    def open(self, path: str) -> BinaryIO:
        """An object opened for reading, seekable."""
        with translated(self.uri(path)):
            return cast("BinaryIO", self._fs.open(self._path(path), "rb"))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write an object whole: readers see all of it or the one before it.

        Raises:
            StorageUnavailableError: Storage does not answer now.
            FatalError: The disk is full.
        """
        with translated(self.uri(path)):
            if self.local:
                _replace_file(Path(self._path(path)), io.BytesIO(data))
            else:
                self._fs.pipe_file(self._path(path), data)

    def upload(self, source: Path, path: str) -> None:
        """Write a local file as an object, whole; the source stays.

        Raises:
            StorageUnavailableError: Storage does not answer now.
            FatalError: The disk is full.
        """
        with translated(self.uri(path)):
            if self.local:
                with source.open("rb") as file:
                    _replace_file(Path(self._path(path)), file)
            else:
                self._fs.put_file(str(source), self._path(path))

    def exists(self, path: str) -> bool:
        """True when the object is there."""
        with translated(self.uri(path)):
            return bool(self._fs.exists(self._path(path)))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Objects below a folder.

        Returns:
            Path relative to the store → size in bytes, sorted; empty when the folder is missing.
        """
        with translated(self.uri(prefix)):
            try:
                found = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._base) + 1
        sizes = {name[start:]: int(info["size"] or 0) for name, info in found.items()}
        half_written = f"/{_HALF_WRITTEN}"
        return {path: sizes[path] for path in sorted(sizes) if half_written not in f"/{path}"}

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below a folder, sorted."""
        with translated(self.uri(prefix)):
            try:
                entries = self._fs.ls(self._path(prefix), detail=True)
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
            with translated(self.uri(path)):
                try:
                    self._fs.rm_file(self._path(path))
                except FileNotFoundError:
                    continue

    def sweep(self, prefix: str) -> None:
        """Delete what killed processes left half written below a folder."""
        if self.local:
            for path in Path(self._path(prefix)).rglob(f"{_HALF_WRITTEN}*"):
                path.unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        """Delete everything below a folder and the folder itself."""
        with translated(self.uri(prefix)):
            try:
                self._fs.rm(self._path(prefix), recursive=True)
            except FileNotFoundError:
                return


def stamp_of(uri: str) -> Stamp:
    """Size and version of an object, without reading it.

    Raises:
        FileNotFoundError: There is no such object.
        StorageUnavailableError: Storage does not answer now.
    """
    if split_protocol(uri) == "file":
        status = local_path(uri).stat()
        return Stamp(status.st_size, f"{status.st_mtime_ns}:{status.st_ino}")
    with translated(uri):
        fs, path = filesystem(uri)
        info = fs.info(path)
    version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime")
    return Stamp(int(info.get("size") or 0), str(version or "").strip('"'))


def _replace_file(path: Path, source: BinaryIO) -> None:
    """Write a local file atomically and durably (temporary file, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
