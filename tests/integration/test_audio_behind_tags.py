"""Clips whose container begins behind a tag that some program put before it."""

from __future__ import annotations

import struct

import pytest
from odd_clips import by_ffmpeg, by_libsndfile, heard_s, look, mp3, rejection, wav

from earwitness.records import Reason


def id3v2(content: bytes) -> bytes:
    size = bytes(len(content) >> 7 * place & 0x7F for place in (3, 2, 1, 0))
    return b"ID3\x04\0\0" + size + content


def ape(content: bytes) -> bytes:
    """An APE tag that stands before the sound: a header and no footer."""
    return (
        b"APETAGEX" + struct.pack("<IIII", 2_000, len(content), 1, 0xA0000000) + bytes(8) + content
    )


TAGS = {
    "a title": id3v2(bytes(300)),
    "what looks like MP3 frames": id3v2(b"\xff\xfb\x90\x64" * 250),
    "two tags": id3v2(bytes(127)) + id3v2(bytes(20_000)),
    "zeros behind the tag": id3v2(bytes(300)) + bytes(1_000),
    "an APE tag": ape(bytes(64)),
}


def flac(seconds: float, announced_s: float | None = None) -> bytes:
    data = by_libsndfile(seconds, 16_000, "FLAC", "PCM_16")
    if announced_s is None:
        return data
    return data[:22] + struct.pack(">I", round(announced_s * 16_000)) + data[26:]


FLACS = {
    "one": lambda: flac(5),
    "joined": lambda: flac(2) + flac(3),
    "joined, each behind a tag": lambda: flac(2) + TAGS["two tags"] + flac(3),
    "announces a third": lambda: flac(5, 1.6),
    "announces one sample": lambda: flac(5, 1 / 16_000),
    "announces nothing": lambda: flac(5, 0),
}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("case", FLACS)
def test_a_flac_behind_a_tag_is_heard_to_its_last_frame(tmp_path, case, tag):
    assert heard_s(tmp_path, TAGS[tag] + FLACS[case]()) == pytest.approx(5, abs=0.001)


CONTAINERS = {
    "wav": lambda: wav(64_000),
    "wav of unknown size": lambda: wav(0),
    "aiff": lambda: by_libsndfile(2, 16_000, "AIFF", "PCM_16"),
    "au": lambda: by_libsndfile(2, 16_000, "AU", "PCM_16"),
    "caf": lambda: by_libsndfile(2, 16_000, "CAF", "PCM_16"),
    "rf64": lambda: by_libsndfile(2, 16_000, "RF64", "PCM_16"),
    "w64": lambda: by_libsndfile(2, 16_000, "W64", "PCM_16"),
    "ogg": lambda: by_libsndfile(1, 16_000, "OGG", "VORBIS") * 2,
    "ogg-flac": lambda: by_ffmpeg("flac", "ogg", 2, 16_000),
    "mp4": lambda: by_ffmpeg("alac", "ipod", 2, 16_000),
    "matroska": lambda: by_ffmpeg("flac", "matroska", 2, 16_000),
    "mp3": lambda: mp3(2),
}


@pytest.mark.parametrize("tag", ["a title", "two tags"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_clip_behind_a_tag_is_heard_whole(tmp_path, container, tag):
    assert heard_s(tmp_path, TAGS[tag] + CONTAINERS[container]()) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("container", sorted(set(CONTAINERS) - {"wav of unknown size"}))
def test_a_cut_clip_behind_a_tag_is_truncated(tmp_path, container):
    data = CONTAINERS[container]()
    cut = TAGS["a title"] + data[: len(data) * 6 // 10]
    assert rejection(tmp_path, cut).reason is Reason.TRUNCATED


def test_pauses_in_amr_behind_a_tag_are_heard(tmp_path):
    data = TAGS["a title"] + b"#!AMR\n" + (b"\x3c" + bytes(31) + b"\x7c" + b"\x44" + bytes(5)) * 50
    assert look(tmp_path, data)[0].duration_s == pytest.approx(3)
