"""Clips in local folders, and on whatever else fsspec opens, read by threads."""

from __future__ import annotations

import asyncio
import os
import stat as stats
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from earwitness.access import outside
from earwitness.addresses import local_path
from earwitness.audio.sink import CHUNK_BYTES
from earwitness.audio.source import Found, bad_uri, missing, raise_ours, refused, shown
from earwitness.errors import BadRecordError, EarwitnessError, StorageUnavailableError
from earwitness.patience import Patience
from earwitness.records import Stage, Stamp
from earwitness.storage_calls import filesystem, stamp_from
from earwitness.storage_errors import says_denied, says_missing, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from io import FileIO

    from earwitness.access import AccessPolicy
    from earwitness.audio.sink import ClipSink

T = TypeVar("T")

TRUSTED_AGE_NS = 2_000_000_000
"""A file modified within 2 s of the read may change again under the same time stamp."""


class FileSource:
    """Local files.

    Args:
        threads: How many at once.
        access: Which of them may be read.
    """

    def __init__(self, threads: int, access: AccessPolicy) -> None:
        self._access = access
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="clips")

    async def fetch(self, uri: str, sink: ClipSink) -> Stamp | None:
        """See `ClipSource.fetch`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _read_file, self._access, uri, sink)

    async def stat(self, uris: Sequence[str]) -> dict[str, Found]:
        """See `ClipSource.stat`."""
        loop = asyncio.get_running_loop()
        # a few hundred at once: handing each one alone to a thread costs more than asking
        parts = [uris[start : start + 256] for start in range(0, len(uris), 256)]
        jobs = [
            loop.run_in_executor(self._threads, _stat_files, self._access, part) for part in parts
        ]
        found: dict[str, Found] = {}
        for result in await asyncio.gather(*jobs):
            found.update(result)
        return found

    async def close(self) -> None:
        """See `ClipSource.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class AnySource:
    """Storage that only fsspec's own blocking calls reach."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="clips-any")
        self._patience = Patience()

    async def fetch(self, uri: str, sink: ClipSink) -> Stamp | None:
        """See `ClipSource.fetch`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _waited_for, _read_any, uri, sink)

    async def stat(self, uris: Sequence[str]) -> dict[str, Found]:
        """See `ClipSource.stat`."""
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._threads, _waited_for, self._stat, uri) for uri in uris]
        return dict(zip(uris, await asyncio.gather(*jobs), strict=True))

    async def close(self) -> None:
        """See `ClipSource.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _stat(self, uri: str) -> Found:
        if self._patience.spent:  # the download tells, and is what is waited for
            return None
        try:
            with translated(uri):
                stamp = _any_stamp(uri)
        except StorageUnavailableError:
            self._patience.failed()
            return None
        except (TypeError, ValueError, NotImplementedError):
            return None
        except Exception as error:
            self._patience.worked()
            if says_denied(error):
                return None
            if says_missing(error):
                return missing(uri, Stage.RESOLVE)
            raise
        self._patience.worked()
        return stamp


def _read_file(access: AccessPolicy, uri: str, sink: ClipSink) -> Stamp | None:
    try:
        file = _open(access, uri)
    except ValueError:
        raise BadRecordError(bad_uri(uri)) from None
    except OSError as error:
        raise_ours(error, uri, Stage.FETCH)
    with file:
        before = os.fstat(file.fileno())
        if not stats.S_ISREG(before.st_mode):
            raise BadRecordError(missing(uri))
        sink.expect(before.st_size)
        read_ns = time.time_ns()
        with translated(uri):
            # one byte more than there should be: its absence is the end
            while chunk := file.read(min(CHUNK_BYTES, before.st_size - sink.size_bytes + 1)):
                sink.write(chunk)
                if sink.size_bytes > before.st_size:
                    break
        after = os.fstat(file.fileno())
    if _version(before) != _version(after) or sink.size_bytes != after.st_size:
        raise StorageUnavailableError(f"{uri} changed while it was read")
    if read_ns - after.st_mtime_ns < TRUSTED_AGE_NS:
        return None
    return Stamp(after.st_size, _version(after))


def _open(access: AccessPolicy, uri: str) -> FileIO:
    if access.trusted:
        return open(local_path(uri), "rb", buffering=0, opener=_not_waiting)
    place = _place(access, uri, Stage.FETCH)
    try:
        # the very file that was judged, whatever its name leads to by now
        return open(_link(place), "rb", buffering=0, opener=_not_waiting)
    finally:
        os.close(place)


def _place(access: AccessPolicy, uri: str, stage: Stage) -> int:
    """A descriptor of a file that may be read, with which it is not open yet.

    Raises:
        BadRecordError: `address_refused`, also where there is no such file.
    """
    path = local_path(uri)
    try:
        place = os.open(path, os.O_PATH)
    except OSError:
        if not access.holds(os.path.realpath(path)):
            raise BadRecordError(refused(uri, outside(), stage)) from None
        raise
    try:
        allowed = access.holds(str(_link(place).readlink()))
    except OSError:  # without /proc nobody can tell
        allowed = False
    if not allowed:
        os.close(place)
        raise BadRecordError(refused(uri, outside(), stage))
    return place


def _link(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


def _not_waiting(path: str, flags: int) -> int:
    # a named pipe would be waited for until somebody writes into it
    return os.open(path, flags | os.O_NONBLOCK)


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}:{status.st_ino}"


def _stat_files(access: AccessPolicy, uris: Sequence[str]) -> dict[str, Found]:
    return {uri: _stat_file(access, uri) for uri in uris}


def _stat_file(access: AccessPolicy, uri: str) -> Found:
    try:
        status = _status(access, uri)
    except BadRecordError as error:
        return error.rejection
    except (FileNotFoundError, NotADirectoryError):
        return missing(uri, Stage.RESOLVE)
    except (OSError, ValueError):
        return None
    return Stamp(status.st_size, _version(status)) if stats.S_ISREG(status.st_mode) else None


def _status(access: AccessPolicy, uri: str) -> os.stat_result:
    if access.trusted:
        # a plain path as it is: making a `Path` of it takes three times as long as asking
        return os.stat(uri if "://" not in uri else local_path(uri))  # noqa: PTH116
    place = _place(access, uri, Stage.RESOLVE)
    try:
        return os.fstat(place)
    finally:
        os.close(place)


def _waited_for(call: Callable[..., T], *arguments: Any) -> T:
    """A call in a thread whose end somebody waits for in an event loop."""
    try:
        return call(*arguments)
    except StopIteration as error:
        # no future of asyncio takes it: it would be waited for for ever
        raise RuntimeError("StopIteration") from error


def _any_stamp(uri: str) -> Stamp | None:
    fs, path = filesystem(uri)
    stamp = stamp_from(fs.info(path))
    return stamp if stamp.version else None


def _read_any(uri: str, sink: ClipSink) -> Stamp | None:
    try:
        before = _any_stamp(uri)
        fs, path = filesystem(uri)
        with fs.open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                sink.write(chunk)
        after = _any_stamp(uri)
    except EarwitnessError:
        raise
    except (TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, OSError):  # a hub's answer, which is both
            raise_ours(error, uri, Stage.FETCH)
        # file systems that want more than an address (zip:// without its archive)
        raise BadRecordError(bad_uri(uri)) from None
    except Exception as error:  # noqa: BLE001 - each library has errors of its own
        raise_ours(error, uri, Stage.FETCH)
    if before != after or (after is not None and after.size_bytes != sink.size_bytes):
        raise StorageUnavailableError(f"{shown(uri)} changed while it was read")
    return after
