"""What the stand-in engine says: words picked by the SHA-256 of what was asked, nothing more."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# fmt: off
WORDS = (
    "a", "bell", "birds", "distant", "engine", "faint", "footsteps", "glass", "hum", "kettle",
    "laughter", "low", "music", "near", "noise", "of", "pause", "piano", "quiet", "rain",
    "rising", "rustle", "soft", "speech", "steady", "then", "thunder", "tone", "traffic",
    "voice", "water", "wind",
)
# fmt: on
_NATURAL_TOKENS = (5, 40)
_TOKENS_PER_CLIP = 50


@dataclass(frozen=True)
class Asked:
    """What a request asks, however its clips travelled.

    Attributes:
        messages: Roles, texts and the SHA-256 of each clip, in order.
        clips: The clips' SHA-256 in order.
        seed: The request's own seed.
    """

    messages: list[tuple[str, list[tuple[str, str]]]]
    clips: list[str]
    seed: int | None

    @property
    def prompt_tokens(self) -> int:
        """Words asked plus a fixed number a clip."""
        texts = [text for _, parts in self.messages for kind, text in parts if kind == "text"]
        return sum(len(text.split()) for text in texts) + _TOKENS_PER_CLIP * len(self.clips)

    def mentions(self, needle: str) -> bool:
        """True when `needle` is the SHA-256 of a clip, or part of a text.

        Args:
            needle: A hex digest or any text.
        """
        return needle in self.clips or any(
            kind == "text" and needle in text for _, parts in self.messages for kind, text in parts
        )


def natural_words(asked: Asked, answer_tokens: int | None = None) -> list[str]:
    """The whole answer, before `max_tokens` cuts it.

    Args:
        asked: What is asked.
        answer_tokens: Length of every answer; None: 5 to 40 words, decided by the content.

    Returns:
        One word a token.
    """
    canonical = json.dumps([asked.messages, asked.seed], ensure_ascii=True)
    seed = hashlib.sha256(canonical.encode()).digest()
    low, high = _NATURAL_TOKENS
    length = answer_tokens or low + seed[0] % (high - low + 1)
    stream = hashlib.shake_256(seed).digest(length)
    return ["stand-in:", *(WORDS[byte % len(WORDS)] for byte in stream)][:length]


def read_request(body: dict[str, Any], allowed_folder: Path | None) -> Asked:
    """Reads a chat completion request; clips by address and inline count the same.

    Args:
        body: The request's JSON.
        allowed_folder: The only folder `file://` clips may come from.

    Returns:
        What is asked.

    Raises:
        ValueError: A part is malformed, or a file may not or cannot be read.
    """
    clips: list[str] = []
    messages = []
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        seen = []
        for part in parts:
            if part["type"] == "text":
                seen.append(("text", str(part["text"])))
                continue
            digest = hashlib.sha256(_clip_bytes(part, allowed_folder)).hexdigest()
            clips.append(digest)
            seen.append(("audio", digest))
        messages.append((str(message["role"]), seen))
    return Asked(messages, clips, body.get("seed"))


def _clip_bytes(part: dict[str, Any], allowed_folder: Path | None) -> bytes:
    if part["type"] == "input_audio":
        return base64.b64decode(part["input_audio"]["data"], validate=True)
    if part["type"] != "audio_url":
        raise ValueError(f"Unknown part type: {part['type']}")
    url = part["audio_url"]["url"]
    if url.startswith("data:"):
        return base64.b64decode(url.partition(",")[2], validate=True)
    if not url.startswith("file://"):
        raise ValueError("The stand-in opens file:// and data: addresses only")
    if allowed_folder is None:
        raise ValueError("Cannot load local files without `--allowed-local-media-path`.")
    path = Path(unquote(urlsplit(url).path)).resolve()
    if allowed_folder.resolve() not in path.parents:
        raise ValueError(f"The file path {path} must be a subpath of {allowed_folder}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(str(error)) from error
