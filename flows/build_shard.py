"""One shard: resolve it, answer what is left batch by batch, persist it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from earwitness.build.layout import Build
from earwitness.runtime import running
from tasks.decode import decode
from tasks.fetch import fetch
from tasks.generate import generate
from tasks.persist import persist
from tasks.resolve import resolve
from tasks.validate import validate

if TYPE_CHECKING:
    from earwitness.build.batch import BatchRef
    from earwitness.build.layout import Receipt
    from earwitness.build.resolve import Resolved

_TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=256)
"""A thread a task in flight: four stages of each batch in the widest window allowed."""


@flow(
    name="build-shard",
    flow_run_name="shard-{shard:05d}",
    task_runner=_TASK_RUNNER,
    persist_result=False,
)
def build_shard(build: str, shard: int) -> Receipt:
    """Answer one shard of a planned build and write its files.

    Args:
        build: Address of the build (`OUTPUT/builds/<id>`).
        shard: Number of the shard, from 0.

    Returns:
        The shard's receipt.
    """
    settings = Build.at(build).plan.settings
    with running(settings, settings.model) as runtime:
        try:
            resolved = resolve.submit(build, shard).result()
            answer_batches(resolved, settings.layout.window_batches)
            return persist.submit(build, shard).result()
        finally:
            runtime.forget_shard(build, shard)


def answer_batches(resolved: Resolved, window_batches: int) -> None:
    """Send batches through the stages, a bounded number at once.

    While the engine answers batch n, the batches after it are fetched and decoded. When one
    fails, those in flight still finish and keep their answers; then its error is raised.

    Args:
        resolved: Batches to do, and those an earlier attempt finished.
        window_batches: Batches in flight at once.
    """
    in_flight: deque[list[Any]] = deque()
    failures: list[Exception] = []

    def finish_oldest() -> None:
        stages = in_flight.popleft()
        stages[-1].wait()
        # the stages after the one that failed never ran: only its own error says why
        failed = next((stage for stage in stages if not stage.state.is_completed()), None)
        if failed is not None:
            failures.append(failed.state.result(raise_on_failure=False))

    for batch in resolved.finished:
        in_flight.append([generate.submit(batch)])
    for batch in resolved.batches:
        while len(in_flight) >= window_batches:
            finish_oldest()
        if failures:
            break
        in_flight.append(_submit(batch, resolved.rows))
    while in_flight:
        finish_oldest()
    if failures:
        raise failures[0]


def _submit(batch: BatchRef, rows_in_shard: int) -> list[Any]:
    """Submit a batch's four stages; their futures in order."""
    # each takes the one before it as its argument: Prefect waits for it and draws the arrow
    fetched: Any = fetch.submit(batch, rows_in_shard)
    validated: Any = validate.submit(fetched)
    decoded: Any = decode.submit(validated)
    # its segment does not exist: an older result of Prefect's must not stand in for it
    asked: Any = generate.with_options(refresh_cache=True).submit(decoded)
    return [fetched, validated, decoded, asked]
