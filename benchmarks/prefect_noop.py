"""A shard's flow with a shard's task runs, none of which does anything: what is left is Prefect.

Task options, references, window and artifact are those of `flows.build_shard`; see
`benchmarks.prefect_cost`, which deploys it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from earwitness.builds.batch import BatchRef
from earwitness.builds.layout import Counts, Receipt
from tasks.artifacts import post, update
from tasks.results import private_results
from tasks.retrying import retrying
from tasks.telling import told

if TYPE_CHECKING:
    from prefect.context import TaskRunContext

_TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=256)


def _asked(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    batch: BatchRef = parameters["batch"]
    return f"noop-{batch.build}-{batch.shard}-{batch.batch}"


@task(name="resolve", task_run_name="resolve shard {shard}", **retrying)
def resolve(build: str, shard: int, batches: int, rows: int) -> list[BatchRef]:
    """References of the batches, as the real one gives them."""
    return told([BatchRef(build, shard, n, rows) for n in range(batches)], "nothing was reused")


@task(name="fetch", task_run_name="fetch batch {batch.batch}", **retrying)
def fetch(batch: BatchRef) -> BatchRef:
    """Nothing."""
    return batch


@task(name="validate", task_run_name="validate batch {batch.batch}", **retrying)
def validate(batch: BatchRef) -> BatchRef:
    """Nothing."""
    return batch


@task(name="decode", task_run_name="decode batch {batch.batch}", **retrying)
def decode(batch: BatchRef) -> BatchRef:
    """Nothing."""
    return batch


@task(
    name="generate",
    task_run_name="generate batch {batch.batch}",
    cache_key_fn=_asked,
    **{**retrying, "persist_result": True},
)
def generate(batch: BatchRef) -> BatchRef:
    """Nothing, but its result is kept."""
    return batch


@task(name="persist", task_run_name="persist shard {shard}", **retrying)
def persist(shard: int, rows: int) -> Receipt:
    """A receipt of nothing."""
    return told(Receipt(shard=shard, counts=Counts(rows=rows), files=()), "nothing was done")


@flow(
    name="noop-shard",
    flow_run_name="shard-{shard:05d} of {build}",
    task_runner=_TASK_RUNNER,
    persist_result=False,
    result_serializer="json",
)
def noop_shard(build: str, shard: int, batches: int, rows: int, window: int) -> Receipt:
    """As many task runs as a shard has, in the same order and window."""
    bar = post("progress", f"progress-{build}-{shard}", 0.0, "Rows done")
    kept = generate.with_options(result_storage=private_results(), refresh_cache=True)
    in_flight: deque[Any] = deque()
    for batch in resolve.submit(build, shard, batches, rows).result():
        while len(in_flight) >= window:
            in_flight.popleft().wait()
        stages: Any = decode.submit(validate.submit(fetch.submit(batch)))
        in_flight.append(kept.submit(stages))
    while in_flight:
        in_flight.popleft().wait()
    if bar is not None:
        update(bar, 100.0)
    return told(persist.submit(shard, batches * rows).result(), "nothing was done")


def bare_shard(build: str, shard: int, batches: int, rows: int) -> None:
    """The same functions without Prefect."""
    for batch in resolve.fn(build, shard, batches, rows).data:
        generate.fn(decode.fn(validate.fn(fetch.fn(batch))))
    persist.fn(shard, batches * rows)


if __name__ == "__main__":
    # how little the functions themselves are; importing this is Prefect's cost, and left out
    before = resource.getrusage(resource.RUSAGE_SELF)
    bare_shard("b", 0, int(sys.argv[1]), int(sys.argv[2]))
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"cpu_s": after.ru_utime - before.ru_utime}))
