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
from dataclasses import dataclass
from typing import TYPE_CHECKING

from earwitness.build.choose import build_ids
from earwitness.build.layout import Build
from earwitness.build.lease import lease_holder
from earwitness.build.publish import latest_build, write_output_card
from earwitness.build.retention import REMOVAL_MARK, choose_old, look_at
from earwitness.errors import BuildNotFoundError, SettingsError
from earwitness.storage import Store

if TYPE_CHECKING:
    from collections.abc import Callable


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
