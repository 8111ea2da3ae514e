"""The WAV files the engine hears: written, and recognised where a clip is one already."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from earwitness.errors import disk_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_PCM = 1
_SAMPLE_BYTES = 2


def wav_header(frames: int, rate_hz: int) -> bytes:
    """The 44 bytes before the samples of a mono 16-bit WAV file.

    Args:
        frames: How many samples follow.
        rate_hz: Their rate.
    """
    size = frames * _SAMPLE_BYTES
    shape = (16, _PCM, 1, rate_hz, rate_hz * _SAMPLE_BYTES, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES)
    riff = (b"RIFF", _HEADER.size - 8 + size, b"WAVE")
    return _HEADER.pack(*riff, b"fmt ", *shape, b"data", size)


def write_wav(destination: Path, pcm: NDArray[np.int16], rate_hz: int) -> None:
    """Write samples as a mono 16-bit WAV file, whole or not at all.

    Args:
        destination: Where it goes; replaced if it is there.
        pcm: The samples.
        rate_hz: Their rate.

    Raises:
        DiskError: The disk is full.
    """
    with _replacing(destination) as temporary, temporary.open("wb", buffering=0) as file:
        rest = memoryview(wav_header(len(pcm), rate_hz) + pcm.astype("<i2").tobytes())
        while rest:
            rest = rest[file.write(rest) :]


def pcm_digest(pcm: NDArray[np.int16], rate_hz: int) -> str:
    """The identity of a sound: hex SHA-256 of its rate and samples, as an engine gets them.

    Args:
        pcm: The samples, mono.
        rate_hz: Their rate.
    """
    digest = hashlib.sha256(b"%d\0" % rate_hz)
    digest.update(np.ascontiguousarray(pcm, "<i2").data)
    return digest.hexdigest()


def ready_samples(path: Path, rate_hz: int) -> NDArray[np.int16] | None:
    """The samples of a file that is, byte for byte, as `write_wav` would write them.

    Args:
        path: Any file.
        rate_hz: The rate they have to have.

    Returns:
        The samples; None: it is another kind of file, or one with more in it.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size - _HEADER.size
        if size < 0 or size % _SAMPLE_BYTES:
            return None
        if file.read(_HEADER.size) != wav_header(size // _SAMPLE_BYTES, rate_hz):
            return None
        return np.fromfile(file, "<i2").astype(np.int16, copy=False)


def hand_on(path: Path, destination: Path) -> None:
    """Give a file a second name, so that it is not written a second time.

    Args:
        path: A file that nobody changes any more.
        destination: Its second name; replaced if it is there.

    Raises:
        DiskError: It lies on another disk, and this one is full.
    """
    with _replacing(destination) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(path, temporary)


@contextmanager
def _replacing(destination: Path) -> Iterator[Path]:
    """A temporary name that takes the destination's place at the end of the block, or goes."""
    temporary = destination.with_name(f".tmp-{secrets.token_hex(6)}.wav")
    try:
        yield temporary
        temporary.replace(destination)
    except OSError as error:
        full = disk_error(error, f"the scratch folder {destination.parent}")
        if full is not None:
            raise full from error
        raise
    finally:
        # also where all went well: renaming one name of a file to another leaves both
        temporary.unlink(missing_ok=True)
