"""What a file is recognised as, and whether its header announces more than is there."""

import struct

import numpy as np
import pytest
import soundfile

from earwitness.audio.ends import missing_bytes
from earwitness.audio.headers import audio_kind, looks_like
from earwitness.audio.probe import probe
from earwitness.errors import BadRecordError
from earwitness.records import Reason


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf\n <html>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML document"),
        (b'{"error": "not found"}', "a JSON document"),
        (b"PK\x03\x04" + bytes(60), "a ZIP archive"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
        (b"#EXTM3U\nhttp://example.com/a.ts", "a playlist"),
        ("Röyksopp, ein Text".encode(), "text"),
        (bytes(4096), "zero bytes only"),
        (b"\x01\x02\xfe\x99" * 8, "a file of an unknown kind"),
    ],
)
def test_what_is_not_audio_is_named(tmp_path, head, kind):
    assert audio_kind(head) is None
    assert looks_like(head) == kind
    path = tmp_path / "clip.wav"
    path.write_bytes(head)
    with pytest.raises(BadRecordError) as caught:
        probe(path)
    assert caught.value.rejection.reason is Reason.NOT_AUDIO
    assert kind in caught.value.rejection.detail


def test_damaged_audio_is_told_from_what_is_no_audio(tmp_path):
    path = tmp_path / "clip"
    path.write_bytes(b"fLaC" + b"\x55" * 500)
    with pytest.raises(BadRecordError) as caught:
        probe(path)
    assert caught.value.rejection.reason is Reason.DECODE_FAILED
    assert "a FLAC file" in caught.value.rejection.detail


@pytest.mark.parametrize("announced", [0xFFFFFFFF, 0x7FFFF000, 8_000 + 44])
def test_wav_lengths_as_stream_writers_leave_them_are_accepted(tmp_path, announced):
    path = tmp_path / "clip"
    soundfile.write(str(path), np.ones(4_000, np.int16), 16_000, format="WAV")
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", announced)
    path.write_bytes(data)
    assert missing_bytes(path) == 0


def test_missing_bytes_are_counted(tmp_path):
    path = tmp_path / "clip"
    soundfile.write(str(path), np.ones(4_000, np.int16), 16_000, format="WAV")
    path.write_bytes(path.read_bytes()[:-1_000])
    assert missing_bytes(path) == 1_000


@pytest.mark.parametrize("kind", ["AU", "CAF", "W64", "RF64", "AIFF"])
def test_bytes_missing_of_other_containers_are_counted(tmp_path, kind):
    path = tmp_path / "clip"
    soundfile.write(str(path), np.ones(4_000, np.int16), 16_000, format=kind)
    assert missing_bytes(path) == 0
    path.write_bytes(path.read_bytes()[:-1_000])
    assert missing_bytes(path) >= 1_000


@pytest.mark.parametrize(
    "data",
    [
        b".snd" + struct.pack(">II", 24, 0xFFFFFFFF) + bytes(100),
        b"caff\0\1\0\0data" + struct.pack(">q", -1) + bytes(100),
        b"riff" + bytes(12) + b"\xff" * 8 + bytes(100),
        b"RIFF" + bytes(4) + b"AVI " + bytes(100),
        b"caff\0\1\0\0junk" + struct.pack(">Q", 2**62) + bytes(100),
    ],
)
def test_lengths_left_open_or_absurd_announce_nothing(tmp_path, data):
    (tmp_path / "clip").write_bytes(data)
    assert missing_bytes(tmp_path / "clip") == 0


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 20_000 + b"data\0\xff\0\0",
        b"caff\0\1\0\0" + (b"junk" + bytes(8)) * 20_000 + b"data\0\0\0\0\0\0\xff\0",
        b"\0\0\0\x08ftyp" + b"\0\0\0\x08free" * 20_000 + b"\0\xff\0\0mdat",
    ],
)
def test_a_file_of_countless_empty_chunks_is_not_searched_to_its_end(tmp_path, data):
    (tmp_path / "clip").write_bytes(data)
    assert missing_bytes(tmp_path / "clip") == 0
