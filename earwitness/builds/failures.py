"""When so much of a shard fails that the shard fails, instead of its records being rejected."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from earwitness.audio.source import shown
from earwitness.errors import ShardFailedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

FAILED_SHARE = 0.01
FAILED_AT_LEAST = 10
"""A shard fails when more than this share of its clips, and at least this many, fail for transient
reasons: then the storage is at fault, and not each of these clips."""


def too_many_failed(failed: int, clips: int) -> bool:
    """Whether so many transient failures mean that the shard fails, not its records.

    Args:
        failed: Distinct clips that failed.
        clips: Distinct clips of the shard whose bytes had to be fetched.
    """
    return failed > max(FAILED_AT_LEAST - 1, clips * FAILED_SHARE)


def check_storage(failed: Mapping[str, str], clips: int) -> None:
    """Fail a shard whose storage is down instead of rejecting its records.

    Args:
        failed: Why clips could not be fetched for transient reasons, by URI.
        clips: Distinct clips of the shard whose bytes have to be fetched.

    Raises:
        ShardFailedError: Too many clips failed to come.
    """
    if too_many_failed(len(failed), clips):
        uri, why = next(iter(failed.items()))
        example = why if why.startswith(shown(uri)) else f"{shown(uri)}: {why}"
        raise ShardFailedError(
            f"at least {len(failed):,} of {clips:,} clips could not be fetched, for example "
            f"{example}; none of them is rejected: when their storage works, run the build again "
            "or retry it"
        )


def most_missing(clips: int, max_rejected: float, *, whole: bool) -> int:
    """How many of a shard's clips may be missing before a folder counts as gone.

    Half of them, or nine; in a build of one small shard, all but one. More where the build's gate
    allows more: then so many are said to be gone for good.

    Args:
        clips: Distinct clips of the shard.
        max_rejected: The build's gate.
        whole: The shard is the whole build.
    """
    most = max(FAILED_AT_LEAST - 1, clips // 2)
    if whole:
        most = min(most, clips - 1)
    return max(most, math.floor(max_rejected * clips + 1e-9))


def check_missing(missing: Collection[str], clips: int, most: int) -> None:
    """Fail a shard most of whose clips are missing instead of rejecting its records.

    Args:
        missing: The clips that are not there and were not known to be missing.
        clips: Distinct clips of the shard.
        most: See `most_missing`.

    Raises:
        ShardFailedError: A folder seems to be gone.
    """
    if len(missing) <= most:
        return
    names = [shown(uri) for uri in missing]
    common = os.path.commonprefix(names)  # noqa: RUF071 - URIs, cut at their last slash
    folder = common.rpartition("/")[0] or names[0].rpartition("/")[0]
    raise ShardFailedError(
        f"{len(missing):,} of {clips:,} clips are missing under {folder}, for example {names[0]}; "
        "none of them is rejected: check that the folder exists and is mounted, and that "
        "--audio-root is right, then run the build again or retry it; if the clips are permanently "
        "gone, allow more rejected rows with --max-rejected"
    )
