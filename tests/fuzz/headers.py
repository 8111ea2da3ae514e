"""Bytes as a clip: what probing promises of every file."""

from __future__ import annotations

import os
from pathlib import Path

from earwitness.audio import ends, headers
from earwitness.audio.probe import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, probe
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Stage

_REASONS = {
    Reason.NOT_AUDIO,
    Reason.UNSUPPORTED_AUDIO,
    Reason.CLIP_TOO_SHORT,
    Reason.CLIP_TOO_LONG,
    Reason.TRUNCATED,
    Reason.DECODE_FAILED,
}
# in memory, and gone with the process however it ends
_CLIP = Path(f"/proc/self/fd/{os.memfd_create('clip')}")


def check(data: bytes) -> None:
    """Probe the bytes and hold the outcome against every promise."""
    head = data[:4096]
    kind = headers.audio_kind(head)
    assert kind is None or kind in {name for _, _, name in headers._AUDIO_MAGIC}
    assert headers.looks_like(head)
    _CLIP.write_bytes(data)
    missing = ends.missing_bytes(_CLIP)
    assert missing >= 0
    _check_probe(_CLIP)


def _check_probe(path: Path) -> None:
    try:
        clip = probe(path)
    except BadRecordError as error:
        rejection = error.rejection
        assert rejection.stage is Stage.VALIDATE
        assert rejection.reason in _REASONS
        assert len(rejection.detail) < 300
        assert rejection.detail.isprintable()
        return
    assert 1 <= clip.channels <= MAX_CHANNELS
    assert MIN_RATE_HZ <= clip.sample_rate_hz <= MAX_RATE_HZ
    assert clip.duration_s is None or clip.duration_s >= 0
    assert clip.container.isascii()
    assert clip.codec.isascii()
