"""Continue a build: have its missing shards answered, here or on a worker pool, and publish it.

Every way to run or retry a build ends here: the flow `build-dataset`, the flow
`retry-failed-shards`, and the command line, which runs the former.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from earwitness.builds.layout import Build
from earwitness.builds.lease import lease
from earwitness.errors import EarwitnessError, ShardFailedError, StorageUnavailableError
from earwitness.escaping import counted
from earwitness.runtime import running
from flows.attempt import answer_on_pool
from flows.build_shard import build_shard
from flows.shard_runs import SHARD_DEPLOYMENT, deployed_run
from tasks.artifacts import artifact_key, post_failed_summary, progress_artifact
from tasks.persist import shard_message
from tasks.publish import build_message, publish
from tasks.telling import run_log, told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tasks.plan import PlannedBuild


def finish_build(planned: PlannedBuild) -> dict[str, Any]:
    """Do the shards that are left, and publish.

    Args:
        planned: The build, and which of its shards have no receipt.

    Returns:
        The build's ledger, with what a run's state says of it.

    Raises:
        ShardFailedError: Some shards failed; the others are done.
    """
    build, settings = Build.at(planned.uri), planned.settings
    deployment = settings.engine.shards_on or (SHARD_DEPLOYMENT if deployed_run() else None)
    left = sum(build.plan.shards[shard].rows for shard in planned.shards)
    key, done = artifact_key("progress", build), planned.rows - left
    what = "Rows that are answered or rejected"
    log = run_log()
    log.info(
        "build %s: %s in %s; left to do: %s with %s",
        build.id,
        counted(planned.rows, "row"),
        counted(len(build.plan.shards), "shard"),
        counted(len(planned.shards), "shard"),
        counted(left, "row"),
    )
    with _held(build), progress_artifact(key, planned.rows, done, what), _failure_summed_up(build):
        if deployment is not None:
            at_once = settings.layout.shards_in_flight
            answer_on_pool(build, planned.shards, deployment, at_once=at_once)
        else:
            with running(settings, planned.model):
                answer_here(planned)
        log.info("all shards are done; checking and publishing the build")
        counts = publish.submit(planned.uri).result()
        return told(counts, build_message(counts))


@contextmanager
def _failure_summed_up(build: Build) -> Iterator[None]:
    """Leave a summary of what there is where the block does not get to publishing."""
    try:
        yield
    except EarwitnessError as error:
        # nobody looks at a summary of a run on the command line: its terminal says it
        if deployed_run():
            post_failed_summary(build, error)
        raise


def _held(build: Build) -> AbstractContextManager[None]:
    """The build's lease, unless whoever called this process's flow holds it already."""
    run = deployed_run()
    return lease(build, owner=f"flow run {run.name}") if run else nullcontext()


def answer_here(planned: PlannedBuild) -> None:
    """Answer the shards that are left in this process, one after the other.

    A shard whose storage is down does not keep the others from being done; what concerns them
    all (the engine, the credentials) ends the run.

    Args:
        planned: The build, and which of its shards have no receipt.

    Raises:
        ShardFailedError: Some shards failed; the others are done.
    """
    failures: list[str] = []
    log = run_log()
    for number, shard in enumerate(planned.shards, start=1):
        try:
            receipt = build_shard(planned.uri, shard)
        except (ShardFailedError, StorageUnavailableError) as error:
            failures.append(f"shard {shard}: {error}")
            log.warning("shard %s failed: %s", shard, error)
        else:
            progress = f"({number} of {len(planned.shards)})"
            log.info("shard %s is done: %s %s", shard, shard_message(receipt), progress)
    if failures:
        more = len(failures) - 1
        others = f" (and {counted(more, 'more shard')} failed)" if more else ""
        raise ShardFailedError(f"{failures[0]}{others}")
