"""Errors that nobody foresaw while one record or one clip was worked on: they end it alone."""

from __future__ import annotations

import logging
import traceback
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from earwitness.errors import BadRecordError, EarwitnessError, disk_error
from earwitness.records import Reason, Rejection

if TYPE_CHECKING:
    from earwitness.records import Stage

_log = logging.getLogger(__name__)


def rejection_of(error: Exception, stage: Stage, what: str) -> Rejection:
    """The rejection that an error means for the record or clip it was raised for.

    Every place that works on one record or one clip ends its errors here: an error that is not
    known becomes an `internal_error`, which the next run tries again, and its trace is logged.

    Args:
        error: What was raised.
        stage: Where.
        what: The record or clip, for the log.

    Returns:
        A `BadRecordError`'s own rejection, or an `internal_error`.

    Raises:
        Exception: The error itself, where it is not about this record or clip alone: our own
            transient and fatal errors, cancellation, memory that ran out.
        DiskError: The disk is full.
    """
    if isinstance(error, BadRecordError):
        return error.rejection
    if isinstance(error, EarwitnessError | MemoryError | CancelledError):
        raise error
    if isinstance(error, OSError) and (full := disk_error(error, error.filename or what)):
        raise full from error
    kind = type(error).__name__
    _log.error("unexpected %s at %s of %s%s", kind, stage, what, _place(error), exc_info=error)
    # nothing of its text: it may hold what differs from attempt to attempt
    detail = (
        f"an unexpected error ({kind}): the log has its traceback, and the next run tries again"
    )
    return Rejection(stage, Reason.INTERNAL_ERROR, detail)


def _place(error: Exception) -> str:
    """Where an error was raised, and its text in short, for logs that leave traces out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{where}: {text[:200]}" if text else where
