"""Calls to storage, made again while they fail for reasons that pass.

Every call over a network is repeated for about a minute (see `earwitness.patience`). Below that,
botocore repeats each single request twice; s3fs repeats nothing.
"""

from __future__ import annotations

import io
import time
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from earwitness.addresses import exact_url, local_path, split_protocol
from earwitness.errors import FatalError, StorageUnavailableError, TransientError
from earwitness.patience import Attempts, Patience
from earwitness.records import Stamp
from earwitness.storage_errors import error_code, translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer


_BUFFER_BYTES = 2**20


def patient_reader(uri: str, opened: Callable[[], Any], asked: Callable[..., Any]) -> BinaryIO:
    """An object opened for reading, seekable; every byte of it is of one version.

    Args:
        uri: Its address, for messages.
        opened: Opens it as fsspec does.
        asked: Makes a call again and again until it works.
    """
    return cast("BinaryIO", io.BufferedReader(_PatientFile(uri, opened, asked), _BUFFER_BYTES))


class _PatientFile(io.RawIOBase):
    """Opens the object anew where reading it failed, and goes on from the same place."""

    def __init__(self, uri: str, opened: Callable[[], Any], asked: Callable[..., Any]) -> None:
        self._uri = uri
        self._opened = opened
        self._asked = asked
        self._file: Any = None
        self._version: tuple[Any, Any] | None = None
        self._changed_to: tuple[Any, Any] | None = None
        self._given = False
        self._at = 0
        self._size: int = asked(lambda: self._current().size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        room = memoryview(buffer).cast("B")
        wanted = min(len(room), self._size - self._at)
        if wanted <= 0:
            return 0
        data: bytes = self._asked(lambda: self._read(wanted))
        room[: len(data)] = data
        self._at += len(data)
        self._given = True
        return len(data)

    def close(self) -> None:
        self._let_go()
        super().close()

    def _read(self, wanted: int) -> bytes:
        try:
            file = self._current()
            wanted = min(wanted, self._size - self._at)
            file.seek(self._at)
            data: bytes = file.read(wanted)
        except BaseException:
            self._let_go()
            raise
        if len(data) != wanted:
            self._let_go()
            raise StorageUnavailableError(f"{self._uri} was cut off while it was read")
        return data

    def _current(self) -> Any:
        """The opened file; of the version whose bytes were given out already, if any were."""
        if self._file is None:
            file = self._opened()
            version = (file.size, (getattr(file, "details", None) or {}).get("ETag"))
            if self._given and version != self._version:
                file.close()
                self._refuse(version)
            self._file, self._version, self._size = file, version, int(file.size)
        return self._file

    def _refuse(self, version: tuple[Any, Any]) -> None:
        """Another version: told wrongly the first time, changed for good the second time."""
        told = f"{self._uri} changed while it was read"
        if version == self._changed_to:
            raise TransientError(told)
        self._changed_to = version
        raise StorageUnavailableError(told)

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


T = TypeVar("T")

REQUEST_ATTEMPTS = 3
"""How often botocore makes one request of a call that may take many (a listing, a large upload)."""

S3 = frozenset({"s3", "s3a"})
_WEB = frozenset({"http", "https"})
_STREAMED = _WEB | {"file"}
"""Read without repetition: local files, and web servers, which may not give parts."""

_UNEXPLAINED = frozenset({"400", "403"})
"""S3's code where a refusal had no body: an answer to HEAD has none."""

_STAMP_READINGS = 6
_WRITE_S, _SLOWEST_BYTES_S = 30.0, 200_000
"""A server that stops taking a body would be waited for for ever: nothing below limits writing."""


@lru_cache(maxsize=64)
def _filesystem(protocol: str) -> Any:
    import fsspec

    # listings must be fresh: other machines write into the same prefixes
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in S3:
        known = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        config = {
            "retries": {"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS},
            # some servers answer a part of an object with the checksum of the whole
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        options["config_kwargs"] = {**config, **known}
        options["session"] = _session()
        # our own instance: whoever else uses s3fs in this process has its own ideas of retries
        options["skip_instance_cache"] = True
    if protocol in _WEB:
        options |= {"encoded": True, "get_client": _web_session}
    try:
        fs = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise FatalError(f"{protocol}:// needs a package that is not installed: {error}") from error
    if protocol in S3:
        fs.retries = 1
        # parts of a file are held against its ETag here: not every server heeds `If-Match`
        fs.local_expiry_check = True
    return fs


async def _web_session(**options: Any) -> Any:
    import aiohttp

    # addresses go out as they are given, also those of redirects; what servers set is not kept
    options = {"requote_redirect_url": False, "cookie_jar": aiohttp.DummyCookieJar(), **options}
    return aiohttp.ClientSession(**options)


def _session() -> Any:
    from aiobotocore.session import get_session

    session = get_session()
    session.register("before-call.s3", _not_expecting)
    return session


def _not_expecting(params: dict[str, Any], **_: Any) -> None:
    # botocore would wait a second to be told to send a body; aiohttp waits without any limit
    params["headers"].pop("Expect", None)


@lru_cache(maxsize=64)
def _patience(protocol: str) -> Patience:
    return Patience(0.0 if protocol == "file" else None)


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
        raise FatalError(f"{protocol}:// addresses cannot be opened ({uri})") from error
    if protocol in _WEB:
        return fs, str(exact_url(uri))
    return fs, cast("str", fs._strip_protocol(uri))  # noqa: SLF001 - fsspec's way to split a URL


def asked(uri: str, call: Callable[[], T]) -> T:
    """Make a call to storage until it works, for about a minute.

    Args:
        uri: What it is about.
        call: Safe to be made twice, also when the first time worked and only its answer was lost.

    Raises:
        StorageUnavailableError: It failed at every attempt.
        CredentialsError: Storage refused the credentials themselves.
        FatalError: The disk is full.
    """
    attempts = Attempts(_patience(split_protocol(uri)))
    while True:
        try:
            with translated(uri):
                answer = call()
        except StorageUnavailableError:
            pause_s = attempts.failed()
            if pause_s is None:
                raise
            time.sleep(pause_s)
        except OSError as error:
            attempts.worked()
            _explain(uri, error)
            raise
        else:
            attempts.worked()
            return answer


def _explain(uri: str, error: OSError) -> None:
    """Raise why storage refused something, where the refusal itself did not say."""
    if error_code(error) in _UNEXPLAINED:
        fs, path = filesystem(uri)
        asked(f"{uri}", lambda: fs.cat_file(path, start=0, end=1))


def write_limit(protocol: str, size_bytes: int) -> dict[str, float]:
    """How long writing an object may take, as fsspec's calls want it."""
    return {"timeout": _WRITE_S + size_bytes / _SLOWEST_BYTES_S} if protocol in S3 else {}


def abort_uploads(fs: Any, path: str) -> None:
    """Give up uploads in parts that were begun below a folder on S3 and never ended.

    Nobody sees their parts, and they are paid for. Whoever still uploads begins anew.
    """
    bucket, _, folder = path.partition("/")
    there = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}/")
    for upload in there.get("Uploads", []):
        with suppress(FileNotFoundError):
            fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])


