"""What all decoders share: blocks of samples at one rate, and what is lost on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from earwitness.errors import BadRecordError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

TOLERANCE_S = 0.05
"""So much may be missing at a clip's end: it changes no answer.

One incomplete frame or block, or a size that counts a header or padding, is no more than this.
"""
MAX_LOST_S = 1.0
"""So much may be undecodable amid a clip: it is heard as silence, at its place, of its length."""
_BLOCK_FRAMES = 2**16


def broken(*, started: bool) -> BadRecordError:
    """The rejection of a clip that stops being decodable."""
    if started:
        reason, detail = Reason.TRUNCATED, "the clip cannot be decoded up to its end"
    else:
        reason, detail = Reason.DECODE_FAILED, "no sample of the clip can be decoded"
    return BadRecordError(Rejection(Stage.DECODE, reason, detail))


def check_lost(lost_s: float) -> None:
    """Refuse a clip of which too much cannot be decoded.

    Raises:
        BadRecordError: `decode_failed`.
    """
    if lost_s > MAX_LOST_S:
        detail = f"{lost_s:.2f} s in the middle of the clip cannot be decoded"
        raise BadRecordError(Rejection(Stage.DECODE, Reason.DECODE_FAILED, detail))


def at_one_rate(parts: Iterable[tuple[int, Samples]], rate_hz: int) -> Iterator[Samples]:
    """Join small blocks into larger ones of one sample rate.

    Args:
        parts: Rate and samples of each block, of shape (frames, channels). Channels may change
            from one to the next.
        rate_hz: The rate to come out at. Blocks of this rate pass unchanged, others are
            resampled (`soxr_hq`).

    Yields:
        Blocks at this rate, in order.
    """
    form: tuple[int, int] | None = None
    resampler: Any = None
    for part_rate_hz, block in _joined(parts):
        if resampler is not None and form != (part_rate_hz, block.shape[1]):
            yield _rest(resampler, form)
            resampler = None
        if part_rate_hz == rate_hz:
            yield block
            continue
        if resampler is None:
            form = (part_rate_hz, block.shape[1])
            resampler = _resampler(form, rate_hz)
        yield resampler.resample_chunk(np.ascontiguousarray(block))
    if resampler is not None:
        yield _rest(resampler, form)


def _joined(parts: Iterable[tuple[int, Samples]]) -> Iterator[tuple[int, Samples]]:
    kept: list[Samples] = []
    form: tuple[int, int] | None = None
    frames = 0
    for rate_hz, block in parts:
        if kept and form is not None and form != (rate_hz, block.shape[1]):
            yield form[0], np.concatenate(kept)
            kept, frames = [], 0
        form = (rate_hz, block.shape[1])
        kept.append(block)
        frames += len(block)
        if frames >= _BLOCK_FRAMES:
            yield rate_hz, np.concatenate(kept)
            kept, frames = [], 0
    if kept and form is not None:
        yield form[0], np.concatenate(kept)


def _resampler(form: tuple[int, int], rate_hz: int) -> Any:
    import soxr

    return soxr.ResampleStream(form[0], rate_hz, form[1], dtype="float32", quality="HQ")


def _rest(resampler: Any, form: tuple[int, int] | None) -> Samples:
    channels = form[1] if form else 1
    rest: Samples = resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True)
    return rest.reshape(-1, channels)


def frame_samples(frame: Any) -> Samples:
    """A frame that FFmpeg decoded as float32 of shape (frames, channels)."""
    if frame.format.name.startswith("s64"):
        frame = _as_doubles(frame)
    values: NDArray[Any] = frame.to_ndarray()
    channels = frame.layout.nb_channels
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    if values.dtype.kind == "i":
        scale = float(2 ** (8 * values.dtype.itemsize - 1))
        return (values / scale).astype(np.float32)
    return values.astype(np.float32, copy=False)


def _as_doubles(frame: Any) -> Any:
    """64-bit integers, which PyAV hands to nobody."""
    import av

    resampler = av.AudioResampler(format="dblp", layout=frame.layout, rate=frame.sample_rate)
    (converted,) = resampler.resample(frame)
    return converted
