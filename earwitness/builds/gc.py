"""Gc: remove builds that are old.

Of each name the newest published builds stay, and the one `latest.json` names, whatever somebody
holds, and what an unfinished build that stays reuses. An unpublished build goes once a build
planned later is published and nothing in its folder changed for a day; so does a folder without a
plan, left by a planning that was killed. What a build answered goes with it: the builds that stay
hold all that they used.

A build is removed marker first: `gc.json` says that it is being removed; then `plan.json` goes, so
that nobody continues it (it still loads: all its data is there), then `build.json`, so that nobody
loads it, then the rest. A folder with `gc.json` and without a plan is finished by the next gc.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from earwitness.addresses import local_path
from earwitness.builds.choose import build_ids
from earwitness.builds.layout import Build
from earwitness.builds.lease import lease_holder
from earwitness.builds.publish import latest_build, write_output_card
from earwitness.errors import BuildNotFoundError, BuildVersionError, SettingsError
from earwitness.storage import Entry, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


REMOVAL_MARK = "gc.json"
"""Lies in the folder of a build that is being removed."""

_READERS = 16
_EMPTY_S = 60.0
"""A local folder that is empty for longer than this is about to be nobody's."""


@dataclass(slots=True)
class SeenBuild:
    """A build as one listing of its folder tells it.

    Attributes:
        build: The build.
        entries: What is in its folder.
        planned_at: When it was planned; empty: no plan of it can be read.
        name: The first part of its id; builds of a name follow one another.
        sources: Ids of the builds that it reuses.
        held: True while somebody works on it.
        why: Why it goes; empty: it stays.
    """

    build: Build
    entries: dict[str, Entry]
    planned_at: str = ""
    name: str = ""
    sources: tuple[str, ...] = ()
    held: bool = False
    why: str = field(default="", init=False)

    @property
    def planned(self) -> bool:
        """True when its plan is there."""
        return "plan.json" in self.entries

    @property
    def published(self) -> bool:
        """True when it is published."""
        return "build.json" in self.entries

    @property
    def unknown(self) -> bool:
        """True when something is there, and nothing that says what it is."""
        return bool(self.entries) and not self.planned and not self.published

    @property
    def bytes(self) -> int:
        """What its files take."""
        return sum(entry.size_bytes for entry in self.entries.values())

    def quiet_s(self) -> float:
        """For how long nothing in its folder has changed."""
        times = [entry.modified_s for entry in self.entries.values()]
        if not times and self.build.store.local:
            try:
                times = [local_path(self.build.uri).stat().st_mtime]
            except FileNotFoundError:
                times = []
        return time.time() - max(times, default=math.inf)


def look_at(output: str, names: Iterable[str]) -> list[SeenBuild]:
    """Builds as they are now, the one planned last first.

    Args:
        output: Folder or URL datasets are published under.
        names: Their ids.
    """

    def look(name: str) -> SeenBuild:
        build = Build(output, name)
        entries = build.store.entries()
        for marker in ("plan.json", "build.json"):
            # a listing may lag behind; what it does not show yet is new, and nothing goes for it
            if marker not in entries and build.store.exists(marker):
                entries[marker] = Entry(0, math.inf)
        seen = SeenBuild(build, entries, held=lease_holder(build) is not None)
        if seen.planned:
            # a plan that cannot be read, or is another version's, is left alone
            with suppress(BuildNotFoundError, BuildVersionError, ValueError):
                plan = build.plan
                seen.planned_at, seen.sources = plan.planned_at, plan.sources
                seen.name = plan.settings.layout.name or ""
        return seen

    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(look, names))
    return sorted(found, key=lambda one: one.planned_at, reverse=True)


