"""What is asked of an engine, as its JSON goes over the wire."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.records import AudioPart, Message, TextPart
    from earwitness.settings import SamplingSettings


class Request(Protocol):
    """What can be asked of an engine."""

    @property
    def strikes(self) -> int:
        """See `Rejection.strikes`: those that earlier builds counted."""

    def encoded(self, model: str, *, inline: bool) -> bytes:
        """The body to send.

        Args:
            model: The name the engine serves the model under.
            inline: Send clips inside the request, not by address.
        """

    def keep(self, reply: bytes) -> None:
        """Takes the reply that was read as an answer.

        Args:
            reply: Its bytes.
        """


@dataclass(frozen=True, slots=True)
class AskRequest:
    """One question to the engine.

    Attributes:
        messages: What is asked; audio parts name clips by position.
        clips: The decoded clips, in the record's order.
        sampling: How the answer is sampled.
        max_tokens: Longest answer, in tokens.
        seed: This request's own seed; None: the engine draws as it likes.
        strikes: See `Rejection.strikes`: those that earlier builds counted.
    """

    messages: tuple[Message, ...]
    clips: tuple[Path, ...]
    sampling: SamplingSettings
    max_tokens: int
    seed: int | None
    strikes: int = 0

    def encoded(self, model: str, *, inline: bool) -> bytes:
        """The body to send; reads the clips when they travel inside it.

        Args:
            model: The name the engine serves the model under.
            inline: Send clips inside the request, not by address.
        """
        payload = chat_payload(self, model, inline=inline)
        return json.dumps(payload, ensure_ascii=False).encode()

    def keep(self, reply: bytes) -> None:
        """The answer says it all: nothing else of the reply is kept.

        Args:
            reply: Its bytes.
        """


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
        **({} if request.seed is None else {"seed": request.seed}),
        "stream": False,
    }


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    # some models' templates take parts in user turns only; a lone text is the same as a string
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _file_url(clip: Path) -> str:
    # the engine may only open what lies below the real folder, by whatever way that was reached
    return f"file://{_real_folder(str(clip.parent))}/{quote(clip.name)}"


@lru_cache(maxsize=256)
def _real_folder(folder: str) -> str:
    """A folder of clips, links followed: asked of the disk once, not once a clip."""
    return quote(os.path.realpath(folder))


def _clip_part(clip: Path, *, inline: bool) -> dict[str, Any]:
    if not inline:
        return {"type": "audio_url", "audio_url": {"url": _file_url(clip)}}
    data = base64.b64encode(clip.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
