"""Publish: check that everything is there and adds up, describe it, and only then point at it."""

from __future__ import annotations

import hashlib
import json
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import earwitness
from earwitness.build.card import dataset_card
from earwitness.build.layout import FILE_FOLDERS, Build, Counts, Receipt, shard_path
from earwitness.errors import BuildDamagedError, LedgerError, TooManyRejectionsError
from earwitness.progress import Published, tell
from earwitness.storage import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from earwitness.build.layout import StoredFile

LATEST = "latest.json"
_READERS = 16


def publish_build(build: Build, engine_version: str = "") -> dict[str, Any]:
    """Publish a build whose shards are all done. Publishing twice changes nothing.

    Args:
        build: The build.
        engine_version: What answered, for the record; empty when nothing was asked.

    Returns:
        `build.json`.

    Raises:
        BuildDamagedError: A receipt or a file is missing, or does not match its digest.
        LedgerError: Rows do not add up.
        TooManyRejectionsError: More rejections than the gates allow.
    """
    if build.published:
        _finish(build)
        return build.facts()
    receipts = _receipts(build)
    counts = sum((receipt.counts for receipt in receipts), Counts())
    _check_ledger(build, counts)
    _check_gate(build, counts)
    _check_files(build, [file for receipt in receipts for file in receipt.files])
    facts = _facts(build, receipts, counts, engine_version)
    build.store.write_bytes("README.md", dataset_card(build.plan, counts).encode())
    build.outcomes.merge()
    build.sightings.merge()
    build.store.write_bytes("build.json", _pretty(facts))
    _finish(build)
    tell(Published(build.id))
    return facts


def latest_build(output: str) -> str:
    """The id of the newest published build, or an empty string."""
    return _latest(output)["build"]


def latest_planned_at(output: str) -> str:
    """When the newest published build was planned, or an empty string."""
    return _latest(output)["planned_at"]


def _latest(output: str) -> dict[str, str]:
    try:
        pointer: dict[str, str] = json.loads(Store(output).read_bytes(LATEST))
    except FileNotFoundError:
        return {"build": "", "planned_at": ""}
    return pointer


def _receipts(build: Build) -> list[Receipt]:
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(build.receipt, range(len(build.plan.shards))))
    missing = [number for number, receipt in enumerate(found) if receipt is None]
    if missing:
        raise BuildDamagedError(
            f"{build.id}: {len(missing)} of {len(found)} shards have no receipt "
            f"(the first is {missing[0]}); run the build again to finish them"
        )
    return [receipt for receipt in found if receipt is not None]


def _check_ledger(build: Build, counts: Counts) -> None:
    planned = sum(shard.rows for shard in build.plan.shards)
    if not counts.balanced or not counts.rows == planned == build.plan.rows:
        raise LedgerError(
            f"{build.id} does not balance: {build.plan.rows} rows were planned, "
            f"{counts.answered} answered ({counts.generated} generated + {counts.reused} reused) "
            f"and {counts.rejected} rejected; nothing was published"
        )


def _check_gate(build: Build, counts: Counts) -> None:
    allowed = build.gates.max_rejected
    share = counts.rejected / counts.rows if counts.rows else 0.0
    if share > allowed:
        most = max(counts.reasons, key=lambda reason: counts.reasons[reason])
        raise TooManyRejectionsError(
            f"{counts.rejected} of {counts.rows} rows are rejected ({share:.1%}, most for {most}), "
            f"over max_rejected = {allowed:.1%}; nothing was published. The rejections are in "
            f"{build.store.uri('rejected')}. Mend their cause, or allow more with --max-rejected "
            "and run the build again: no answer is asked twice"
        )


def _check_files(build: Build, files: list[StoredFile]) -> None:
    """Read every file a receipt names against its digest; delete those none names."""
    named = {file.path for file in files}
    there = [path for folder in FILE_FOLDERS for path in build.store.sizes(folder)]

    def damaged(file: StoredFile) -> str:
        try:
            with build.store.open(file.path) as stored:
                digest = hashlib.file_digest(cast("Any", stored), "sha256").hexdigest()
        except FileNotFoundError:
            return f"{file.path} is missing"
        return "" if digest == file.sha256 else f"{file.path} was changed"

    with ThreadPoolExecutor(_READERS) as pool:
        told = [text for text in pool.map(damaged, files) if text]
    if told:
        raise BuildDamagedError(f"{build.uri}: {'; '.join(told[:3])}")
    build.store.delete(path for path in there if path not in named)
    for folder in FILE_FOLDERS:
        build.store.sweep(folder)


def _facts(
    build: Build, receipts: Iterable[Receipt], counts: Counts, engine_version: str
) -> dict[str, Any]:
    plan = build.plan
    return {
        "build": build.id,
        "planned_at": plan.planned_at,
        "manifest": plan.manifest.model_dump(mode="json"),
        "model": plan.model,
        "settings": plan.settings.model_dump(mode="json"),
        "gates": build.gates.model_dump(mode="json"),
        "counts": counts.model_dump(mode="json"),
        "fields": plan.fields,
        "files": [file.model_dump(mode="json") for one in receipts for file in one.files],
        "plan": {shard_path(n): shard.sha256 for n, shard in enumerate(plan.shards)},
        "versions": {
            "earwitness": earwitness.__version__,
            "engine": engine_version,
            "python": platform.python_version(),
        },
    }


def _finish(build: Build) -> None:
    # the pointer last: a build killed before it was moved is found, and continued
    build.store.delete_folder("work")
    _point_at(build)


def _point_at(build: Build) -> None:
    """Move `latest.json` to this build unless it points at one planned later."""
    pointed = latest_build(build.output.root)
    if pointed and pointed != build.id:
        current = Build(build.output.root, pointed)
        if current.published and current.facts()["planned_at"] > build.plan.planned_at:
            return
    pointer = {"build": build.id, "planned_at": build.plan.planned_at}
    build.output.write_bytes(LATEST, _pretty(pointer))


def _pretty(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
