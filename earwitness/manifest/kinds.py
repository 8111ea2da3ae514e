"""What a file that is no manifest looks like, judged by its first bytes, and what to do with it.

Without this, a file of the wrong kind is read as JSON lines, and ends as thousands of rejections.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from earwitness.audio.headers import audio_kind, looks_like
from earwitness.errors import ManifestError
from earwitness.escaping import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

_MORE_MAGIC = (
    (b"\x04\x22\x4d\x18", "an LZ4 file"),
    (b"\x1f\x9d", "a compress (.Z) file"),
    (b"{\\rtf", "a document of rich text (RTF)"),
)
_TABLES = (
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "a Feather file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x80\x04\x95", "a Python pickle"),
    (b"\x80\x05\x95", "a Python pickle"),
)
_TEXT_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_UNPACK = {
    "a bzip2 file": "bunzip2",
    "an xz file": "unxz",
    "a ZIP archive": "unzip",
    "a tar archive": "tar -xf",
    "a 7-Zip archive": "7z x",
    "a RAR archive": "unrar x",
    "a gzip file": "gunzip",
    "a Zstandard file": "unzstd",
    "an LZ4 file": "unlz4",
    "a compress (.Z) file": "uncompress",
}
_NOT_KNOWN = frozenset({"text", "a JSON document", "a file of an unknown kind"})
_OFFICE = b"[Content_Types].xml"
_BOM = b"\xef\xbb\xbf"
_SEPARATORS = ",\t;|"
_TWO_LETTERS = 4
_FIRST_LINES = 20
_PYTHON = re.compile(rb"\{\s*u?'[^']*'\s*:")
_RECORDS = re.compile(rb"\[\s*(\{|$)")
_MAYBE_JSON = re.compile(rb'\{|\[\s*([\[{"\d\]-]|true|false|null|$)')
_ENOUGH_BYTES = 2**16
_SHOWN_CHARS = 60
_FORM = 'a manifest has one JSON object a line, such as {"audio": ["a.wav"]}'
_ELSEWHERE = f"the address leads to an error or login page, or to another file; {_FORM}"
_REMEDIES = {
    "a Git LFS pointer, not the file itself": "fetch the file itself with git lfs pull",
    "an HTML page": _ELSEWHERE,
    "an XML document": _ELSEWHERE,
    "a Parquet file": "unpack it: Parquet is read as it is",
}


def check_kind(head: bytes, uri: str, *, packed: str = "") -> None:
    """Refuse what cannot be a manifest, before anything is planned.

    A single bad line is a rejected row; this is about files none of whose lines is meant as a
    record. In doubt nothing is refused.

    Args:
        head: The file's first bytes; all of them where it has fewer than 64 KiB.
        uri: The manifest, for messages.
        packed: The kind of file that `head` was unpacked from; empty: none.

    Raises:
        ManifestError: It looks like something else; the text says like what, and what to do.
    """
    found = _binary_kind(head, uri) or _text_kind(head, uri)
    if found is None:
        return
    kind, remedy = found
    inside = f"{packed} with {kind} inside" if packed else kind
    raise ManifestError(f"the manifest {uri} is {inside}: {remedy}")


def folder_kind(names: Iterable[str]) -> str:
    """What to say of a folder that was given as a manifest.

    Args:
        names: The files in it.
    """
    counts = Counter(_kind_by_name(name) for name in names)
    if counts["Parquet"] > 1:
        return (
            f"it is a folder of {counts['Parquet']:,} Parquet files; a manifest is one file: "
            "join them with pyarrow.dataset, or name one of them"
        )
    if counts["audio"]:
        return (
            f"it is a folder with {counted(counts['audio'], 'audio file')}; write a manifest that "
            'lists them, one line each: {"audio": ["a.wav"]}'
        )
    return "it is a folder; name the file inside"


def _kind_by_name(name: str) -> str:
    ending = name.rpartition(".")[2].lower()
    if ending in {"parquet", "pq"}:
        return "Parquet"
    return "audio" if ending in {"wav", "flac", "mp3", "ogg", "opus", "m4a"} else ""


def _binary_kind(head: bytes, uri: str) -> tuple[str, str] | None:
    encoding = _encoding(head)
    audio = audio_kind(head)
    more = next((name for magic, name in _MORE_MAGIC if head.startswith(magic)), None)
    kind = more or looks_like(head)
    table = next((name for magic, name in _TABLES if head.startswith(magic)), None)
    if table is not None:
        found = table, "convert it to Parquet (pyarrow.parquet.write_table) or to JSON lines"
    elif encoding:
        how = f"iconv -f {encoding} -t UTF-8 {shlex.quote(uri)} > manifest.jsonl"
        found = f"{encoding} text", f"it has to be UTF-8 ({how})"
    elif audio is not None:
        line = json.dumps({"audio": [uri]}, ensure_ascii=False)
        found = audio, f"write a file that names it, one JSON object a line: {line}"
    elif kind == "a ZIP archive" and _OFFICE in head[:4096]:
        found = "an Excel or other Office document", "export it as JSON lines or Parquet"
    elif kind in _UNPACK:
        how = "packed manifests are gzip or Zstandard"
        found = kind, f"unpack it first ({_UNPACK[kind]}); {how}"
    elif kind in _NOT_KNOWN:
        return None
    else:
        found = kind, _REMEDIES.get(kind, _FORM)
    return found


def _encoding(head: bytes) -> str:
    for mark, name in _TEXT_ENCODINGS:
        if head.startswith(mark):
            return name
    # without a mark, every second byte of plain letters is zero
    start = head[:64]
    if len(start) >= _TWO_LETTERS and start[:2].count(0) == 1:
        for zeros, letters in ((start[1::2], start[::2]), (start[::2], start[1::2])):
            if not zeros.strip(b"\0") and b"\0" not in letters:
                return "UTF-16"
    return ""


def _text_kind(head: bytes, uri: str) -> tuple[str, str] | None:
    text = head.removeprefix(_BOM)
    whole = len(head) < _ENOUGH_BYTES
    lines = [line.strip() for line in text.split(b"\n")]
    if not whole:
        lines.pop()  # it may go on
    lines = [line for line in lines if line][:_FIRST_LINES]
    start = text.lstrip()
    if b"\n" not in text and b"\r{" in text:
        how = f"tr '\\r' '\\n' < {shlex.quote(uri)} > manifest.jsonl"
        return "text whose lines end with carriage returns alone", f"convert it ({how})"
    if _RECORDS.match(start) or (start.startswith(b"[") and isinstance(_parsed(text), list)):
        return _array(text, lines, uri)
    if start.startswith(b"{"):
        return _nearly_json_lines(lines, uri) or _spread_object(text, lines, uri)
    if not lines or any(map(_MAYBE_JSON.match, lines)):
        return None
    return _no_json(lines)


def _array(text: bytes, lines: list[bytes], uri: str) -> tuple[str, str] | None:
    first = _parsed(lines[0]) if lines else None
    bare = isinstance(first, list) and not any(isinstance(one, dict) for one in first)
    damaged = lines[:1] != [b"["] and any(isinstance(_parsed(line), dict) for line in lines[1:])
    if (lines[1:] and bare) or (damaged and not isinstance(_parsed(text), list)):
        return None  # JSON lines, the first of which is no record
    return "one JSON array", f"{_FORM} ({_jq('.[]', uri)} makes it so)"


def _nearly_json_lines(lines: list[bytes], uri: str) -> tuple[str, str] | None:
    """Lines with an object each, in another notation than JSON's."""
    if not lines or any(isinstance(_parsed(line), dict) for line in lines):
        return None
    if all(isinstance(_parsed(line.rstrip(b",")), dict) for line in lines):
        how = f"sed 's/,$//' {shlex.quote(uri)} > manifest.jsonl"
        return "JSON objects with commas between the lines", f"remove the commas ({how})"
    if all(_PYTHON.match(line) for line in lines):
        return "Python's notation of dictionaries", "write it with json.dumps, one object a line"
    return None