def open_file(uri: str, **options: Any) -> BinaryIO:
    """An object opened for reading; seekable, except over http.

    Args:
        uri: Its address.
        options: For fsspec's own `open`.

    Raises:
        FileNotFoundError: There is no such object.
        StorageUnavailableError: Storage does not answer now; also when reading.
        TransientError: When reading: the object changed meanwhile.
    """
    fs, path = filesystem(uri)

    def opened() -> Any:
        return fs.open(path, "rb", **options)

    if split_protocol(uri) in _STREAMED:
        return cast("BinaryIO", asked(uri, opened))
    return patient_reader(uri, opened, lambda call: asked(uri, call))


def stamp_of(uri: str) -> Stamp:
    """Size and version of an object, without reading it.

    Raises:
        FileNotFoundError: There is no such object.
        StorageUnavailableError: Storage does not answer now.
    """
    if split_protocol(uri) == "file":
        status = local_path(uri).stat()
        return Stamp(status.st_size, f"{status.st_mtime_ns}:{status.st_ino}")
    fs, path = filesystem(uri)
    return stamp_from(asked(uri, lambda: fs.info(path)))


def stamp_from(info: dict[str, Any]) -> Stamp:
    """The stamp that fsspec's facts of an object hold; no version where there is none."""
    version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime")
    return Stamp(int(info.get("size") or 0), str(version or "").strip('"'))


def sure_stamp(uri: str) -> Stamp:
    """The stamp that storage gives twice in a row: what is decided by one stamp alone asks for it.

    Raises:
        FileNotFoundError: There is no such object.
        StorageUnavailableError: Storage does not answer now, or otherwise each time.
    """
    stamp = stamp_of(uri)
    for _ in range(_STAMP_READINGS):
        again = stamp_of(uri)
        if again == stamp:
            return stamp
        stamp = again
    raise StorageUnavailableError(
        f"the storage of {uri} reports a different version at each request"
    )
