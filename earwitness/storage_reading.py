"""Objects read in pieces, each piece again when storage breaks off."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from earwitness.errors import StorageUnavailableError, TransientError

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
