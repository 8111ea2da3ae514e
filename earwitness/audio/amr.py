"""The frames of an AMR file (RFC 4867, section 5): 20 ms each, of speech, of a pause, or lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    Data = bytes | mmap


class Kind(NamedTuple):
    """One of the two AMR codecs.

    Attributes:
        sizes: Bytes of a frame by its type, the type's own byte included.
        modes: How many of the types, from 0, are speech.
    """

    magic: bytes
    codec: str
    rate_hz: int
    samples: int
    sizes: tuple[int, ...]
    modes: int


class Frame(NamedTuple):
    """One frame of 20 ms."""

    offset: int
    length: int
    speech: bool


_KINDS = (
    Kind(b"#!AMR\n", "amrnb", 8_000, 160, (13, 14, 16, 18, 20, 21, 27, 32, 6, *[1] * 7), 8),
    Kind(b"#!AMR-WB\n", "amrwb", 16_000, 320, (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, *[1] * 6), 9),
)


def kind_of(head: bytes) -> Kind | None:
    """Which AMR codec a file is in; None: it is no AMR file of one channel."""
    return next((kind for kind in _KINDS if head.startswith(kind.magic)), None)


def pause_samples(codec: str, frame: bytes) -> int:
    """How long a frame lasts that is no speech; 0: it is speech, or of another codec."""
    kind = next((kind for kind in _KINDS if kind.codec == codec), None)
    if kind is None or not frame or frame[0] >> 3 & 0x0F < kind.modes:
        return 0
    return kind.samples


def frames(data: Data, kind: Kind, start: int = 0) -> Iterator[Frame]:
    """The frames of a file that begins at a place, the last one only if it is whole."""
    at = start + len(kind.magic)
    while at < len(data):
        number = data[at] >> 3 & 0x0F
        length = kind.sizes[number]
        if at + length > len(data):
            return
        yield Frame(at, length, number < kind.modes)
        at += length


def missing_bytes(data: Data, kind: Kind) -> int:
    """How many bytes the last frame announces beyond the end of the file."""
    at = len(kind.magic)
    while at < len(data):
        at += kind.sizes[data[at] >> 3 & 0x0F]
    return at - len(data)
