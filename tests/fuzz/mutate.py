"""Mutations that know JSON: a fuzzer that only flips bytes seldom keeps a line whole."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from tests.fuzz.seeds import TOKENS

if TYPE_CHECKING:
    from random import Random

_KEYS = ["audio", "conversation", "from", "value", "role", "content", "type", "text", "audio_url",
    "url", "answer", "earwitness", "row", "stage", "", "__proto__", "id", "Audio", "\u00e9",
    "e\u0301", "k" * 300]  # fmt: skip
_TEXTS = ["", " ", "human", "gpt", "user", "assistant", "system", "audio", "text", "<audio>",
    "<audio>\n", "a.wav", "../..", "s3://b/k", "http://h/p?q#f", "file:///x", "\0", "\u2028",
    "\ud800", "\U0001f600", "nan", "2024-01-01T00:00:00"]  # fmt: skip
_NUMBERS = [0, -0.0, 1, -1, 0.5, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**40, 1e308, 5e-324,
    float("nan"), float("inf"), True, False, None]  # fmt: skip


def mutate_json(data: bytes, dice: Random) -> bytes:
    """One line of the manifest, changed as JSON; a line that is none is replaced by one that is."""
    lines = data[1:].split(b"\n")
    at = dice.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        value = {"audio": ["a.wav"], "conversation": [{"from": "human", "value": "What?"}]}
    for _ in range(dice.choice([1, 1, 2, 4])):
        value = _changed(value, dice)
    ascii_only = dice.random() < 0.5
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    lines[at] = text
    if dice.random() < 0.1:
        lines.insert(at, text)
    choice = data[:1] if data and dice.random() < 0.8 else bytes([dice.randrange(256)])
    return choice + b"\n".join(lines)


def mutate_bytes(data: bytes, dice: Random) -> bytes:
    """A few bytes changed, cut out, doubled or replaced by a word that means something."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        start = dice.randrange(len(changed) + 1)
        end = min(len(changed), start + dice.choice([1, 1, 4, 40]))
        kind = dice.randrange(4)
        if kind == 0:
            changed[start:end] = dice.randbytes(end - start)
        elif kind == 1:
            del changed[start:end]
        elif kind == 2:
            changed[start:start] = changed[start:end] * dice.choice([1, 2, 50])
        else:
            changed[start:end] = dice.choice(TOKENS)
    return bytes(changed)


def _changed(value: Any, dice: Random) -> Any:
    """A copy with one place inside changed."""
    value = copy.deepcopy(value)
    if not isinstance(value, dict | list) or not value or dice.random() < 0.1:
        return _made(dice)
    node = value
    while True:
        key = dice.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner = node[key]
        if isinstance(inner, dict | list) and inner and dice.random() < 0.7:
            node = inner
            continue
        _change_at(node, key, dice)
        return value


def _change_at(node: Any, key: Any, dice: Random) -> None:
    kind = dice.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = [node[key]] if dice.random() < 0.5 else {dice.choice(_KEYS): node[key]}
    elif kind == 2 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif kind == 3 and isinstance(node, dict):
        node[dice.choice(_KEYS)] = node[key] if dice.random() < 0.5 else _made(dice)
    elif kind == 4 and isinstance(node[key], str):
        node[key] += dice.choice(_TEXTS)
    else:
        node[key] = _made(dice)


def _made(dice: Random) -> Any:
    return dice.choice([dice.choice(_TEXTS), dice.choice(_NUMBERS), [], {}, [{}]])
