"""Clips as the field has them: piped, joined, cut, with a header that is wrong."""

from __future__ import annotations

import io
import struct
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import soundfile

from earwitness.errors import BadRecordError
from earwitness.settings import AudioSettings
from tests.chaos.outcome import DecodedClip, decode, probe

if TYPE_CHECKING:
    from earwitness.audio.probe import ProbedClip
    from earwitness.records import Rejection

_LAYOUTS = {1: "mono", 2: "stereo"}
POLICY = AudioSettings(max_duration_s=60)


def tone(seconds: float, rate_hz: int, channels: int = 1) -> Any:
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = 0.3 * np.sin(2 * np.pi * 440 * times)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def by_ffmpeg(
    codec: str,
    container: str,
    seconds: float,
    rate_hz: int,
    *,
    channels: int = 1,
    kbps: int | None = None,
    begin_s: float = 0.0,
    video_s: float = 0.0,
    **options: str,
) -> bytes:
    """A clip by FFmpeg's own encoders; `begin_s` on the container's clock, `video_s` of black."""
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options=options) as output:
            picture: Any = output.add_stream("mpeg4", rate=10) if video_s else None
            if picture is not None:
                picture.width = picture.height = 32
                picture.pix_fmt = "yuv420p"
            if seconds:
                sound: Any = output.add_stream(codec, rate=rate_hz, layout=_LAYOUTS[channels])
                if kbps:
                    sound.bit_rate = kbps * 1000
                for packet in _packets(sound, tone(seconds, rate_hz, channels)):
                    later = round(begin_s / packet.time_base)
                    packet.pts, packet.dts = packet.pts + later, packet.dts + later
                    output.mux(packet)
            for number in range(round(video_s * 10)):
                black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                black.pts = number
                output.mux(picture.encode(black))
            if picture is not None:
                output.mux(picture.encode(None))
        return Path(file.name).read_bytes()


def _packets(stream: Any, samples: Any) -> Any:
    context, layout = stream.codec_context, _LAYOUTS[samples.shape[1]]
    pcm = np.ascontiguousarray((samples * 32767).astype(np.int16).reshape(1, -1))
    frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = stream.rate, 0, Fraction(1, stream.rate)
    resampler = av.AudioResampler(
        format=context.format,
        layout=layout,
        rate=stream.rate,
        frame_size=context.frame_size or 1024,
    )
    for part in resampler.resample(frame) + resampler.resample(None):
        yield from stream.encode(part)
    yield from stream.encode(None)


def mp3(seconds: float, rate_hz: int = 44_100, *, kbps: int = 64, **options: str) -> bytes:
    """An MP3; without a Xing header if `write_xing="0"`, as one that went through a pipe."""
    return by_ffmpeg(
        "libmp3lame", "mp3", seconds, rate_hz, kbps=kbps, **{"id3v2_version": "0", **options}
    )


def by_libsndfile(
    seconds: float, rate_hz: int, kind: str, subtype: str, channels: int = 1
) -> bytes:
    file = io.BytesIO()
    samples = tone(seconds, rate_hz, channels)
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def wav(announced: int, riff: int | None = None, there: int = 64_000) -> bytes:
    """Two seconds of 16-bit mono at 16 kHz whose header announces another size."""
    riff = announced + 36 if riff is None else riff
    pcm = (tone(there / 32_000, 16_000)[:, 0] * 32767).astype("<i2").tobytes()
    head = b"RIFF" + struct.pack("<I", riff & 0xFFFFFFFF) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    return head + b"data" + struct.pack("<I", announced) + pcm


def look(
    folder: Path, data: bytes, policy: AudioSettings = POLICY
) -> tuple[ProbedClip, DecodedClip]:
    """Validate and decode a clip as a build does."""
    path = folder / "clip"
    path.write_bytes(data)
    return probe(path, policy), decode(path, folder / "heard.wav", policy)


def heard_s(folder: Path, data: bytes, policy: AudioSettings = POLICY) -> float:
    """How long the sound is that the model hears, by the file written for it."""
    look(folder, data, policy)
    return float(soundfile.info(str(folder / "heard.wav")).duration)


def rejection(folder: Path, data: bytes, policy: AudioSettings = POLICY) -> Rejection | None:
    """Why a clip is rejected; None: it is heard."""
    try:
        look(folder, data, policy)
    except BadRecordError as error:
        return error.rejection
    return None
