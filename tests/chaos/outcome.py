"""One file, validated and decoded as a build does: what becomes of it, and whether that is sane."""

from __future__ import annotations

import hashlib
import wave
from typing import TYPE_CHECKING, NamedTuple

from earwitness.audio import decode as decoding
from earwitness.audio import probe as probing
from earwitness.audio.facts import facts_version, judge, sound_of
from earwitness.errors import BadRecordError
from earwitness.records import ClipFacts, Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from earwitness.audio.pool import DecodePool
    from earwitness.audio.probe import ProbedClip
    from earwitness.settings import AudioSettings


class Outcome(NamedTuple):
    """What became of one file.

    Attributes:
        word: `decoded`, a rejection's reason, or what went wrong for ours.
        detail: The rejection's text, or the digest of the audio.
        sane: False when a promise was broken.
        duration_s: Of the whole clip, as decoded.
        heard_s: Of what was written.
        rate_hz: The clip's own rate.
    """

    word: str
    detail: str
    sane: bool = True
    duration_s: float = 0.0
    heard_s: float = 0.0
    rate_hz: int = 0


class DecodedClip(NamedTuple):
    """A clip as the model hears it, in seconds."""

    duration_s: float
    heard_s: float


def probe(path: Path, policy: AudioSettings) -> ProbedClip:
    """Validate a clip: probe it and hold it against a policy.

    Raises:
        BadRecordError: It cannot be read, or is rejected by policy.
    """
    return allowed(probing.probe(path), policy)


def allowed(clip: ProbedClip, policy: AudioSettings) -> ProbedClip:
    """Hold a probed clip against a policy."""
    _check(ClipFacts(clip.container, facts_version(clip.container), clip.duration_s), policy)
    return clip


def decode(path: Path, destination: Path, policy: AudioSettings) -> DecodedClip:
    """Decode a clip and hold it against a policy; a rejected one leaves no file.

    Raises:
        BadRecordError: It cannot be decoded, or is rejected by policy.
    """
    return heard(decoding.decode(path, destination, policy), destination, policy)


def heard(facts: ClipFacts, destination: Path, policy: AudioSettings) -> DecodedClip:
    """Hold a decoded clip against a policy."""
    try:
        _check(facts, policy)
    except BadRecordError:
        destination.unlink(missing_ok=True)
        raise
    sound = sound_of(facts, policy)
    if sound is None or facts.duration_s is None:
        raise AssertionError(f"a clip that is not rejected has no sound: {facts}")
    return DecodedClip(facts.duration_s, sound.heard_s)


def _check(facts: ClipFacts, policy: AudioSettings) -> None:
    rejection = judge(facts, policy)
    if rejection is not None:
        raise BadRecordError(rejection)


def try_clip(pool: DecodePool, path: Path, policy: AudioSettings) -> Outcome:
    """Validate and decode a file as a build does, in the pool, and look hard at what came out."""
    return outcome_of(
        path,
        policy,
        lambda: allowed(pool.probe(path).result(), policy),
        lambda out: heard(pool.decode(path, out, policy).result(), out, policy),
    )


def outcome_of(
    path: Path,
    policy: AudioSettings,
    probe: Callable[[], ProbedClip],
    decode: Callable[[Path], DecodedClip],
) -> Outcome:
    """The same with any way to call the two.

    Args:
        path: The file.
        policy: What it is held against.
        probe: Probes it.
        decode: Decodes it to the path it is given.
    """
    out = path.with_suffix(".wav")
    try:
        rate_hz = probe().sample_rate_hz
        clip = decode(out)
        problem = _insane(out, clip, policy)
        if problem:
            return Outcome("insane", problem, sane=False)
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        return Outcome(
            "decoded",
            digest,
            duration_s=clip.duration_s,
            heard_s=clip.heard_s,
            rate_hz=rate_hz,
        )
    except BadRecordError as error:
        rejection = error.rejection
        placed = rejection.stage in {Stage.VALIDATE, Stage.DECODE}
        left = out.exists()
        readable = rejection.detail.isprintable() and 0 < len(rejection.detail) < 300
        return Outcome(rejection.reason, rejection.detail, placed and readable and not left)
    except Exception as error:  # noqa: BLE001 - exactly what must not happen, told in the table
        return Outcome(f"raised {type(error).__name__}", str(error)[:200], sane=False)
    finally:
        out.unlink(missing_ok=True)


def _insane(out: Path, clip: DecodedClip, policy: AudioSettings) -> str:
    """What is wrong with decoded audio; empty when nothing is. 16-bit samples are finite."""
    with wave.open(str(out), "rb") as audio:
        form = (audio.getnchannels(), audio.getsampwidth(), audio.getframerate())
        seconds = audio.getnframes() / audio.getframerate()
    limit_s = policy.max_duration_s or 0.0
    if form != (1, 2, policy.sample_rate_hz):
        return f"channels, bytes and rate are {form}"
    if abs(seconds - clip.heard_s) > 0.001 or not 0 < seconds <= limit_s + 0.001:
        return f"{seconds} s are there, {clip.heard_s} announced, {limit_s} allowed"
    if clip.duration_s < clip.heard_s:
        return f"{clip.heard_s} s heard of {clip.duration_s}"
    return ""
