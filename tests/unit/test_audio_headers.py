"""What a file is recognised as, and whether its header announces more than is there."""

import struct

import numpy as np
import pytest
import soundfile

from earwitness.audio.headers import audio_kind, looks_like, missing_bytes
from earwitness.audio.probe import probe
from earwitness.errors import BadRecordError
from earwitness.records import Reason
from earwitness.settings import AudioSettings


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
        (bytes(4096), "nothing but zero bytes"),
        (b"\x01\x02\xfe\x99" * 8, "no known kind of file"),
    ],
)
def test_what_is_not_audio_is_named(tmp_path, head, kind):
    assert audio_kind(head) is None
    assert looks_like(head) == kind
    path = tmp_path / "clip.wav"
    path.write_bytes(head)
    with pytest.raises(BadRecordError) as caught:
        probe(path, AudioSettings())
    assert caught.value.rejection.reason is Reason.NOT_AUDIO
    assert kind in caught.value.rejection.detail


def test_damaged_audio_is_told_from_what_is_no_audio(tmp_path):
    path = tmp_path / "clip"
    path.write_bytes(b"fLaC" + b"\x55" * 500)
    with pytest.raises(BadRecordError) as caught:
        probe(path, AudioSettings())
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
