"""What an engine's reply means for the record that was asked.

Only what is an answer by every sign is one: a record that gets none is asked again another day,
a wrong answer would stay. A refusal counts for good only in the API's own words: a page that a
proxy puts up in the engine's place says nothing about a record.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from earwitness.engine.shared import raise_or_verdict
from earwitness.errors import CredentialsError, ModelIdentityError, SettingsError
from earwitness.records import Answer, Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Collection

LARGEST_REPLY_BYTES = 16 * 2**20
"""No answer is as long; whoever sends more is not read to the end."""
_OK = 200
_BUSY = frozenset({429, 503})
_NO_ACCESS = frozenset({401, 403})
_NOT_FOUND = 404
_REFUSED = frozenset({400, 413, 415, 422})
_FINISHED = frozenset({"stop", "length", "content_filter"})
_MOST_TOKENS = 2**31
_LONGEST_WAIT_S = 60.0
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
_ENGINE_LABEL = re.compile(r'(?:^|,)engine="(\d+)"')


class Trouble(StrEnum):
    """Why a request got no reply that says anything about its record."""

    UNREACHABLE = "unreachable"
    """Never got there: nothing listens."""
    BROKEN = "broken"
    """Sent, then the connection broke."""
    GARBAGE = "garbage"
    """Answered as if well, but with nothing that is an answer."""
    SERVER_ERROR = "server_error"
    """Answered 5xx, or with a status that says nothing about the record."""
    BUSY = "busy"
    """Answered that it has no room now."""
    TIMEOUT = "timeout"
    """Not answered in the time a request may take."""


_IN_WORDS = {
    Trouble.UNREACHABLE: "no connection",
    Trouble.BROKEN: "the connection broke",
    Trouble.GARBAGE: "the reply was not valid",
    Trouble.SERVER_ERROR: "server error",
    Trouble.BUSY: "too many requests",
    Trouble.TIMEOUT: "timed out",
}


@dataclass(frozen=True, slots=True)
class Setback:
    """A request that came back without an answer or a verdict.

    Attributes:
        trouble: What kind of trouble.
        said: The engine's words, when there were any.
        retry_after_s: How long it asks to be left alone; 0: it does not say.
    """

    trouble: Trouble
    said: str = ""
    retry_after_s: float = 0.0

    def __str__(self) -> str:
        return self.said or _IN_WORDS[self.trouble]


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
        EarwitnessError: A worker's engine front passes it on.
    """
    if status == _OK:
        return _read_answer(body)
    verdict = raise_or_verdict(status, body)
    if verdict is not None:
        return verdict
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
    if status not in _REFUSED or not _is_api_error(body):
        return Trouble.SERVER_ERROR
    detail = steady(message) or f"HTTP {status}"
    reason = Reason.CONTEXT_OVERFLOW if _OVERFLOW.search(message) else Reason.ENGINE_REFUSED
    return Rejection(Stage.GENERATE, reason, detail)


def _read_answer(body: bytes) -> Answer | Trouble:
    reply = parsed(body)
    try:
        choice = reply["choices"][0]
        usage = reply.get("usage") or {}
        # an engine going down ends its requests with "abort" and what it has so far
        if choice["finish_reason"] not in _FINISHED:
            return Trouble.SERVER_ERROR
        return Answer(
            text=_text(choice["message"]),
            finish_reason=choice["finish_reason"],
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Trouble.GARBAGE


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if content is None and (message.get("reasoning_content") or message.get("reasoning")):
        # a model that was cut while it still thought: that it said nothing is its answer
        return ""
    if not isinstance(content, str):
        raise TypeError
    content.encode()  # half a surrogate pair is text that cannot be stored
    return content


def _count(tokens: object) -> int:
    if tokens is None:
        return 0
    if not isinstance(tokens, int) or not 0 <= tokens < _MOST_TOKENS:
        raise ValueError
    return tokens


def parsed(body: bytes | str) -> Any:
    """A reply's JSON.

    Args:
        body: The reply.

    Returns:
        What it holds; None when it is no JSON (or is nested without end).
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def answering_model(body: bytes) -> str:
    """The name of the model that an answer says it is from.

    Args:
        body: The reply that was read as an answer.

    Returns:
        The name; empty when it does not say.
    """
    name = parsed(body).get("model")
    return name if isinstance(name, str) else ""


def retry_after_s(header: str | None) -> float:
    """How long an engine asks to be left alone.

    Args:
        header: `Retry-After`, in seconds or as a date.

    Returns:
        Seconds, a minute at most; 0 when it does not say.
    """
    if not header:
        return 0.0
    try:
        wanted_s = float(header)
    except ValueError:
        try:
            wanted_s = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    # not a number compares as false, and is none
    return min(wanted_s, _LONGEST_WAIT_S) if wanted_s > 0 else 0.0


def _is_api_error(body: bytes) -> bool:
    """True for an error in the API's words (vLLM's, OpenAI's, FastAPI's), not some proxy's."""
    reply = parsed(body)
    return isinstance(reply, dict) and not {"error", "message", "detail"}.isdisjoint(reply)


def error_message(body: bytes) -> str:
    """The message inside an error reply, whatever its shape.

    Args:
        body: The reply's bytes.

    Returns:
        The API's own message; else the start of the text.
    """
    reply = parsed(body)
    if isinstance(reply, dict):
        inner = reply.get("error", reply.get("message", reply.get("detail", "")))
        if isinstance(inner, dict):
            inner = inner.get("message", "")
        if isinstance(inner, list):
            inner = "; ".join(map(_fault_in_words, inner))
        return str(inner)
    return body.decode("utf-8", "replace").strip()[:_DETAIL_CHARS]


def _fault_in_words(fault: Any) -> str:
    """One of the faults that FastAPI lists of a request, as a sentence."""
    if not isinstance(fault, dict) or "msg" not in fault:
        return str(fault)
    where = ".".join(str(word) for word in fault.get("loc", ()) if word != "body")
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])


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


def replica_metrics(text: str, names: Collection[str]) -> dict[int, float]:
    """Reads what each replica behind an address has done, from Prometheus' text format.

    Args:
        text: The page; vLLM labels its metrics with the replica's number, `engine`.
        names: The counters that are added up.

    Returns:
        By replica; empty where the page names none, or only some of all.
    """
    found: dict[int, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        rank = _ENGINE_LABEL.search(rest) if name in names else None
        if rank is None:
            continue
        with suppress(ValueError):
            number = float(rest.rpartition(" ")[2])
            found[int(rank[1])] = found.get(int(rank[1]), 0.0) + number
    # one of several servers names its own replicas, which it cannot be asked for by these numbers
    return found if sorted(found) == list(range(len(found))) else {}


def parse_metrics(text: str) -> dict[str, float]:
    """Reads Prometheus' text format.

    Args:
        text: The page.

    Returns:
        By name, the sum over all labels.
    """
    totals: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        try:
            totals[name] = totals.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return totals
