"""What fuzzing starts from, made anew each time: sample records, and small whole clips."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import zstandard

from tests.chaos.containers import whole_clips

_EXAMPLES = Path(__file__).parents[2] / "examples"
_SECONDS = 0.06

_LINES = [
    {"audio": "a.wav", "conversation": [{"from": "human", "value": "<audio>\nWhat?"}], "id": 1},
    {
        "audio": ["a.wav", "b.wav"],
        "conversation": [{"role": "user", "content": "x <audio><audio>"}],
    },
    {
        "audio": ["https://h/x.wav?y=1"],
        "conversation": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Hm?"}]},
            {"role": "assistant", "content": "A dog."},
            {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        ],
    },
    {"audio": ["s3://b/../x"], "conversation": [], "n": [1, 2.5, None, True, -0.0, 1e300]},
    {"audio": ["data:audio/wav;base64,AA"], "conversation": None, "m": {"a": {"b": [[]]}}},
    {"audio": ["/a/../b.wav"], "earwitness": {"row": 1, "stage": "plan", "reason": "no_audio"}},
]
_RAW_LINES = [
    b'{"audio": ["\\ud83d\\ude00.wav"], "t": "\\ud800", "u": "\xe2\x80\xa8\xf0\x9f\x98\x80"}',
    b'{"audio": "x", "x": 1e999, "y": NaN, "z": -Infinity, "w": 123456789012345678901234567890}',
    b'\xef\xbb\xbf{"audio": "x", "audio": "y"}',
    b"[[[[[[[[[[]]]]]]]]]]",
    b'"text"',
    b'{"answer": 1}',
]
TOKENS = [
    b'"audio"', b'"conversation"', b'"from"', b'"value"', b'"role"', b'"content"', b'"human"',
    b'"gpt"', b'"user"', b'"assistant"', b'"system"', b'"type"', b'"text"', b'"audio_url"',
    b'"input_audio"', b'"url"', b"<audio>", b"null", b"true", b"NaN", b"Infinity", b"1e999",
    b"\\u0000", b"\\ud800", b"\\udc00", b"://", b"s3://", b"file:///", b"..", b"data:", b"\r\n",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b'"earwitness"', b'"answer"',
    b'"row":1,"stage":"","reason":"","detail":"","transient":false', b"18446744073709551616",
]  # fmt: skip
HEADER_TOKENS = [
    b"RIFF", b"WAVE", b"fmt ", b"data", b"RF64", b"ds64", b"LIST", b"fact", b"FORM", b"AIFF",
    b"AIFC", b"COMM", b"SSND", b"fLaC", b"OggS", b"OpusHead", b"\x01vorbis", b"ID3\x04", b"Xing",
    b"Info", b"VBRI", b"ftyp", b"moov", b"mdat", b"mvhd", b"stco", b"caff", b"desc", b"#!AMR\n",
    b"\x1aE\xdf\xa3", b".snd", b"riff", b"\xff\xfb", b"\xff\xff\xff\xff", b"\x7f\xff\xf0\x00",
    b"<html", b"PAR1", b"#EXTM3U",
]  # fmt: skip


def manifest_seeds() -> list[bytes]:
    """Manifests, each led by the byte that chooses settings (see `tests.fuzz.manifest`)."""
    lines = [json.dumps(line, ensure_ascii=False).encode() for line in _LINES] + _RAW_LINES
    lines += (_EXAMPLES / "manifest.jsonl").read_bytes().splitlines()[:6]
    whole = b"\n".join(lines)
    packed = [gzip.compress(whole, mtime=0), zstandard.compress(whole)]
    return [bytes([number]) + data for number, data in enumerate([*lines, whole, *packed])]


def header_seeds() -> list[bytes]:
    """Small clips of every container."""
    return list(whole_clips(_SECONDS).values())
