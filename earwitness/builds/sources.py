"""Which builds a build reuses, and where their outcomes and clips are looked up.

The base is the newest published build of the same name; a retry's base is the build it retries.
The sources are, of each name, the newest published build and the unpublished ones planned after it,
since an older build knows little that a newer one has not carried over; and the newest published
build that asked the same model with the same sampling, since another model's build carries none of
its answers over.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from earwitness.builds.batch import Segment, stands
from earwitness.builds.layout import Build
from earwitness.cache import Lookup, StoredTable
from earwitness.cache.tables import clip_table, outcome_table
from earwitness.errors import BuildNotFoundError, BuildVersionError
from earwitness.storage import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from earwitness.builds.layout import Plan
    from earwitness.cache.lookup import Source
    from earwitness.records import Outcome

_READERS = 16


@dataclass(frozen=True, slots=True)
class Sources:
    """The builds that a new build reuses.

    Attributes:
        base: The build whose same shard is read first; empty: there is none.
        all: All of them, newest first.
    """

    base: str
    all: tuple[str, ...]


def choose_sources(output: str, name: str, question: str, base: str = "") -> Sources:
    """Choose what a build that is planned now reuses.

    Args:
        output: Folder or URL datasets are published under.
        name: The build's name (`layout.name`).
        question: The build's question digest.
        base: The build that a retry starts from.
    """

    def look(build_id: str) -> tuple[Plan, bool] | None:
        build = Build(output, build_id)
        try:
            return build.plan, build.published
        except (BuildNotFoundError, BuildVersionError, ValueError):
            return None  # not planned to its end, removed, another version's or damaged

    with ThreadPoolExecutor(_READERS) as pool:
        found = [one for one in pool.map(look, Store(output).folders("builds")) if one is not None]
    chosen: list[str] = []
    newest: dict[str, str] = {}
    same_question: set[str] = set()
    for plan, published in sorted(found, key=lambda one: one[0].planned_at, reverse=True):
        its_name = plan.settings.layout.name or ""
        same = plan.question_digest == question and its_name not in same_question
        if its_name in newest and plan.build != base and not (same and published):
            continue
        chosen.append(plan.build)
        if published:
            newest.setdefault(its_name, plan.build)
            if same:
                same_question.add(its_name)
    return Sources(base or newest.get(name, ""), tuple(chosen))


def outcomes_of(build: Build) -> Lookup:
    """The outcomes that a planned build may reuse, by cache key."""
    return _lookup(build.output.root, build.id, "outcomes")


def clips_of(build: Build) -> Lookup:
    """What the builds that a planned build reuses know of clips, by `uri_key`."""
    return _lookup(build.output.root, build.id, "clips")


def outcomes_now(build: Build) -> Lookup:
    """The outcomes that a build like a planned one would reuse if it were planned now."""
    output, plan = build.output.root, build.plan
    sources = choose_sources(output, plan.settings.layout.name or "", plan.question_digest)
    return _look_into(output, sources, "outcomes")


@lru_cache(maxsize=8)
def _lookup(output: str, build_id: str, table: str) -> Lookup:
    """The same for all tasks of a process: what was read stays as it is."""
    plan = Build(output, build_id).plan
    return _look_into(output, Sources(plan.base, plan.sources), table)


def _look_into(output: str, sources: Sources, table: str) -> Lookup:
    builds = [Build(output, build_id) for build_id in sources.all]
    stored = {build.id: StoredTable(build.store, table) for build in builds}
    found: list[Source] = []
    for build in builds:
        found += [stored[build.id], _UnfinishedShards(build, table)]
    return Lookup(stored.get(sources.base), found)


class _UnfinishedShards:
    """What the checkpoints of an unpublished build's unfinished shards hold of a table.

    Args:
        build: The build; a published one has no checkpoints.
        table: `outcomes` or `clips`.
    """

    def __init__(self, build: Build, table: str) -> None:
        self._build = build
        self._outcomes = table == "outcomes"
        self._lock = threading.Lock()
        self._rows: dict[bytes, dict[str, Any]] | None = None

    def find(self, keys: Sequence[bytes]) -> Iterator[dict[str, Any]]:
        """Rows that the checkpoints hold under some of these keys."""
        with self._lock:
            if self._rows is None:
                self._rows = {row["key"]: row for row in self._read()}
        return (row for key in keys if (row := self._rows.get(key)) is not None)

    def _read(self) -> Iterator[dict[str, Any]]:
        for path in self._build.store.sizes("work"):
            if not path.rpartition("/")[2].startswith("batch-"):
                continue
            try:
                segment = Segment(self._build, path)
                if self._outcomes:
                    yield from outcome_table(_to_reuse(segment)).to_pylist()
                else:
                    yield from clip_table(segment.clip_records()).to_pylist()
            except FileNotFoundError:
                continue  # published, or removed, just now


def _to_reuse(segment: Segment) -> Iterator[Outcome]:
    """The outcomes of a checkpoint that another build may use, and strikes."""
    for one in segment.decided():
        outcome = one.outcome
        struck = outcome.rejection is not None and outcome.rejection.strikes
        if outcome.cache_key and not one.reused and (stands(outcome) or struck):
            yield outcome
