"""How tasks are retried: passing faults only, with growing pauses that do not fall in step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.tasks import exponential_backoff

from earwitness.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun


async def _may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, TransientError)


RETRIES: int = 3
RETRY_DELAY_SECONDS: Callable[[int], list[float]] = exponential_backoff(backoff_factor=2)
RETRY_JITTER_FACTOR: float = 0.5

retrying: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_DELAY_SECONDS,
    "retry_jitter_factor": RETRY_JITTER_FACTOR,
    "retry_condition_fn": _may_pass,
    # also where Prefect is told to keep results by default, which it does as pickle
    "persist_result": False,
    "result_serializer": "json",
}
"""Keyword arguments of every task that touches storage or the engine."""