def choose_old(seen: list[SeenBuild], pointed: str, keep: int, unpublished_after_s: float) -> None:
    """Say of each build that goes why it does.

    Args:
        seen: All builds of an output, the one planned last first.
        pointed: The build `latest.json` names.
        keep: How many published builds of each name stay.
        unpublished_after_s: How long nothing may have changed in an unpublished build that goes.
    """
    by_name: dict[str, list[SeenBuild]] = defaultdict(list)
    for one in seen:
        if one.published and one.planned_at:
            by_name[one.name].append(one)
    newest_at = max((one.planned_at for one in seen if one.published), default="")
    staying = {pointed, *(one.build.id for named in by_name.values() for one in named[:keep])}
    for one in seen:
        if one.held or one.build.id in staying:
            continue
        if not one.planned and REMOVAL_MARK in one.entries:
            one.why = "partly removed by an earlier gc"
        elif one.planned_at:
            one.why = _overtaken(one, newest_at, keep, unpublished_after_s)
        elif not one.entries and one.quiet_s() >= _EMPTY_S:
            one.why = "an empty folder"
        elif one.unknown and one.quiet_s() >= unpublished_after_s:
            one.why = "its planning did not finish"
    _keep_sources(seen)


def _keep_sources(seen: list[SeenBuild]) -> None:
    """Keep what unfinished builds that stay reuse."""
    unfinished = [one for one in seen if one.planned_at and not one.published and not one.why]
    reused = {name for one in unfinished for name in one.sources}
    for one in seen:
        if one.build.id in reused and one.planned:
            one.why = ""


def _overtaken(one: SeenBuild, newest_at: str, keep: int, unpublished_after_s: float) -> str:
    if one.published:
        return f"published, not among the newest {keep}"
    if one.planned_at < newest_at and one.quiet_s() >= unpublished_after_s:
        return "unfinished, and a newer one is published"
    return ""


@dataclass(frozen=True, slots=True)
class OldBuild:
    """A build that goes.

    Attributes:
        id: Its id.
        why: Why, for a person.
        bytes: What its files take.
    """

    id: str
    why: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a gc removes.

    Attributes:
        output: Folder or URL it is in.
        builds: Builds that go, oldest first.
        builds_of: How many there are now.
    """

    output: str
    builds: tuple[OldBuild, ...]
    builds_of: int

    @property
    def bytes(self) -> int:
        """What is freed."""
        return sum(build.bytes for build in self.builds)


def find_garbage(output: str, *, keep: int = 3, unpublished_after_s: float = 86_400) -> Garbage:
    """Find builds that nobody needs any more; nothing is changed.

    Args:
        output: Folder or URL datasets are published under.
        keep: How many published builds of each name stay.
        unpublished_after_s: How long nothing may have changed in an unpublished build that goes.

    Raises:
        BuildNotFoundError: There is no build at all.
        SettingsError: `keep` is not at least 1.
    """
    if keep < 1:
        raise SettingsError(f"keep must be at least 1, not {keep}: the newest build always stays")
    store = Store(output)
    seen = look_at(output, build_ids(output))
    if not seen:
        raise BuildNotFoundError(f"there is no build at {store.root}")
    choose_old(seen, latest_build(output), keep, unpublished_after_s)
    go = [OldBuild(one.build.id, one.why, one.bytes) for one in reversed(seen) if one.why]
    return Garbage(store.root, tuple(go), len(seen))


def remove_garbage(garbage: Garbage, told: Callable[[str], None] = lambda _: None) -> bool:
    """Remove what was found.

    Args:
        garbage: What `find_garbage` found, a moment ago.
        told: Called with what is being removed.

    Returns:
        False when a build came back into use meanwhile, which stays.
    """
    whole = True
    if garbage.builds and (latest := latest_build(garbage.output)):
        # a page that an earlier version left behind may lead into a build that goes
        write_output_card(Store(garbage.output), latest)
    for number, old in enumerate(garbage.builds, start=1):
        build = Build(garbage.output, old.id)
        if lease_holder(build) is not None or latest_build(garbage.output) == old.id:
            whole = False
            continue
        told(f"removing builds: {number} of {len(garbage.builds)}")
        _remove_build(build)
    return whole


def _remove_build(build: Build) -> None:
    build.store.write_bytes(REMOVAL_MARK, json.dumps({"removed": build.id}).encode())
    build.store.delete(["plan.json"])
    build.store.delete(["build.json"])
    build.store.delete_many([path for path in build.store.entries() if path != REMOVAL_MARK])
    build.store.delete_folder("")
