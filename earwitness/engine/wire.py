"""What goes over the wire: a request's JSON, and what an engine's reply means."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from earwitness.errors import CredentialsError, ModelIdentityError, SettingsError
from earwitness.records import Answer, Reason, Rejection, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.records import AudioPart, Message, TextPart
    from earwitness.settings import SamplingSettings

_OK = 200
_SERVER_ERRORS = 500
_BUSY = frozenset({429, 503})
_NO_ACCESS = frozenset({401, 403})
_NOT_FOUND = 404
_FINISHED = frozenset({"stop", "length", "content_filter"})
_OVERFLOW = re.compile(
    r"maximum context length|maximum model length|context length|max_model_len"
    r"|max(_completion)?_tokens'? .{0,40}too large",
    re.IGNORECASE,
)
_VARYING = (
    # what differs from run to run has no place in a rejection's detail
    (re.compile(r"file://\S+"), "<clip>"),
    (re.compile(r"(?<![\w/])/(?:[^\s/'\",;:]+/)+[^\s/'\",;:]+"), "<path>"),
    (re.compile(r"\b(?:chatcmpl|req|call)-[\w-]+"), "<id>"),
    (re.compile(r"\b[0-9a-f]{12,}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<id>"),
)
_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class AskRequest:
    """One question to the engine.

    Attributes:
        messages: What is asked; audio parts name clips by position.
        clips: The decoded clips, in the record's order.
        sampling: How the answer is sampled.
        max_tokens: Longest answer, in tokens.
        seed: This request's own seed.
    """

    messages: tuple[Message, ...]
    clips: tuple[Path, ...]
    sampling: SamplingSettings
    max_tokens: int
    seed: int


class Trouble(StrEnum):
    """Why a request got no reply that says anything about its record."""

    UNREACHABLE = "unreachable"
    """Never got there: nothing listens."""
    BROKEN = "broken"
    """Sent, then the connection broke, or the reply was none of the API's."""
    SERVER_ERROR = "server_error"
    """Answered 5xx."""
    BUSY = "busy"
    """Answered that it has no room now."""


def chat_payload(request: AskRequest, model: str, *, inline: bool) -> dict[str, Any]:
    """The JSON of a chat completion request; reads the clips when they travel inline.

    Args:
        request: What is asked.
        model: The name the engine serves the model under.
        inline: Send clips as base64; otherwise by `file://` address.

    Returns:
        The request's body. Every sampling parameter is named, so that no default of the engine
        or of the model's generation config decides in its place.
    """

    def part(item: TextPart | AudioPart) -> dict[str, Any]:
        if item["type"] == "text":
            return {"type": "text", "text": item["text"]}
        return _clip_part(request.clips[item["clip"]], inline=inline)

    sampling = request.sampling
    return {
        "model": model,
        "messages": [
            {"role": message["role"], "content": _content(list(map(part, message["content"])))}
            for message in request.messages
        ],
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(sampling.top_k, 0),
        "repetition_penalty": sampling.repetition_penalty,
        "seed": request.seed,
        "stream": False,
    }


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    # some models' templates take parts in user turns only; a lone text is the same as a string
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _clip_part(clip: Path, *, inline: bool) -> dict[str, Any]:
    if not inline:
        return {"type": "audio_url", "audio_url": {"url": f"file://{quote(str(clip.resolve()))}"}}
    data = base64.b64encode(clip.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def read_reply(status: int, body: bytes, *, url: str, model: str) -> Answer | Rejection | Trouble:
    """What a reply to a chat completion request means for its record.

    Args:
        status: The HTTP status.
        body: The reply's bytes.
        url: The engine's address, for messages.
        model: The model's name, for messages.

    Returns:
        The answer, the record's rejection, or why neither is known yet.

    Raises:
        CredentialsError: The engine refused the API key.
        ModelIdentityError: The engine does not serve this model.
        SettingsError: There is no OpenAI-compatible API at this address.
    """
    if status == _OK:
        return _read_answer(body)
    message = error_message(body)
    if status in _NO_ACCESS:
        raise CredentialsError(
            f"the engine at {url} refused the API key (HTTP {status}); "
            "set VLLM_API_KEY to the key it was started with"
        )
    if status == _NOT_FOUND:
        if "model" in message.lower():
            raise ModelIdentityError(f"the engine at {url} does not serve {model!r}: {message}")
        raise SettingsError(f"there is no OpenAI-compatible API at {url} (HTTP 404)")
    if status in _BUSY:
        return Trouble.BUSY
    if status >= _SERVER_ERRORS:
        return Trouble.SERVER_ERROR
    detail = steady(message) or f"HTTP {status}"
    reason = Reason.CONTEXT_OVERFLOW if _OVERFLOW.search(message) else Reason.ENGINE_REFUSED
    return Rejection(Stage.GENERATE, reason, detail)


def _read_answer(body: bytes) -> Answer | Trouble:
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        usage = reply.get("usage") or {}
        # an engine going down ends its requests with "abort" and what it has so far
        if choice["finish_reason"] not in _FINISHED:
            return Trouble.SERVER_ERROR
        return Answer(
            text=choice["message"].get("content") or "",
            finish_reason=choice["finish_reason"],
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Trouble.BROKEN


def error_message(body: bytes) -> str:
    """The message inside an error reply, whatever its shape.

    Args:
        body: The reply's bytes.

    Returns:
        The API's own message; else the start of the text.
    """
    text = body.decode("utf-8", "replace").strip()
    try:
        reply = json.loads(text)
    except ValueError:
        return text[:_DETAIL_CHARS]
    if isinstance(reply, dict):
        inner = reply.get("error", reply.get("message", reply.get("detail", "")))
        if isinstance(inner, dict):
            inner = inner.get("message", "")
        return str(inner)
    return text[:_DETAIL_CHARS]


def steady(message: str) -> str:
    """An engine's message without what varies between runs (paths, ids), on one short line.

    Args:
        message: The engine's own words.

    Returns:
        At most 300 characters, equal for equal faults.
    """
    for pattern, replacement in _VARYING:
        message = pattern.sub(replacement, message)
    message = " ".join(message.split())
    if len(message) > _DETAIL_CHARS:
        return message[: _DETAIL_CHARS - 1] + "…"
    return message
