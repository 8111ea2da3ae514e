"""Why an engine did not start, dug out of its output."""

from __future__ import annotations

import re

from earwitness.escaping import printable

_PREFIX = re.compile(
    r"^\((?:\w+) pid=\d+\) ?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] ?)?"
    r"|^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] ?"
)
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Exit)): ?(.*)$")
_USAGE = re.compile(r"^[\w .-]+: error: (.+)$")
_OWN = re.compile(r"^(vLLM is not installed for .+|guardian: cannot start .+)$")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_WRAPPERS = (
    # what vLLM's other processes say when one of them has failed
    "Engine core initialization failed",
    "Engine process failed to start",
    "Engine core proc",
    "Worker failed with error",
    "WorkerProc initialization failed",
    "cancelled",
)
_WORKER_SAID = re.compile(r"Worker failed with error '(.*?)'?(?:, please check|$)")
_PYDANTIC = re.compile(r"^\d+ validation errors? for ")
_OWN_CODE = (
    "the model needs its own Python code, which runs only where it is allowed: read the code, then "
    "add --trust-remote-code"
)
_REASON_CHARS = 400
_MESSAGE_LINES = 8


_ADVICE = (
    (
        re.compile(r"out of memory|OutOfMemoryError", re.IGNORECASE),
        "give the model more GPUs (tensor_parallel_size), or lower gpu_memory_utilization",
    ),
    (
        re.compile(r"^Free memory on device"),
        "stop other programs on the GPU (nvidia-smi lists them), or lower gpu_memory_utilization",
    ),
    (
        re.compile(r"No available memory for the cache blocks|KV cache is needed, which is larger"),
        "raise gpu_memory_utilization, lower max_model_len, or raise tensor_parallel_size",
    ),
)
"""What a person can change when there is too little memory: the settings by our names."""


def start_failure_advice(reason: str) -> str:
    """What to change, where the reason is one that settings can help.

    Args:
        reason: As `start_failure_reason` gave it.

    Returns:
        A clause; empty when there is nothing to add to the reason.
    """
    return next((advice for pattern, advice in _ADVICE if pattern.search(reason)), "")


def start_failure_reason(log_text: str) -> str:
    """Digs out the reason vLLM gave for not starting, without the traces around it.

    The first process to fail gives the cause; those after it only say that it failed. Within one
    trace, an exception raised from another one says it in the better words.

    Args:
        log_text: The engine's output since it was started.

    Returns:
        One or two lines.
    """
    lines = [_PREFIX.sub("", line).rstrip() for line in log_text.splitlines()]
    for line in lines:
        stated = _USAGE.match(line) or _OWN.match(line)
        if stated:
            return _short(stated.group(1))
    best = _root_exception(lines)
    if best is not None:
        return _short(_message_at(lines, best))
    wrapped = _WORKER_SAID.search(log_text)
    if wrapped:
        return _short(wrapped.group(1))
    said = [line.strip() for line in lines if line.strip()]
    return _short(" / ".join(said[-2:])) if said else "it printed nothing"


def _root_exception(lines: list[str]) -> int | None:
    found = [
        number
        for number, line in enumerate(lines)
        if (match := _EXCEPTION.match(line)) and not match.group(2).startswith(_WRAPPERS)
    ]
    if not found:
        return None
    best = found[0]
    for following in found[1:]:
        between = lines[best + 1 : following]
        if not any(line.strip().startswith(_CHAINED) for line in between):
            break
        best = following
    return best


def _message_at(lines: list[str], start: int) -> str:
    match = _EXCEPTION.match(lines[start])
    kind, message = (match.group(1), match.group(2)) if match else ("", lines[start])
    following = []
    for line in lines[start + 1 : start + _MESSAGE_LINES]:
        if not line.strip() or line.startswith(("Traceback", "  File", "[")):
            break
        following.append(line.strip())
    if _PYDANTIC.match(message):
        text = " ".join(following).partition(" [type=")[0]
        return text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    # the process's other output may follow: only a message cut in mid-sentence goes on
    if not message or message.endswith((":", ",")):
        message = " ".join([message, *following[:2]]).strip()
    return message if kind in {"ValueError", "RuntimeError"} else f"{kind}: {message}"


def _short(text: str) -> str:
    text = printable(" ".join(text.split()))
    if "custom code" in text and "trust_remote_code" in text:
        return _OWN_CODE
    return text if len(text) <= _REASON_CHARS else text[: _REASON_CHARS - 1] + "…"
