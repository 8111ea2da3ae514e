"""A small, whole clip of every container that is read: what mutations start from."""

from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

RATE_HZ = 16_000

# name: format, subtype, rate, channels
_LIBSNDFILE = {
    "wav-pcm16": ("WAV", "PCM_16", RATE_HZ, 1),
    "wav-pcm24": ("WAV", "PCM_24", 48_000, 2),
    "wav-float": ("WAV", "FLOAT", RATE_HZ, 2),
    "wav-double": ("WAV", "DOUBLE", RATE_HZ, 1),
    "wav-u8": ("WAV", "PCM_U8", 8_000, 1),
    "wav-ulaw": ("WAV", "ULAW", 8_000, 1),
    "wav-ima-adpcm": ("WAV", "IMA_ADPCM", RATE_HZ, 1),
    "wav-ms-adpcm": ("WAV", "MS_ADPCM", 22_050, 2),
    "wav-gsm": ("WAV", "GSM610", 8_000, 1),
    "wavex-pcm24": ("WAVEX", "PCM_24", 44_100, 2),
    "rf64": ("RF64", "PCM_16", RATE_HZ, 1),
    "w64": ("W64", "PCM_16", RATE_HZ, 1),
    "flac-16": ("FLAC", "PCM_16", RATE_HZ, 1),
    "flac-24": ("FLAC", "PCM_24", 44_100, 2),
    "ogg-vorbis": ("OGG", "VORBIS", RATE_HZ, 1),
    "ogg-vorbis-stereo": ("OGG", "VORBIS", 44_100, 2),
    "ogg-opus": ("OGG", "OPUS", 48_000, 1),
    "ogg-opus-stereo": ("OGG", "OPUS", 24_000, 2),
    "mp3": ("MP3", "MPEG_LAYER_III", RATE_HZ, 1),
    "mp3-stereo": ("MP3", "MPEG_LAYER_III", 44_100, 2),
    "mp3-8k": ("MP3", "MPEG_LAYER_III", 8_000, 1),
    "mp3-24k": ("MP3", "MPEG_LAYER_III", 24_000, 2),
    "aiff": ("AIFF", "PCM_16", RATE_HZ, 1),
    "aifc-ima": ("AIFF", "IMA_ADPCM", RATE_HZ, 1),
    "au": ("AU", "PCM_16", RATE_HZ, 1),
    "caf": ("CAF", "PCM_16", RATE_HZ, 1),
    "caf-alac": ("CAF", "ALAC_16", RATE_HZ, 1),
    "nist": ("NIST", "PCM_16", RATE_HZ, 1),
    "voc": ("VOC", "PCM_16", RATE_HZ, 1),
    "mat5": ("MAT5", "PCM_16", RATE_HZ, 1),
}
# name: container, codec, rate, options
_FFMPEG: dict[str, tuple[str, str, int, dict[str, str]]] = {
    "m4a": ("ipod", "aac", 44_100, {}),
    "m4a-faststart": ("ipod", "aac", RATE_HZ, {"movflags": "faststart"}),
    "m4a-fragmented": ("mp4", "aac", RATE_HZ, {"movflags": "frag_keyframe+empty_moov"}),
    "m4a-alac": ("ipod", "alac", RATE_HZ, {}),
    "aac": ("adts", "aac", RATE_HZ, {}),
    "webm-opus": ("webm", "libopus", 48_000, {}),
    "mka-pcm": ("matroska", "pcm_s16le", RATE_HZ, {}),
    "amr": ("amr", "libopencore_amrnb", 8_000, {}),
    "ac3": ("ac3", "ac3", 48_000, {}),
    "wma": ("asf", "wmav2", 44_100, {}),
    "mpegts": ("mpegts", "mp2", 48_000, {}),
    "wavpack": ("wv", "wavpack", RATE_HZ, {}),
    "tta": ("tta", "tta", RATE_HZ, {}),
    "avi": ("avi", "pcm_s16le", RATE_HZ, {}),
    "mp3-lame": ("mp3", "libmp3lame", 44_100, {}),
    "mp3-piped": ("mp3", "libmp3lame", 22_050, {"write_xing": "0", "id3v2_version": "0"}),
    "ogg-flac": ("ogg", "flac", RATE_HZ, {}),
    "wav-listed": ("wav", "pcm_s16le", 44_100, {}),
    "mov-pcm": ("mov", "pcm_s16le", 44_100, {}),
    "mov-late": ("mov", "aac", 48_000, {"movflags": "frag_keyframe+empty_moov+delay_moov"}),
    "m4a-opus": ("mp4", "libopus", 48_000, {}),
    "m4a-mp3": ("mp4", "libmp3lame", 44_100, {}),
    "3gp-amr": ("3gp", "libopencore_amrnb", 8_000, {}),
    "mka-aac": ("matroska", "aac", 44_100, {}),
    "mka-flac": ("matroska", "flac", RATE_HZ, {}),
    "mka-mp3": ("matroska", "libmp3lame", 48_000, {}),
    "webm-live": ("webm", "libopus", 48_000, {"live": "1"}),
    "eac3": ("eac3", "eac3", 48_000, {}),
    "mpegts-aac": ("mpegts", "aac", 44_100, {}),
    "flv": ("flv", "aac", 44_100, {}),
    "avi-mp3": ("avi", "libmp3lame", 44_100, {}),
    "wma-v1": ("asf", "wmav1", 22_050, {}),
}


def tone(seconds: float, rate_hz: int, channels: int = 1) -> Any:
    """Two sines and a little noise, the same every time: nothing a codec could leave out."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(0).normal(size=len(times))
    wave = 0.3 * np.sin(2 * np.pi * 440 * times) + 0.1 * np.sin(2 * np.pi * 1210 * times)
    return np.repeat((wave + 0.01 * noise)[:, None], channels, axis=1).astype(np.float32)


@cache
def whole_clips(seconds: float = 0.3) -> dict[str, bytes]:
    """Whole clips by container and codec; what this build of FFmpeg cannot write is left out."""
    clips = {name: _by_libsndfile(seconds, *form) for name, form in _LIBSNDFILE.items()}
    for name, form in _FFMPEG.items():
        if form[1] in av.codecs_available:
            clips[name] = _by_ffmpeg(seconds, *form)
    return clips


def _by_libsndfile(seconds: float, kind: str, subtype: str, rate_hz: int, channels: int) -> bytes:
    file = io.BytesIO()
    samples = tone(seconds, rate_hz, channels)
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def _by_ffmpeg(
    seconds: float, container: str, codec: str, rate_hz: int, options: dict[str, str]
) -> bytes:
    pcm = (tone(seconds, rate_hz).T * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
    frame.sample_rate = rate_hz
    # a real file: MP4's faststart reads again what it wrote
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options=options) as output:
            stream: Any = output.add_stream(codec, rate=rate_hz, layout="mono")
            context = stream.codec_context
            if codec.startswith("wmav"):
                context.bit_rate = 64_000  # it has no default that it accepts
            resampler = av.AudioResampler(
                format=context.format,
                layout="mono",
                rate=rate_hz,
                frame_size=context.frame_size or 512,
            )
            for part in resampler.resample(frame) + resampler.resample(None):
                output.mux(stream.encode(part))
            # FLAC's last packet is empty: it brings a header that cannot be written any more
            output.mux([packet for packet in stream.encode(None) if packet.size])
        return Path(file.name).read_bytes()
