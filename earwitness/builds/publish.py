"""Publish: check that everything is there and adds up, describe it, and only then point at it."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn, cast

import earwitness
from earwitness.builds.account import Account, Basis, account_facts, basis_of, choose_basis
from earwitness.builds.card import CARD_MARK, dataset_card, output_card
from earwitness.builds.layout import (
    FILE_FOLDERS,
    TABLES,
    Build,
    Counts,
    Receipt,
    receipt_path,
    shard_path,
)
from earwitness.cache.keys import write_keys
from earwitness.errors import (
    BuildDamagedError,
    BuildNotFoundError,
    LedgerError,
    TooManyRejectionsError,
)
from earwitness.escaping import listed
from earwitness.progress import Published, tell
from earwitness.storage import Store
from earwitness.strict_json import json_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwitness.builds.layout import StoredFile

LATEST = "latest.json"
CARD = "README.md"
_log = logging.getLogger(__name__)
_READERS = 16


def publish_build(build: Build) -> dict[str, Any]:
    """Publish a build whose shards are all done. Publishing twice changes nothing.

    Args:
        build: The build.

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
    files = [file for receipt in receipts for file in receipt.files]
    # before the gate: the next build reuses what this one answered, published or not
    _write_keys(build, files)
    _check_gate(build, counts)
    damage = _damage(build, receipts)
    if damage and build.published:
        return publish_build(build)  # by another process, meanwhile
    if damage:
        _undo(build, damage)
    _remove_unnamed(build, files)
    facts = _facts(build, receipts, counts)
    build.store.write_bytes(CARD, dataset_card(build.plan, counts, facts["account"]).encode())
    build.store.write_bytes("build.json", json_document(facts))
    # again: a process that came back late may have written since, before it could see build.json
    _remove_unnamed(build, files)
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
            f"the counts of {build.id} do not add up: {build.plan.rows} rows were planned, "
            f"{counts.answered} answered ({counts.generated} generated + {counts.reused} reused) "
            f"and {counts.rejected} rejected; nothing was published"
        )


def _write_keys(build: Build, files: Sequence[StoredFile]) -> None:
    for table in TABLES:
        write_keys(
            build.store, table, [one.path for one in files if one.path.startswith(f"{table}/")]
        )


def _check_gate(build: Build, counts: Counts) -> None:
    allowed = build.gates.max_rejected
    share = counts.rejected / counts.rows if counts.rows else 0.0
    if share > allowed:
        most = max(counts.reasons, key=lambda reason: counts.reasons[reason])
        raise TooManyRejectionsError(
            f"{counts.rejected} of {counts.rows} rows are rejected ({share:.1%}, most for {most}), "
            f"and max_rejected allows {allowed:.1%}; nothing was published. The rejections are in "
            f"{build.store.uri('rejected')}. Remove the cause, or allow more with --max-rejected; "
            "then run the build again: all answers are reused"
        )


def _damage(build: Build, receipts: Sequence[Receipt]) -> dict[int, str]:
    """Read every file the receipts name against its digest; what is wrong, by shard."""

    def damaged(named: tuple[int, StoredFile]) -> tuple[int, str]:
        shard, file = named
        try:
            with build.store.open(file.path) as stored:
                digest = hashlib.file_digest(cast("Any", stored), "sha256").hexdigest()
        except FileNotFoundError:
            return shard, f"{file.path} is missing"
        return shard, "" if digest == file.sha256 else f"{file.path} was changed"

    named = [(receipt.shard, file) for receipt in receipts for file in receipt.files]
    with ThreadPoolExecutor(_READERS) as pool:
        return {shard: told for shard, told in pool.map(damaged, named) if told}


def _undo(build: Build, damage: dict[int, str]) -> NoReturn:
    """Take the receipts of damaged shards back, so that the next run does these again."""
    build.store.delete(receipt_path(shard) for shard in damage)
    raise BuildDamagedError(
        f"{build.uri}: {listed(damage.values(), 3, separator='; ')}. Nothing was published. Run "
        f"the build again: it repeats {len(damage)} of {len(build.plan.shards)} shards and reuses "
        "all answers"
    )


