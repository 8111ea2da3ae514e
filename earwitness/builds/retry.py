"""Ask again: what failed, or rejections of given reasons that stood until now."""

from __future__ import annotations

from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING

from earwitness.builds.choose import build_ids, existing_build, new_id
from earwitness.builds.layout import Build
from earwitness.builds.plan import copy_plan
from earwitness.builds.show import PLANNED_OUT, build_status
from earwitness.errors import BuildNotFoundError, SettingsError
from earwitness.records import Reason
from earwitness.storage import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

ASKABLE = tuple(Reason)[tuple(Reason).index(Reason.CLIP_MISSING) :]
"""Reasons that may be asked again. The others are found at planning: the frozen plan holds them,
and only a corrected manifest removes them."""


def unpublished_build(output: str) -> Build:
    """The newest unpublished build of an output.

    Raises:
        BuildNotFoundError: All its builds are published, or there is none.
    """
    for name in build_ids(output):
        build = Build(output, name)
        if build.store.exists("plan.json") and not build.published:
            return build
    raise BuildNotFoundError(
        f"there is no unfinished build at {Store(output).root}: "
        "add a reason (--reason) to ask rejected rows of a published build again"
    )


def source_to_retry(output: str, build: str | None, *, with_reason: bool) -> Build:
    """The build that a retry starts from.

    Args:
        output: Folder or URL it is published under.
        build: Its id. Default: the newest; without a reason, the newest that is not published.
        with_reason: Rejections are asked again.

    Raises:
        BuildNotFoundError: There is none.
        SettingsError: The id given is no id.
    """
    if build is not None or with_reason:
        return existing_build(output, build)
    return unpublished_build(output)


def build_to_retry(source: Build, reasons: Iterable[str], build: str | None = None) -> Build:
    """Make rejections with these reasons asked again, in a new build over the same plan.

    A new build, also where the source is unpublished: its outcomes are newer than the source's, so
    that they count from now on. It reuses what the source has, its unfinished shards' answers, too.

    Args:
        source: A planned build.
        reasons: Reasons to ask again.
        build: The new build's id. Default: made of the source's name and the time.

    Returns:
        The new build, planned and not yet run.

    Raises:
        SettingsError: No rejection of the build has one of these reasons, or only lines of the
            manifest have.
    """
    again = _checked(source, reasons)
    target = Build(source.output.root, build or new_id(source.plan.settings.layout.name))
    gates = source.gates.model_copy(update={"retry_reasons": again})
    copy_plan(source, target, datetime.now(tz=UTC), gates)
    return target


def _checked(source: Build, reasons: Iterable[str]) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(reasons))
    known = {str(reason) for reason in Reason}
    for reason in wanted:
        if reason not in known:
            close = get_close_matches(reason, known, n=1)
            hint = (
                f"did you mean {close[0]}?"
                if close
                else f"it has to be one of {', '.join(sorted(known))}"
            )
            raise SettingsError(f"there is no reason {reason!r}: {hint}")
        if reason not in ASKABLE:
            raise SettingsError(
                f"{reason} is a fault in the manifest, and a retry cannot change it: correct these "
                "lines and run the build again; only their rows are asked"
            )
    there = build_status(source).counts.reasons
    if not any(reason in there for reason in wanted):
        others = [f"{reason} {n:,}" for reason, n in there.items() if reason != PLANNED_OUT]
        raise SettingsError(
            f"{source.id} has no row rejected for {' or '.join(wanted)} "
            f"(it has: {', '.join(others) or 'none'})"
        )
    return wanted
