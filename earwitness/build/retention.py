"""Which builds stay and which go."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from earwitness.addresses import local_path
from earwitness.build.layout import Build
from earwitness.build.lease import lease_holder
from earwitness.errors import BuildNotFoundError, BuildVersionError
from earwitness.storage import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        trouble: Why what it uses cannot be told; empty: it can.
        held: True while somebody works on it.
        why: Why it goes; empty: it stays.
    """

    build: Build
    entries: dict[str, Entry]
    planned_at: str = ""
    trouble: str = ""
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
            try:
                seen.planned_at = build.plan.planned_at
            except (BuildVersionError, ValueError):
                seen.trouble = f"the plan of {name} has an unknown version"
            except BuildNotFoundError:
                seen.trouble = f"{name} was removed at the same time"
        elif seen.published and REMOVAL_MARK not in seen.entries:
            seen.trouble = f"the plan of {name} is missing"
        elif seen.entries and (seen.held or REMOVAL_MARK not in seen.entries):
            seen.trouble = f"{name} is being planned"
        return seen

    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(look, names))
    return sorted(found, key=lambda one: one.planned_at, reverse=True)


def choose_old(seen: list[SeenBuild], pointed: str, keep: int, unpublished_after_s: float) -> None:
    """Say of each build that goes why it does.

    Args:
        seen: All builds of an output, the one planned last first.
        pointed: The build `latest.json` names.
        keep: How many published builds stay.
        unpublished_after_s: How long nothing may have changed in an unpublished build that goes.
    """
    published = [one for one in seen if one.published and one.planned_at]
    newest_at = published[0].planned_at if published else ""
    staying = {pointed, *(one.build.id for one in published[:keep])}
    for one in seen:
        if one.held or one.build.id in staying:
            continue
        if not one.planned and REMOVAL_MARK in one.entries:
            one.why = "partly removed by an earlier gc"
        elif one.published or one.planned:
            one.why = _overtaken(one, newest_at, keep, unpublished_after_s)
        elif not one.entries and one.quiet_s() >= _EMPTY_S:
            one.why = "an empty folder"
        elif one.entries and one.quiet_s() >= unpublished_after_s:
            one.why = "its planning did not finish"


def _overtaken(one: SeenBuild, newest_at: str, keep: int, unpublished_after_s: float) -> str:
    if one.trouble:
        return ""
    if one.published:
        return f"published, not among the newest {keep}"
    if one.planned_at < newest_at and one.quiet_s() >= unpublished_after_s:
        return "unfinished, and a newer one is published"
    return ""
