"""Where a clip's bytes go while they arrive: hashed, counted, named by their SHA-256."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

from earwitness.errors import BadRecordError, DiskError, disk_error
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

CHUNK_BYTES = 2**20
"""How much of a clip is in memory at once."""


class ClipSink:
    """A temporary file that becomes `folder/<sha256>` once whole.

    Args:
        folder: Where the clip is to lie.
        max_bytes: A larger clip is rejected, at the latest when this much has arrived.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._temporary = folder / f".tmp-{secrets.token_hex(6)}"
        self._sha256 = hashlib.sha256()
        self._file: FileIO | None = None
        self.size_bytes = 0

    def expect(self, size_bytes: int | None) -> None:
        """Refuse a clip by its announced size, before its bytes come.

        Raises:
            BadRecordError: `clip_too_large`.
        """
        if size_bytes is not None and size_bytes > self._max_bytes:
            detail = (
                f"the clip has {size_bytes:,} bytes, and only {self._max_bytes:,} are allowed "
                "(audio.max_clip_bytes)"
            )
            raise BadRecordError(Rejection(Stage.FETCH, Reason.CLIP_TOO_LARGE, detail))

    def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            BadRecordError: `clip_too_large`.
            DiskError: The scratch folder's disk is full, or the folder cannot be written.
        """
        self.size_bytes += len(chunk)
        if self.size_bytes > self._max_bytes:
            detail = (
                f"the clip has more than the {self._max_bytes:,} bytes that are allowed "
                "(audio.max_clip_bytes)"
            )
            raise BadRecordError(Rejection(Stage.FETCH, Reason.CLIP_TOO_LARGE, detail))
        self._sha256.update(chunk)
        # opened here and not before: in the thread that writes, not in the event loop
        file = self._file = self._file or self._opened()
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            full = disk_error(error, f"the scratch folder {self._folder}")
            if full is not None:
                raise full from error
            raise

    def _opened(self) -> FileIO:
        try:
            return self._temporary.open("wb", buffering=0)
        except OSError as error:
            # never as it is: whoever reads a clip takes "no such file" for the clip's own fault
            where = f"the scratch folder {self._folder}"
            full = disk_error(error, where)
            raise full or DiskError(f"{where} cannot be written: {error.strerror}") from error

    def finish(self) -> tuple[str, Path]:
        """Give the clip its name.

        Returns:
            Its SHA-256 in hex, and where it lies.

        Raises:
            BadRecordError: `clip_empty`.
        """
        if self._file is None or self.size_bytes == 0:
            detail = "the clip is empty (0 bytes)"
            raise BadRecordError(Rejection(Stage.FETCH, Reason.CLIP_EMPTY, detail))
        self._file.close()
        sha256 = self._sha256.hexdigest()
        path = self._folder / sha256
        self._temporary.replace(path)
        self._file = None
        return sha256, path

    def discard(self) -> None:
        """Leave nothing behind; harmless after `finish`."""
        if self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
