"""Gc: remove builds that are old and what of the cache nobody uses any more.

**Builds.** The newest published ones stay, and the one `latest.json` names, and whatever somebody
holds. An unpublished build goes once a build planned later is published and nothing in its folder
changed for a day; so does a folder without a plan, left by a planning that was killed.

A build is removed marker first: `gc.json` says that it is being removed; then `plan.json` goes, so
that nobody continues it (it still loads: all its data is there), then `build.json`, so that nobody
loads it, then the rest. A folder with `gc.json` and without a plan is finished by the next gc.

**Cache.** A segment goes when the build it came from is gone and no build that stays uses it: an
answered row names its outcome's key, a rejected row's or an unfinished one's is told from the plan
and the clip table as the next build would tell it, and every planned row names its clips. Rejected
rows whose key cannot be told (their clips come from storage without stamps) keep every segment with
a rejection. What counts as used by a key is `Liveness`'s. The cache is left alone while a build is
being planned, since nobody knows yet what it will ask, or where a plan cannot be read. What a build
that begins during a gc would have reused beyond the builds that stay may be asked again.

Segments go from the index first, then themselves. A look-up that comes in between finds them, or
takes a missing one for a miss. A gc that is killed is finished by the next.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from earwitness.build.choose import build_ids
from earwitness.build.layout import Build
from earwitness.build.lease import lease_holder
from earwitness.build.publish import latest_build, write_output_card
from earwitness.build.retention import REMOVAL_MARK, choose_old, look_at
from earwitness.build.used import Sightings, used_by
from earwitness.cache import SegmentCache, clip_cache, outcome_cache
from earwitness.cache.liveness import Liveness
from earwitness.errors import BuildNotFoundError, SettingsError
from earwitness.storage import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from earwitness.build.retention import SeenBuild

_SEGMENT = re.compile(
    r"\d{4}-\d\d-\d\dT\d{6}(?:\.\d+)?(?:[+-]\d{4})?-(?P<build>.+)\.shard-\d+-[0-9a-f]{8}"
)


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
class OldSegments:
    """Segments of a table that go.

    Attributes:
        names: Which.
        of: How many there are now.
        bytes: What they take.
    """

    names: tuple[str, ...] = ()
    of: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a gc removes.

    Attributes:
        output: Folder or URL it is in.
        builds: Builds that go, oldest first.
        builds_of: How many there are now.
        outcomes: Segments of the outcome table that go.
        clips: Segments of the clip table that go.
        note: Why the cache is left alone; empty: it is not.
    """

    output: str
    builds: tuple[OldBuild, ...]
    builds_of: int
    outcomes: OldSegments = OldSegments()
    clips: OldSegments = OldSegments()
    note: str = ""

    @property
    def bytes(self) -> int:
        """What is freed."""
        return sum(build.bytes for build in self.builds) + self.outcomes.bytes + self.clips.bytes


@dataclass(frozen=True, slots=True)
class Listener:
    """Told how far the reading is."""

    total: Callable[[int], None] = lambda _: None
    advance: Callable[[int], None] = lambda _: None


def find_garbage(
    output: str,
    *,
    keep: int = 3,
    unpublished_after_s: float = 86_400,
    listener: Listener | None = None,
) -> Garbage:
    """Find what nobody needs any more; nothing is changed.

    Args:
        output: Folder or URL datasets are published under.
        keep: How many published builds stay.
        unpublished_after_s: How long nothing may have changed in an unpublished build that goes.
        listener: Told how many rows there are to read, and of those read.

    Raises:
        BuildNotFoundError: There is no build at all.
        BuildDamagedError: A file of a build that stays is missing or changed.
        SettingsError: `keep` is not at least 1.
    """
    if keep < 1:
        raise SettingsError(f"keep must be at least 1, not {keep}: the newest build always stays")
    store = Store(output)
    # segments are listed before builds: a build that begins later loses none of its own
    tables = [outcome_cache(store.sub("cache")), clip_cache(store.sub("cache"))]
    live = [Liveness(table) for table in tables]
    seen = look_at(output, build_ids(output))
    if not seen:
        raise BuildNotFoundError(f"there is no build at {store.root}")
    choose_old(seen, latest_build(output), keep, unpublished_after_s)
    stay = [one for one in seen if not one.why]
    go = [one for one in seen if one.why]
    garbage = Garbage(
        store.root,
        tuple(OldBuild(one.build.id, one.why, one.bytes) for one in reversed(go)),
        len(seen),
    )
    marker = _Marker(tables, live, listener or Listener())
    while stay and not marker.trouble:
        marker.mark(stay)
        # those that began while the others were read
        known = {one.build.id for one in seen}
        stay = look_at(output, [name for name in build_ids(output) if name not in known])
        seen += stay
    if not any(one.published for one in seen if not one.why):
        marker.trouble = "nothing is published"
    if marker.trouble:
        return replace(garbage, note=marker.trouble)
    outcomes, clips = marker.unneeded({one.build.id for one in seen if one.entries and not one.why})
    return replace(garbage, outcomes=outcomes, clips=clips)