def _spread_object(text: bytes, lines: list[bytes], uri: str) -> tuple[str, str] | None:
    """An object over several lines, whether alone or the first of many."""
    if not lines or _parsed(lines[0]) is not None:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text.decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        if (
            lines[0] != b"{"
            or len(lines) == 1
            or any(isinstance(_parsed(line), dict) for line in lines[1:])
        ):
            return None
        return "JSON spread over several lines", f"{_FORM} ({_jq('.', uri)} makes it so)"
    inside = next((name for name, one in value.items() if _is_records(one)), None)
    if inside is not None:
        how = _jq(f".[{json.dumps(inside)}][]", uri)
        return (
            f"one JSON object with the records in its field {inside!r}",
            f"{_FORM} ({how} makes it so)",
        )
    return "JSON spread over several lines", f"{_FORM} ({_jq('.', uri)} makes it so)"


def _is_records(value: Any) -> bool:
    """Whether a value is a list of records, and not the turns of a conversation."""
    objects = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    return objects and bool(value) and value[0].keys().isdisjoint({"from", "role"})


def _jq(what: str, uri: str) -> str:
    return f"jq -c {shlex.quote(what)} {shlex.quote(uri)} > manifest.jsonl"


def _no_json(lines: list[bytes]) -> tuple[str, str] | None:
    first = lines[0].decode("utf-8", "replace")
    shown = first if len(first) <= _SHOWN_CHARS else f"{first[:_SHOWN_CHARS]}…"
    for separator in _SEPARATORS:
        cells = lines[0].count(separator.encode())
        if cells and all(line.count(separator.encode()) >= cells for line in lines[:3]):
            kind = "a table of TSV" if separator == "\t" else "a table of CSV"
            return f"{kind} (it begins {shown!r})", f"convert it: {_FORM}"
    if all(re.fullmatch(rb"[^\s{}]+\.[A-Za-z0-9]{2,5}", line) for line in lines):
        return f"a list of file names (it begins {shown!r})", f"{_FORM}"
    if b"\0" in lines[0] or "\ufffd" in first:
        return "a file of an unknown kind", _FORM
    return f"text without JSON (it begins {shown!r})", _FORM


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
