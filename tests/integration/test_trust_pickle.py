"""Nothing that comes out of storage is ever run: no pickle, no extension type, no loose loader."""

from __future__ import annotations

import ast
import base64
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_build_publish import answered, finish, planned

import earwitness
from earwitness.builds.persist import persist_shard
from earwitness.builds.publish import publish_build
from earwitness.cache import StoredTable
from earwitness.identity import folder_digest
from earwitness.manifest.read import open_manifest
from earwitness.manifest.schema import OutputFields
from earwitness.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUSE = Path(__file__).parents[2]
OURS = ("earwitness", "tasks", "flows", "deployments", "cli", "demo_model", "scripts", "examples")
RUN_WHAT_THEY_READ = {"pickle", "cPickle", "_pickle", "shelve", "marshal", "dbm", "dill"} | {
    "cloudpickle", "joblib", "jsonpickle", "pickletools",
}  # fmt: skip
LOADERS = {"read_pickle", "to_pickle", "eval", "exec", "compile", "unsafe_load", "full_load"} | {
    "unsafe_load_all", "full_load_all", "deserialize", "deserialize_pandas", "__import__",
}  # fmt: skip


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for package in OURS:
        for path in sorted((HOUSE / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
    return []


def forbidden(call: ast.Call) -> str:
    """The name of a call that could run what it reads."""
    of = ast.unparse(call.func)
    owner, _, name = of.rpartition(".")
    if name in LOADERS and not (name == "compile" and owner == "re"):
        return of
    safe = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "load" and owner in {"yaml", "torch", "np", "numpy"}:
        allowed = {"yaml": "Loader", "torch": "weights_only"}.get(owner)
        loose = safe.get("allow_pickle", "False") != "False"
        if allowed is None:
            return of if loose else ""
        return "" if safe.get(allowed) in {"True", "yaml.SafeLoader"} else of
    return ""


def test_our_packages_load_nothing_that_runs():
    found = []
    for path, tree in sources():
        for node in ast.walk(tree):
            names = {name.partition(".")[0] for name in imported(node)}
            found += [f"{path}: import {name}" for name in names & RUN_WHAT_THEY_READ]
            if isinstance(node, ast.Call) and forbidden(node):
                found.append(f"{path}:{node.lineno}: {forbidden(node)}")
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "pd.read_pickle(x)", "yaml.load(x)", "yaml.load(x, Loader=yaml.Loader)", "eval(x)",
        "yaml.unsafe_load(x)", "torch.load(x)", "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)", "pa.deserialize(x)",
    ],
)  # fmt: skip
def test_the_check_would_find_them(line: str):
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
    assert forbidden(call)


class Opened:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """A path that must not exist after the test."""
    path = tmp_path / "opened"
    pickle.loads(pickle.dumps(Opened(path)))  # noqa: S301 - it does what it is meant to do
    path.unlink()
    yield path
    assert not path.exists()


def hostile(table: pa.Table, trace: Path) -> pa.Table:
    """The table with every kind of metadata that some reader has unpickled once."""
    payload = pickle.dumps(Opened(trace))
    mark = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": payload,
    }
    fields = [field.with_metadata(mark) for field in table.schema]
    index = {"pickled": base64.b64encode(payload).decode(), "index_columns": ["__import__('os')"]}
    notes = {
        **(table.schema.metadata or {}),
        b"pandas": json.dumps(index).encode(),
        b"PANDAS_ATTRS": b"{}",
    }
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields, notes))


def test_a_hostile_parquet_manifest_is_only_read(tmp_path: Path, trace: Path):
    table = pa.table({"audio": ["a.wav"], "more": [7]})
    pq.write_table(hostile(table, trace), tmp_path / "m.parquet")
    marks = pq.read_schema(tmp_path / "m.parquet").field("more").metadata
    assert marks[b"ARROW:extension:name"] == b"arrow.py_extension_type"
    with open_manifest(str(tmp_path / "m.parquet"), max_line_bytes=2**20) as source:
        assert [line.record for line in source] == [{"audio": "a.wav", "more": 7}]


def test_hostile_segments_and_data_files_are_only_read(tmp_path: Path, trace: Path):
    build = planned(tmp_path, rows=2)
    finish(build, 0, [answered(0), answered(1)])
    for segment in (Path(build.uri) / "work").rglob("*.parquet"):
        pq.write_table(hostile(pq.read_table(segment), trace), segment)
    persist_shard(build, 0)
    publish_build(build)
    for folder in ("data", "outcomes", "clips", "keys"):
        for path in (Path(build.uri) / folder).glob("*.parquet"):
            pq.write_table(hostile(pq.read_table(path), trace), path)
    assert list(StoredTable(build.store, "outcomes").find([bytes(32)]))
    assert list(StoredTable(build.store, "outcomes").near([bytes(32)], 0))
    assert earwitness.load(str(tmp_path / "out"))["answer"].tolist() == ["answer 0", "answer 1"]


def test_a_hostile_stored_schema_is_only_read(trace: Path):
    schema = hostile(pa.table({"more": [7]}), trace).schema
    stored = {"arrow": base64.b64encode(schema.serialize()).decode(), "json_fields": []}
    OutputFields.from_json(stored)


def test_a_models_files_are_hashed_and_not_opened(tmp_path: Path, trace: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"})
    )
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opened(trace)))
    assert len(folder_digest(folder)) == 64
    from earwitness.identity import identify_model

    assert identify_model(str(folder), EngineSettings(), declared=False).kind == "local"