def remove_garbage(garbage: Garbage, told: Callable[[str], None] = lambda _: None) -> bool:
    """Remove what was found.

    Args:
        garbage: What `find_garbage` found, a moment ago.
        told: Called with what is being removed.

    Returns:
        False when a build came back into use meanwhile: it stays, and so does the cache.
    """
    spared = False
    if garbage.builds and (latest := latest_build(garbage.output)):
        # a page that an earlier version left behind may lead into a build that goes
        write_output_card(Store(garbage.output), latest)
    for number, old in enumerate(garbage.builds, start=1):
        build = Build(garbage.output, old.id)
        if lease_holder(build) is not None or latest_build(garbage.output) == old.id:
            spared = True
            continue
        told(f"removing builds: {number} of {len(garbage.builds)}")
        _remove_build(build)
    if spared:
        return False
    cache = Store(garbage.output).sub("cache")
    for table, old_segments in (
        (outcome_cache(cache), garbage.outcomes),
        (clip_cache(cache), garbage.clips),
    ):
        if old_segments.names:
            told(f"removing segments: {len(old_segments.names):,}")
            table.drop(old_segments.names)
        table.sweep()
    return True


def _remove_build(build: Build) -> None:
    build.store.write_bytes(REMOVAL_MARK, json.dumps({"removed": build.id}).encode())
    build.store.delete(["plan.json"])
    build.store.delete(["build.json"])
    build.store.delete_many([path for path in build.store.entries() if path != REMOVAL_MARK])
    build.store.delete_folder("")


class _Marker:
    """Marks what builds that stay use, and tells what is left over."""

    def __init__(
        self, tables: list[SegmentCache], live: list[Liveness], listener: Listener
    ) -> None:
        self._outcomes, self._clips = tables
        self._live = live
        self._listener = listener
        self._unsure = False
        self._rows = 0
        self.trouble = ""

    def mark(self, builds: list[SeenBuild]) -> None:
        self.trouble = next((one.trouble for one in builds if one.trouble), "")
        if self.trouble:
            return
        outcomes, clips = self._live
        planned = [one.build for one in builds if one.planned]
        self._rows += sum(build.plan.rows for build in planned)
        self._listener.total(self._rows)
        for used in used_by(planned, Sightings(self._clips)):
            outcomes.mark(used.outcomes)
            clips.mark(used.clips)
            self._unsure = self._unsure or used.unsure
            self._listener.advance(used.rows)

    def unneeded(self, there: set[str]) -> tuple[OldSegments, OldSegments]:
        outcomes, clips = (
            live.unneeded([name for name in live.sizes if _ownerless(name, there)])
            for live in self._live
        )
        if self._unsure:
            outcomes = [name for name in outcomes if not self._refuses(name)]
        return self._told(self._live[0], outcomes), self._told(self._live[1], clips)

    def _refuses(self, name: str) -> bool:
        """True when a segment holds a rejection."""
        with self._outcomes.reading(name) as file:
            reasons = file.read(["reason"])["reason"]
        return bool(reasons.null_count < len(reasons))

    @staticmethod
    def _told(live: Liveness, names: list[str]) -> OldSegments:
        return OldSegments(tuple(names), len(live.sizes), sum(live.sizes[name] for name in names))


def _ownerless(segment: str, there: set[str]) -> bool:
    """True when the build that a segment came from is gone."""
    found = _SEGMENT.fullmatch(segment)
    return found is not None and found["build"] not in there
