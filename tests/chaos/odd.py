"""Odd encodings: what recorders, pipes, editors and taggers leave behind, seeded.

Unlike damage, most of these files are heard whole by players. Each way fits one family of
containers, named by the first part of a clip's name, or any.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.chaos.damage import ABSURD, with_checksums
from tests.chaos.pieces import (
    boxes,
    family,
    id3v2,
    mp3_frames,
    ogg_pages,
    riff,
    riff_chunks,
    tags_behind,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    Way = Callable[["Drawn"], bytes]

HARMLESS = frozenset(
    {
        "concatenated", "zeros behind", "tag before", "tags behind", "no count", "shape changes",
        "chained", "live", "duration", "durations", "pauses",
    }
)  # fmt: skip
"""What takes no sound away and puts none of another kind in: nothing to reject a clip for."""
_MKV_UNKNOWN = {1: b"\xff", 4: b"\x1f\xff\xff\xff", 8: b"\x01" + b"\xff" * 7}
_AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32)
"""A frame of each speech mode of AMR narrow band, with its first byte."""


class Drawn(NamedTuple):
    """What a way starts from: the whole clips, which of them, and the dice."""

    clips: dict[str, bytes]
    name: str
    dice: Random

    @property
    def data(self) -> bytes:
        return self.clips[self.name]

    def other(self) -> bytes:
        """A clip of the same family, often this very one."""
        names = [name for name in self.clips if family(name) == family(self.name)]
        return self.clips[self.dice.choice([self.name, *names])]


def odd(clips: dict[str, bytes], name: str, dice: Random) -> tuple[str, bytes]:
    """One clip, encoded oddly.

    Args:
        clips: Whole clips by name.
        name: Which to start from.
        dice: Decides everything.

    Returns:
        What was done, and the file.
    """
    own = _WAYS.get(family(name), {})
    # twice as often by a way of its own container
    kind = dice.choice([*_ANY, *own, *own])
    way = own.get(kind) or _ANY[kind]
    data = way(Drawn(clips, name, dice))
    if len(data) > 1 and dice.random() < 0.25:  # else there is nothing to change again
        second = dice.choice([*_ANY, *own])
        way = own.get(second) or _ANY[second]
        data = way(Drawn({**clips, name: data}, name, dice))
        kind += "+" + second
    return kind, with_checksums(data) if data[:4] == b"OggS" else data


def _concatenated(drawn: Drawn) -> bytes:
    count = drawn.dice.choice([1, 1, 2, 4])
    return drawn.data + b"".join(drawn.other() for _ in range(count))


def _padded(drawn: Drawn) -> bytes:
    return drawn.data + bytes(drawn.dice.choice([1, 3, 128, 5_000, 60_000]))


def _noise_behind(drawn: Drawn) -> bytes:
    return drawn.data + drawn.dice.randbytes(drawn.dice.choice([1, 7, 100, 3_000]))


def _tagged_before(drawn: Drawn) -> bytes:
    return b"".join(id3v2(drawn.dice) for _ in range(drawn.dice.choice([1, 1, 2]))) + drawn.data


def _tagged_behind(drawn: Drawn) -> bytes:
    return drawn.data + tags_behind(drawn.dice)


def _cut_in_tail(drawn: Drawn) -> bytes:
    return drawn.data[: -drawn.dice.randrange(1, min(200, len(drawn.data)))]


def _cut_in_half(drawn: Drawn) -> bytes:
    return drawn.data[: drawn.dice.randrange(len(drawn.data) // 3, len(drawn.data))]


def _piece_lost(drawn: Drawn) -> bytes:
    """A stretch missing in the second half: a lost block of a transfer."""
    data = drawn.data
    start = drawn.dice.randrange(len(data) // 2, len(data))
    return data[:start] + data[start + drawn.dice.choice([1, 100, 512, 1_500]) :]


_ANY: dict[str, Way] = {
    "concatenated": _concatenated,
    "zeros behind": _padded,
    "noise behind": _noise_behind,
    "tag before": _tagged_before,
    "tags behind": _tagged_behind,
    "cut in tail": _cut_in_tail,
    "cut": _cut_in_half,
    "piece lost": _piece_lost,
}


# --- MP3 and other streams of frames


def _frames(drawn: Drawn) -> list[bytes]:
    data = drawn.data
    return [data[start:end] for start, end in mp3_frames(data)] or [data]


def _untagged(drawn: Drawn) -> bytes:
    """Written to a pipe: the frame with the count is missing."""
    return b"".join(part for part in _frames(drawn) if b"Xing" not in part and b"Info" not in part)


def _counted_wrongly(drawn: Drawn) -> bytes:
    """The count of frames in Xing or Info: none, a third, twice, or nonsense."""
    data = bytearray(drawn.data)
    at = max(data.find(b"Xing"), data.find(b"Info"))
    if at < 0 or len(data) < at + 16:
        return bytes(data)
    count = struct.unpack_from(">I", data, at + 8)[0]
    given = drawn.dice.choice([0, 1, count // 3, count - 1, count + 1, 2 * count, *ABSURD])
    struct.pack_into(">I", data, at + 8, given & 0xFFFFFFFF)
    if drawn.dice.random() < 0.3:
        struct.pack_into(">I", data, at + 12, drawn.dice.choice([0, len(data) // 3, 2**31]))
    if drawn.dice.random() < 0.3:
        struct.pack_into(">I", data, at + 4, drawn.dice.randrange(16))
    return bytes(data)


def _frames_changed(drawn: Drawn) -> bytes:
    """Frames lost, doubled, blanked, or with something between them."""
    frames, dice = _frames(drawn), drawn.dice
    at = dice.randrange(len(frames))
    part = frames[at]
    between = [
        b"", part * 2, bytes(len(part)), part + id3v2(dice), part + tags_behind(dice),
        part + dice.randbytes(dice.randrange(1, 900)), part + bytes(dice.randrange(5_000)),
        part[: len(part) // 2],
    ]  # fmt: skip
    return b"".join([*frames[:at], dice.choice(between), *frames[at + 1 :]])


def _shape_changes(drawn: Drawn) -> bytes:
    """Another rate or other channels midway, all without counts."""
    parts = [drawn, *(drawn._replace(clips={drawn.name: drawn.other()}) for _ in range(2))]
    return b"".join(map(_untagged, parts))


# --- Ogg


def _pages_changed(drawn: Drawn) -> bytes:
    pages, dice = ogg_pages(drawn.data), drawn.dice
    at = dice.randrange(len(pages))
    page = pages[at]
    instead = [
        b"", page * 2, page + dice.randbytes(dice.randrange(1, 400)), page + bytes(3_000),
        page[: len(page) // 2], page[:5] + bytes([dice.randrange(8)]) + page[6:],
        page[:6] + struct.pack("<q", dice.choice([-1, 0, 1, 10**6, 2**62])) + page[14:],
        page[:14] + dice.randbytes(4) + page[18:], page[:18] + dice.randbytes(4) + page[22:],
    ]  # fmt: skip
    return b"".join([*pages[:at], dice.choice(instead), *pages[at + 1 :]])


def _pages_cut(drawn: Drawn) -> bytes:
    pages = ogg_pages(drawn.data)
    return b"".join(pages[: drawn.dice.randrange(1, len(pages) + 1)])


def _chained(drawn: Drawn) -> bytes:
    """Links one after the other, each with a serial number of its own, or all with one."""
    links = [drawn.data, *(drawn.other() for _ in range(drawn.dice.choice([1, 1, 2, 3])))]
    own = drawn.dice.random() < 0.8
    return b"".join(_with_serial(link, number if own else 7) for number, link in enumerate(links))


def _with_serial(data: bytes, serial: int) -> bytes:
    pages = ogg_pages(data)
    return b"".join(page[:14] + struct.pack("<I", serial) + page[18:] for page in pages)


def _multiplexed(drawn: Drawn) -> bytes:
    """Two streams at once: first pages first, then the others in turn."""
    mine = ogg_pages(_with_serial(drawn.data, 1))
    theirs = ogg_pages(_with_serial(drawn.other(), 2))
    mixed = [mine[0], theirs[0]]
    for number in range(1, max(len(mine), len(theirs))):
        mixed += mine[number : number + 1] + theirs[number : number + 1]
    return b"".join(mixed)


# --- WAV and its kin


def _sizes_changed(drawn: Drawn) -> bytes:
    """The size of the samples, or of all, as streams and crashed recorders leave it."""
    data, dice = bytearray(drawn.data), drawn.dice
    at = data.find(b"data") + 4
    size = struct.unpack_from("<I", data, at)[0]
    sizes = [0, size // 2, size + 60, size + 1, size - 1, 10 * size, 2**30, 2_000_000_000]
    sizes += [0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x7FFFF000, dice.randrange(2**32)]
    struct.pack_into("<I", data, dice.choice([at, at, 4]), dice.choice(sizes) & 0xFFFFFFFF)
    return bytes(data)


def _chunks_changed(drawn: Drawn) -> bytes:
    """Chunks more, fewer, of odd length, in another order; samples in two parts."""
    chunks, dice = riff_chunks(drawn.data), drawn.dice
    if not chunks:
        return drawn.data
    body = dice.randbytes(dice.randrange(900))
    more = (dice.choice([b"LIST", b"JUNK", b"bext", b"id3 ", b"fact", b"cue "]), body)
    way = dice.choice(["more", "more", "fewer", "order", "two"])
    if way == "more":
        chunks.insert(dice.randrange(len(chunks) + 1), more)
    elif way == "fewer":
        chunks.pop(dice.randrange(len(chunks)))
    elif way == "order":
        dice.shuffle(chunks)
    else:
        # cut on a sample's border, whatever a sample's size is here
        chunks = [
            half
            for name, held in chunks
            for half in (
                [(name, held[:4800]), more, (name, held[4800:])]
                if name == b"data"
                else [(name, held)]
            )
        ]
    return riff(drawn.data, chunks, padded=dice.random() < 0.9)


def _streamed_64(drawn: Drawn) -> bytes:
    """RF64 and Wave64: 64-bit sizes that are none."""
    data, dice = bytearray(drawn.data), drawn.dice
    at = data.find(b"ds64") + 8 if data[:4] == b"RF64" else data.find(b"data\xf3\xac") + 16
    places = [at, at + 8, at + 16] if data[:4] == b"RF64" else [at, 16]
    size = dice.choice([0, -1, len(data) // 2, len(data) * 2, 2**40, 2**62])
    struct.pack_into("<q", data, dice.choice(places), size)
    return bytes(data)


def _big_endian_sizes(drawn: Drawn) -> bytes:
    """AIFF, AU, CAF: the sizes and counts of their headers."""
    data, dice = bytearray(drawn.data), drawn.dice
    places = {"au": [8, 4], "caf": [data.find(b"data") + 4, data.find(b"data") + 8]}
    marks = [data.find(b"SSND") + 4, data.find(b"COMM") + 10, 4]
    at = dice.choice(places.get(family(drawn.name), marks))
    size = dice.choice([0, 1, len(data) // 2, len(data) * 3, 0xFFFFFFFF, 0x7FFFFFFF, 2**30])
    struct.pack_into(">I", data, at, size)
    return bytes(data)


# --- MP4 and Matroska


def _boxes_changed(drawn: Drawn) -> bytes:
    """Boxes more, fewer, in another order, up to the end of the file, or without their last."""
    parts, dice = boxes(drawn.data), drawn.dice
    way = dice.choice(["free", "lost", "doubled", "open", "cut", "skip"])
    at = dice.randrange(len(parts))
    if way == "free":
        parts.insert(at, struct.pack(">I", 108) + b"free" + bytes(100))
    elif way == "lost":
        parts.pop(at)
    elif way == "doubled":
        parts.insert(at, parts[at])
    elif way == "open":
        parts[-1] = bytes(4) + parts[-1][4:]
    elif way == "cut":
        parts = parts[: at + 1]
    else:
        parts[at] = parts[at][:4] + b"skip" + parts[at][8:]
    return b"".join(parts)


def _durations_changed(drawn: Drawn) -> bytes:
    """Durations of film, track and media, and the edit list's."""
    data, dice = bytearray(drawn.data), drawn.dice
    places = {b"mvhd": 20, b"tkhd": 24, b"mdhd": 20, b"elst": 12, b"mehd": 8}
    marks = [mark for mark in places if mark in data]
    for mark in marks and dice.choices(marks, k=dice.choice([1, 2])):
        at = data.find(mark) + places[mark]
        given = struct.unpack_from(">I", data, at)[0]
        changed = dice.choice([0, given // 2, given * 2, given * 1000, 0xFFFFFFFF])
        struct.pack_into(">I", data, at, changed & 0xFFFFFFFF)
    return bytes(data)


def _live(drawn: Drawn) -> bytes:
    """Matroska as a live stream: sizes unknown."""
    data = bytearray(drawn.data)
    for mark in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
        at = data.find(mark) + 4
        while at > 3 and at < len(data) and drawn.dice.random() < 0.8:
            width = 9 - data[at].bit_length()
            data[at : at + width] = _MKV_UNKNOWN.get(width, data[at : at + width])
            at = data.find(mark, at) + 4
    return bytes(data)


def _matroska_duration(drawn: Drawn) -> bytes:
    data, dice = bytearray(drawn.data), drawn.dice
    at = data.find(b"\x44\x89\x88")
    if at >= 0:
        struct.pack_into(">d", data, at + 3, dice.choice([0.0, -1.0, 100.0, 5_000.0, 1e9]))
    return bytes(data)


# --- frames of fixed form


def _silence_frames(drawn: Drawn) -> bytes:
    """AMR with pauses: comfort noise and empty frames, and other modes, between the speech."""
    data, dice = drawn.data, drawn.dice
    frames: list[bytes] = []
    at = 6
    while at < len(data) and (mode := data[at] >> 3 & 15) < len(_AMR_BYTES):
        frames.append(data[at : at + _AMR_BYTES[mode]])
        at += _AMR_BYTES[mode]
        more = [b"", b"", b"\x44" + bytes(5), b"\x7c", b"\x7c" * 7, b"\x44" + dice.randbytes(5)]
        frames.append(dice.choice(more))
    return data[:6] + b"".join(frames) + data[at:]


def _flac_announces(drawn: Drawn) -> bytes:
    """Another count of samples, block sizes, or more blocks of metadata."""
    data, dice = bytearray(drawn.data), drawn.dice
    way = dice.choice(["count", "count", "blocks", "more"])
    if way == "count":
        data[21] &= 0xF0
        struct.pack_into(">I", data, 22, dice.choice([0, 1, 100, 4_000, 10**6, 2**32 - 1]))
    elif way == "blocks":
        struct.pack_into(">HH", data, 8, dice.choice([16, 4_096]), dice.choice([16, 4_096, 65_535]))
    else:
        size = dice.randrange(3_000)
        data[42:42] = b"" if data[4] & 0x80 else bytes([1]) + size.to_bytes(3, "big") + bytes(size)
    return bytes(data)


def _packets_changed(drawn: Drawn) -> bytes:
    """An MPEG transport stream's packets of 188 bytes: lost, doubled, in another order."""
    data, dice = drawn.data, drawn.dice
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    at = dice.randrange(len(packets))
    way = dice.choice(["lost", "doubled", "late", "cut"])
    if way == "lost":
        del packets[at : at + dice.choice([1, 3])]
    elif way == "doubled":
        packets.insert(at, packets[at])
    elif way == "late":
        packets.append(packets.pop(at))
    else:
        packets = packets[:at]
    return b"".join(packets)


def _wavpack_counts(drawn: Drawn) -> bytes:
    data = bytearray(drawn.data)
    struct.pack_into("<I", data, 12, drawn.dice.choice([0, 100, 10**6, 0xFFFFFFFF]))
    return bytes(data)


_MP3: dict[str, Way] = {
    "no count": _untagged,
    "wrong count": _counted_wrongly,
    "frames changed": _frames_changed,
    "shape changes": _shape_changes,
}
_OGG: dict[str, Way] = {
    "pages changed": _pages_changed,
    "pages cut": _pages_cut,
    "chained": _chained,
    "multiplexed": _multiplexed,
}
_WAYS: dict[str, dict[str, Way]] = {
    "mp3": _MP3,
    "ogg": _OGG,
    "wav": {"sizes": _sizes_changed, "chunks": _chunks_changed},
    "rf64": {"64-bit sizes": _streamed_64, "sizes": _sizes_changed},
    "w64": {"64-bit sizes": _streamed_64},
    "aiff": {"sizes": _big_endian_sizes},
    "au": {"sizes": _big_endian_sizes},
    "caf": {"sizes": _big_endian_sizes},
    "mp4": {"boxes": _boxes_changed, "durations": _durations_changed},
    "mkv": {"live": _live, "duration": _matroska_duration},
    "amr": {"pauses": _silence_frames},
    "flac": {"announces": _flac_announces},
    "mpegts": {"packets": _packets_changed},
    "wavpack": {"counts": _wavpack_counts},
}
