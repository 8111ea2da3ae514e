"""The WAV files the engine hears: what is one already is recognised, and nothing else is."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwitness.audio.wav import hand_on, ready_samples, wav_header, write_wav

PCM = np.array([0, 1, -1, 32767, -32768], np.int16)


def plain(path: Path, rate_hz: int = 16_000, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate_hz, 0, "NONE", ""))
        file.writeframes(bytes(8 * channels * width))
    return path


def test_the_header_is_what_the_standard_library_writes():
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes(PCM.tobytes())
    assert wav_header(len(PCM), 16_000) + PCM.tobytes() == file.getvalue()


def test_what_is_written_is_read_by_others_and_recognised(tmp_path):
    write_wav(tmp_path / "a.wav", PCM, 16_000)
    samples, rate_hz = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert (rate_hz, samples.tolist()) == (16_000, PCM.tolist())
    assert ready_samples(tmp_path / "a.wav", 16_000).tolist() == PCM.tolist()


@pytest.mark.parametrize(
    "shape",
    [{"rate_hz": 44_100}, {"channels": 2}, {"width": 1}, {"width": 3}],
    ids=lambda shape: str(*shape),
)
def test_another_shape_is_not_ready(tmp_path, shape):
    assert ready_samples(plain(tmp_path / "a.wav", **shape), 16_000) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"LIST",
        lambda data: data + b"\0",
        lambda data: data[:-2],
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda _: b"",
        lambda data: b"RIFX" + data[4:],
        lambda data: data[:20] + b"\x03" + data[21:],
        lambda data: data[:4] + bytes(4) + data[8:],
    ],
    ids=[
        "more",
        "a byte more",
        "cut",
        "cut amid a sample",
        "cut header",
        "empty",
        "big-endian",
        "float",
        "length",
    ],
)
def test_a_file_with_anything_else_in_it_is_not_ready(tmp_path, change):
    path = plain(tmp_path / "a.wav")
    assert ready_samples(path, 16_000) is not None
    path.write_bytes(change(path.read_bytes()))
    assert ready_samples(path, 16_000) is None


def test_handing_on_twice_leaves_the_file_under_its_name_and_nothing_else(tmp_path):
    path = plain(tmp_path / "clip")
    for _ in range(2):
        hand_on(path, tmp_path / "heard.wav")
    assert (tmp_path / "heard.wav").samefile(path)
    assert {one.name for one in tmp_path.iterdir()} == {"clip", "heard.wav"}


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_wav(tmp_path / "taken", PCM, 16_000)
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]
