"""The nouns: messages, clips, answers, rejections, outcomes. Plain immutable data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypedDict

Json = dict[str, Any]


class Stage(StrEnum):
    """Where on a record's way something was found."""

    PLAN = "plan"
    RESOLVE = "resolve"
    FETCH = "fetch"
    VALIDATE = "validate"
    DECODE = "decode"
    GENERATE = "generate"


class Reason(StrEnum):
    """Why a record got no answer."""

    # plan: the manifest line
    MALFORMED_LINE = "malformed_line"
    BAD_ENCODING = "bad_encoding"
    LINE_TOO_LONG = "line_too_long"
    NOT_AN_OBJECT = "not_an_object"
    TOO_MANY_FIELDS = "too_many_fields"
    # plan: the clips it names
    NO_AUDIO = "no_audio"
    BAD_AUDIO = "bad_audio"
    TOO_MANY_CLIPS = "too_many_clips"
    BAD_URI = "bad_uri"
    ADDRESS_REFUSED = "address_refused"  # also at resolve and fetch: links, redirects, DNS
    # plan: the conversation
    NO_CONVERSATION = "no_conversation"
    BAD_CONVERSATION = "bad_conversation"
    EMPTY_TURN = "empty_turn"
    UNKNOWN_ROLE = "unknown_role"
    TURN_ORDER = "turn_order"
    NO_QUESTION = "no_question"
    AUDIO_MARK_MISMATCH = "audio_mark_mismatch"
    # resolve and fetch
    CLIP_MISSING = "clip_missing"
    ACCESS_DENIED = "access_denied"
    CLIP_EMPTY = "clip_empty"
    CLIP_TOO_LARGE = "clip_too_large"
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_FAILED = "fetch_failed"
    # validate and decode
    NOT_AUDIO = "not_audio"
    UNSUPPORTED_AUDIO = "unsupported_audio"
    CLIP_TOO_SHORT = "clip_too_short"
    CLIP_TOO_LONG = "clip_too_long"
    TRUNCATED = "truncated"
    NOT_FINITE = "not_finite"
    SILENT = "silent"
    DECODE_FAILED = "decode_failed"
    DECODER_CRASH = "decoder_crash"
    DECODE_TIMEOUT = "decode_timeout"
    # generate
    CONTEXT_OVERFLOW = "context_overflow"
    ENGINE_REFUSED = "engine_refused"
    ENGINE_CRASH = "engine_crash"
    ENGINE_DIED = "engine_died"
    ENGINE_TIMEOUT = "engine_timeout"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    # anywhere: an error that nobody foresaw
    INTERNAL_ERROR = "internal_error"


TRANSIENT_REASONS = frozenset(
    {
        Reason.FETCH_TIMEOUT,
        Reason.FETCH_FAILED,
        Reason.ENGINE_DIED,
        Reason.ENGINE_TIMEOUT,
        Reason.ENGINE_UNAVAILABLE,
        Reason.INTERNAL_ERROR,
    }
)
"""Transient reasons: the next run asks such a record again. Only its strikes are remembered."""


class TextPart(TypedDict):
    """Text inside a message."""

    type: Literal["text"]
    text: str


class AudioPart(TypedDict):
    """The place of a clip inside a message; `clip` counts the record's clips from 0."""

    type: Literal["audio"]
    clip: int


class Message(TypedDict):
    """One turn as it will be sent: OpenAI's roles, clips by position instead of address."""

    role: Literal["system", "user", "assistant"]
    content: list[TextPart | AudioPart]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record got no answer.

    Attributes:
        stage: Where it was found.
        reason: The typed reason, for counting and for `retry --reason`.
        detail: A sentence for a person; never depends on when, where or how often a build ran.
        strikes: How many engines that others use, too, died while this record alone was asked,
            counted over builds. Only with `ENGINE_DIED`, otherwise 0.
    """

    stage: Stage
    reason: Reason
    detail: str
    strikes: int = 0

    @property
    def transient(self) -> bool:
        """True when the next run should simply try again."""
        return self.reason in TRANSIENT_REASONS


@dataclass(frozen=True, slots=True)
class Stamp:
    """What storage says of an object without reading it; equal stamps mean equal bytes.

    Attributes:
        size_bytes: Length in bytes.
        version: ETag, or `mtime_ns:inode` for local files, or Last-Modified.
    """

    size_bytes: int
    version: str

    def __str__(self) -> str:
        return f"{self.size_bytes}:{self.version}"


@dataclass(frozen=True, slots=True)
class HeardSound:
    """A sound: what the model gets of a clip, as mono 16-bit samples.

    Attributes:
        rate_hz: Sample rate of the samples.
        cut_s: The limit that the clip was cut at; None: the sound is the whole clip.
        heard_s: Duration of the sound.
        peak: Largest absolute value, with full scale at 1.0.
        pcm_sha256: Hex SHA-256 of rate and samples (see `wav.pcm_digest`): the sound's identity.
    """

    rate_hz: int
    cut_s: float | None
    heard_s: float
    peak: float
    pcm_sha256: str


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What is known of a clip's bytes, whatever is asked about it and under whichever limits.

    Attributes:
        container: Name of the container, lower case; empty where no decoder opened the clip.
        version: Version of our reading of that container (see `audio.facts`).
        duration_s: Duration of the whole clip; None where nobody decoded it to its end.
        longer_than_s: The clip lasts longer than this; only where `duration_s` is None.
        sounds: The sounds that were made of it.
        fault: A permanent rejection that no setting changes: the clip cannot be decoded.
    """

    container: str
    version: int
    duration_s: float | None = None
    longer_than_s: float = 0.0
    sounds: tuple[HeardSound, ...] = ()
    fault: Rejection | None = None


@dataclass(frozen=True, slots=True)
class HeardClip:
    """A clip as the model heard it.

    Attributes:
        sha256: Of the clip's bytes as stored, hex.
        duration_s: Of the whole clip.
        heard_s: Of the part the model was given; shorter only where policy cuts long clips.
    """

    sha256: str
    duration_s: float
    heard_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's text for a record."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record: exactly one of `answer` and `rejection` is set.

    Attributes:
        cache_key: Hex SHA-256 (see `earwitness.identity`); empty where no clip's bytes were seen.
        clips: The record's clips in order, as far as they were decoded.
        max_tokens: The limit the answer was asked under.
        max_model_len: The engine's context limit as set (None: the model's own).
    """

    cache_key: str
    answer: Answer | None = None
    rejection: Rejection | None = None
    clips: tuple[HeardClip, ...] = ()
    max_tokens: int = 0
    max_model_len: int | None = None


class PlannedRow(NamedTuple):
    """One line of a frozen plan; no dataclass, as a manifest has millions.

    Attributes:
        row: Position in the manifest, from 0.
        record: The manifest's fields as they came; None where the line was no JSON object.
        clips: Absolute URIs in order; empty when rejected at planning.
        messages: What will be asked; empty when rejected at planning.
        rejection: Set when planning already rejected the line.
    """

    row: int
    record: Json | None
    clips: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    rejection: Rejection | None = None