def _remove_unnamed(build: Build, files: Sequence[StoredFile]) -> None:
    """Delete data files that no receipt names: whoever globs for them would read rows twice."""
    named = {file.path for file in files}
    there = [path for folder in FILE_FOLDERS for path in build.store.sizes(folder)]
    build.store.delete(path for path in there if path not in named)
    for folder in FILE_FOLDERS:
        build.store.sweep(folder)


def _facts(build: Build, receipts: Sequence[Receipt], counts: Counts) -> dict[str, Any]:
    plan = build.plan
    engines = sorted({receipt.engine for receipt in receipts if receipt.engine})
    return {
        "build": build.id,
        "planned_at": plan.planned_at,
        "manifest": plan.manifest.model_dump(mode="json"),
        "model": plan.model,
        "settings": plan.settings.model_dump(mode="json"),
        "gates": build.gates.model_dump(mode="json"),
        "counts": counts.model_dump(mode="json"),
        "account": _account(build, receipts, counts),
        "fields": plan.fields,
        "files": [file.model_dump(mode="json") for one in receipts for file in one.files],
        "plan": {shard_path(n): shard.sha256 for n, shard in enumerate(plan.shards)},
        "versions": {
            "earwitness": earwitness.__version__,
            "engine": ", ".join(engines),
            "python": platform.python_version(),
        },
    }


def _account(build: Build, receipts: Sequence[Receipt], counts: Counts) -> dict[str, Any]:
    spent = sum((receipt.account for receipt in receipts), Account())
    price = build.gates.price_per_hour
    mine = Basis(build=build.id, model=build.plan.model, account=spent, price_per_hour=price)
    basis = choose_basis(mine, known_basis(build.output.root))
    return account_facts(mine, basis, reused=counts.reused)


def known_basis(output: str) -> Basis | None:
    """What the newest published build knows of an answer's cost; None where it knows nothing."""
    name = latest_build(output)
    try:
        return basis_of(Build(output, name).facts()) if name else None
    except BuildNotFoundError:
        return None  # removed


def _finish(build: Build) -> None:
    # the pointer last: a build killed before it was moved is found, and continued
    build.store.delete_folder("work")
    _point_at(build)


def _point_at(build: Build) -> None:
    """Move the output's page and `latest.json` to the newest published build.

    That is this one, or one planned later.

    No storage is asked for a compare-and-swap; instead the pointer is looked after once more when
    it is written; the page goes along with it. Of two builds that publish at the same moment the
    last to write sees both.
    """
    written = None
    while (newest := _newest_published(build)) != written:
        planned_at, name = newest
        write_output_card(build.output, name)
        pointer = {"build": name, "planned_at": planned_at}
        build.output.write_bytes(LATEST, json_document(pointer))
        written = newest


def write_output_card(output: Store, name: str) -> None:
    """Write the output's own page, so that loaders and viewers open the newest build there.

    Before the pointer moves: a kill in between leaves a build that the next run continues.

    Args:
        output: Where datasets are published.
        name: The newest published build.
    """
    try:
        card = output_card(Build(output.root, name).store.read_bytes(CARD).decode(), name)
    except (FileNotFoundError, ValueError):
        return  # of an earlier version, or changed by hand
    try:
        there = output.read_bytes(CARD).decode(errors="replace")
    except FileNotFoundError:
        there = CARD_MARK
    except OSError as error:  # a folder, or a file of somebody else
        there = str(error)
    if CARD_MARK not in there:
        _log.warning(
            "%s was not written by earwitness and is not changed. To open the newest build with "
            "datasets.load_dataset, set its data_files to builds/%s/data/*.parquet",
            output.uri(CARD),
            name,
        )
    elif there != card:
        output.write_bytes(CARD, card.encode())


def _newest_published(build: Build) -> tuple[str, str]:
    """Planning time and id of the newest published build beside this one, or its own."""
    output = build.output.root

    def look(name: str) -> tuple[str, str] | None:
        try:
            return Build(output, name).facts()["planned_at"], name
        except BuildNotFoundError:
            return None  # not published, or removed

    # a listing may lag behind: the pointer may name a build that it does not show yet
    names = {*build.output.folders("builds"), latest_build(output)} - {build.id, ""}
    with ThreadPoolExecutor(_READERS) as pool:
        others = [found for found in pool.map(look, names) if found]
    return max([(build.plan.planned_at, build.id), *others])
