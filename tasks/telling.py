"""States that say what happened, for the people who watch runs."""

from __future__ import annotations

from typing import TypeVar, cast

from prefect.states import Completed

T = TypeVar("T")


def told(result: T, message: str, name: str | None = None) -> T:
    """Complete a task with a message.

    Args:
        result: What the task gives.
        message: What the run's state says.
        name: Another name for the state, such as `Cached`.

    Returns:
        A completed state; Prefect hands its caller the result in it.
    """
    return cast("T", Completed(name=name, message=message, data=result))
