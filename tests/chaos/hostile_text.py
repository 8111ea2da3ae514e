"""Lines no manifest should have, each with what it has to become."""

from __future__ import annotations

import json

CONVERSATION = b'"conversation":[{"from":"human","value":"What?"}]'
GOOD = b'{"audio":"0.wav",' + CONVERSATION + b"}"


def with_field(name: bytes, value: bytes) -> bytes:
    """A good line with one more field."""
    return b'{"audio":"0.wav",' + name + b":" + value + b"," + CONVERSATION + b"}"


def _joined(pieces: list[bytes]) -> bytes:
    return b",".join(pieces)


def lines() -> list[tuple[str, bytes, str]]:
    """Each line by name, with `planned` or the reason it is rejected for."""
    keys = _joined([b'"k%d":1' % number for number in range(20_000)])
    apart = _joined([b'{"k%d":1}' % number for number in range(20_000)])
    hollow = b"{" + keys[: keys.find(b',"k190"')] + b"}" + b",{}" * 200_000
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 20_000
    clips = json.dumps(["0.wav"] * 100_000).encode()
    return [
        ("arrays 100,000 deep", b"[" * 100_000 + b"]" * 100_000, "malformed_line"),
        ("objects 100,000 deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "malformed_line"),
        ("deep and never closed", b"[" * 100_000, "malformed_line"),
        ("a key twice", with_field(b'"audio"', b'"1.wav"'), "malformed_line"),
        ("a key twice among 20,000", b"{" + keys + b',"k19999":1}', "malformed_line"),
        ("20,000 fields", with_field(b'"k"', b"1," + keys), "too_many_fields"),
        ("an object of 20,000 keys", with_field(b'"m"', b"{" + keys + b"}"), "planned"),
        ("20,000 objects, a key each", with_field(b'"apart"', b"[" + apart + b"]"), "planned"),
        (
            "200,000 empty objects beside a wide one",
            with_field(b'"hollow"', b"[" + hollow + b"]"),
            "planned",
        ),
        ("100,000 clips", b'{"audio":' + clips + b"," + CONVERSATION + b"}", "too_many_clips"),
        (
            "40,001 turns",
            b'{"audio":"0.wav","conversation":' + json.dumps([*turns, turns[0]]).encode() + b"}",
            "planned",
        ),
        ("half a surrogate, escaped", GOOD.replace(b"What", rb"\ud800"), "bad_encoding"),
        ("half a surrogate, raw", GOOD.replace(b"What", b"\xed\xa0\x80"), "bad_encoding"),
        ("half a surrogate in a key", with_field(rb'"\udc00"', b"1"), "bad_encoding"),
        ("a whole surrogate pair", GOOD.replace(b"What", rb"\ud83d\ude00"), "planned"),
        ("a NUL byte in the text", GOOD.replace(b"What", b"Wh\0at"), "malformed_line"),
        ("an escaped NUL in the text", GOOD.replace(b"What", rb"Wh\u0000at"), "planned"),
        ("an escaped NUL in a path", GOOD.replace(b"0.wav", rb"0\u0000.wav"), "bad_uri"),
        ("NUL bytes alone", bytes(1000), "malformed_line"),
        ("a byte order mark in the middle", b"\xef\xbb\xbf" + GOOD, "malformed_line"),
        ("UTF-16 in the middle", GOOD.decode().encode("utf-16"), "bad_encoding"),
        ("Unicode line ends", GOOD.replace(b"What", "a\u2028b\u2029c\x85d".encode()), "planned"),
        ("1e999", with_field(b'"n"', b"1e999"), "planned"),
        ("NaN", with_field(b'"n"', b"NaN"), "planned"),
        ("-0", with_field(b'"n"', b"-0"), "planned"),
        ("an integer of 10,000 digits", with_field(b'"n"', b"1" * 10_000), "malformed_line"),
        ("an integer of 4,000 digits", with_field(b'"n"', b"1" * 4_000), "planned"),
        ("an empty key", with_field(b'""', b"1"), "planned"),
        ("a key of 100,000 characters", with_field(b'"' + b"k" * 100_000 + b'"', b"1"), "planned"),
        ("__proto__", with_field(b'"__proto__"', b'{"x":1}'), "planned"),
        ("a field's name in capitals", with_field(b'"AUDIO"', b"1"), "planned"),
        ("one name, composed", with_field('"caf\u00e9"'.encode(), b"1"), "planned"),
        ("one name, decomposed", with_field('"cafe\u0301"'.encode(), b"1"), "planned"),
        (
            "a part whose type is a list",
            b'{"audio":"0.wav","conversation":[{"role":"user","content":[{"type":[]}]}]}',
            "bad_conversation",
        ),
        ("a field of another type", with_field(b'"n"', b'{"a":[[1],"x",null]}'), "planned"),
        ("no object", b"[1]", "not_an_object"),
        ("carriage returns before the end", GOOD + b"\r\r", "planned"),
    ]
