"""Manifests are read as streams, whatever they are packed in and however long their lines."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from typing import TYPE_CHECKING

import fsspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from earwitness.errors import ManifestError
from earwitness.manifest.read import open_manifest
from earwitness.manifest.unpack import split_lines, unpacked
from earwitness.records import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.manifest.read import RawLine

LIMIT = 2**20
TWO = b'{"id": 1}\n{"id": 2}\n'
PACKED = gzip.compress(TWO, mtime=0)


def read(path: Path | str, limit: int = LIMIT) -> list[RawLine]:
    with open_manifest(str(path), max_line_bytes=limit) as source:
        return list(source)


def written(folder: Path, data: bytes, name: str = "m.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (TWO, [b'{"id": 1}', b'{"id": 2}']),
        (b'\xef\xbb\xbf{"id": 1}\n{"id": 2}', [b'{"id": 1}', b'{"id": 2}']),
        (b'{"id": 1}\r\n\r\n  \n{"id": 2}\r\n', [b'{"id": 1}', b'{"id": 2}']),
        (b"{", [b"{"]),
    ],
)
def test_every_line_with_text_is_a_row(tmp_path: Path, data: bytes, texts: list[bytes]) -> None:
    lines = read(written(tmp_path, data))
    assert [line.text for line in lines] == texts
    assert [line.row for line in lines] == list(range(len(texts)))


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    lines = read(written(tmp_path, b'{"id": 1}\n\n{"id": 2}\n'))
    assert [(line.row, line.line_number) for line in lines] == [(0, 1), (1, 3)]


@pytest.mark.parametrize("name", ["m.jsonl.gz", "m.jsonl", "m.jsonl.zst"])
@pytest.mark.parametrize(
    "data",
    [
        PACKED,
        gzip.compress(TWO[:10], mtime=0) + gzip.compress(TWO[10:], mtime=0) + bytes(512),
        zstandard.compress(TWO),
        zstandard.compress(TWO[:10]) + zstandard.compress(TWO[10:]),
    ],
)
def test_packed_manifests_are_told_by_their_bytes(tmp_path: Path, name: str, data: bytes) -> None:
    assert [line.text for line in read(written(tmp_path, data, name))] == TWO.split(b"\n")[:2]


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_blocks_may_end_anywhere(size: int, pack: object) -> None:
    data = pack(TWO * 50)  # type: ignore[operator]
    blocks = iter([data[:4], *(data[at : at + size] for at in range(4, len(data), size))])
    assert b"".join(unpacked(blocks, "m")) == TWO * 50


def test_stamp_digest_and_progress_are_of_the_stored_bytes(tmp_path: Path) -> None:
    data = gzip.compress(TWO)
    path = written(tmp_path, data)
    status = path.stat()
    with open_manifest(str(path), max_line_bytes=LIMIT) as source:
        assert source.stamp == f"{len(data)}:{status.st_mtime_ns}:{status.st_ino}"
        assert source.digest == ""
        assert len(list(source)) == source.rows == 2
        assert source.digest == hashlib.sha256(data).hexdigest()
        assert source.read_bytes == source.size_bytes == len(data)


def test_a_line_too_long_is_one_rejected_row(tmp_path: Path) -> None:
    data = b'{"id": 1}\n' + b"x" * 3_000_000 + b'\n{"id": 2}\n' + b"y" * 2000
    lines = read(written(tmp_path, data), limit=1024)
    assert [line.text for line in lines] == [b'{"id": 1}', None, b'{"id": 2}', None]
    assert [line.rejection and line.rejection.reason for line in lines] == [
        None,
        Reason.LINE_TOO_LONG,
        None,
        Reason.LINE_TOO_LONG,
    ]


@given(
    data=st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r", b"cccc"]), max_size=40),
    cuts=st.lists(st.integers(1, 5), max_size=40),
    limit=st.integers(1, 6),
)
def test_lines_do_not_depend_on_how_the_bytes_arrive(
    data: list[bytes], cuts: list[int], limit: int
) -> None:
    whole = b"".join(data)
    blocks, at = [], 0
    for cut in cuts:
        blocks.append(whole[at : at + cut])
        at += cut
    blocks.append(whole[at:])
    lines = whole.split(b"\n")
    expected = [line if len(line) <= limit else None for line in lines]
    if not lines[-1]:
        expected.pop()
    assert list(split_lines(blocks, limit)) == expected


def test_a_bomb_of_line_ends_is_cut_in_small_pieces() -> None:
    block = b"\n" * 2**22
    tracemalloc.start()
    lines = sum(1 for _ in split_lines([block], LIMIT))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines == len(block)
    assert peak < 3 * 2**23


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "m.jsonl", "holds no records"),
        (b"\n \n", "m.jsonl", "holds no records"),
        (b"", "m.jsonl.gz", "holds no records"),
        (gzip.compress(TWO * 99, mtime=0)[:-12], "m.jsonl.gz", "cut short"),
        (zstandard.compress(TWO * 99)[:-3], "m.jsonl.zst", "cut short"),
        (PACKED[:-8] + bytes(8), "m.jsonl.gz", "damaged gzip"),
        (PACKED + b"junk", "m.jsonl.gz", "damaged gzip"),
        (zstandard.compress(TWO) + b"junk", "m.jsonl.zst", "damaged zstd"),
        (b'x\n{"id": 1}\n', "m.jsonl.gz", "not packed as its name says"),
        ('{"id": 1}'.encode("utf-16"), "m.jsonl", "UTF-16"),
        (b'[\n  {"id": 1}\n]', "m.json", "one JSON array"),
        (b"PAR1 but no more", "m.parquet", "not a whole Parquet file"),
        (TWO, "m.parquet", "not a whole Parquet file"),
    ],
)
def test_a_manifest_unreadable_as_a_whole_is_an_error(
    tmp_path: Path, data: bytes, name: str, message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        read(written(tmp_path, data, name))


def test_a_missing_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no manifest at"):
        read(tmp_path / "none.jsonl")


def test_a_folder_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="folder"):
        read(tmp_path)


def test_a_manifest_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, TWO)
    with open_manifest(str(path), max_line_bytes=LIMIT) as source:
        lines = iter(source)
        next(lines)
        path.write_bytes(TWO + TWO)
        with pytest.raises(ManifestError, match="changed while it was read"):
            list(lines)


def test_any_fsspec_address_will_do() -> None:
    fsspec.filesystem("memory").pipe_file("/m/two.jsonl", TWO)
    assert len(read("memory://m/two.jsonl")) == 2
