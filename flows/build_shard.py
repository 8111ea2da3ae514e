"""One shard: resolve it, answer what is left batch by batch, persist it."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from earwitness.builds.absolute import check_absolute_address
from earwitness.builds.layout import Build, Receipt
from earwitness.builds.stored import stored_settings
from earwitness.errors import FatalError
from earwitness.runtime import is_running, running
from flows.form import shape_form
from flows.shard_runs import (
    deployed_run,
    free_from_cancelled_parent,
    parent_lives,
    shard_run_name,
)
from tasks.artifacts import artifact_key, progress_artifact
from tasks.decode import decode
from tasks.fetch import fetch
from tasks.generate import generate
from tasks.persist import persist, shard_message
from tasks.publish import publish
from tasks.resolve import resolve
from tasks.results import private_results
from tasks.telling import plainly, told
from tasks.validate import validate

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from earwitness.builds.batch import BatchRef
    from earwitness.builds.resolve import Resolved

_TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=256)
"""A thread a task in flight: four stages of each batch in the widest window allowed."""


def _run_name() -> str:
    given: dict[str, Any] = flow_run.parameters
    return shard_run_name(given["build"], given["shard"])


@flow(
    name="build-shard",
    flow_run_name=_run_name,
    task_runner=_TASK_RUNNER,
    persist_result=False,
    result_serializer="json",
)
@plainly
def build_shard(build: str, shard: int) -> Receipt:
    """Answer one shard of a build, on a machine with an engine.

    The run of the build starts these runs, one for each shard. To repeat a shard that failed, use
    Retry on its run: there is no need to start one here.

    Args:
        build: Address of the build, OUTPUT/builds/ID: an absolute path or a URL.
        shard: Number of the shard, from 0.

    Returns:
        The shard's receipt.
    """
    run = deployed_run()
    if run:
        check_absolute_address("build", build, "/data/dataset/builds/ID")
        free_from_cancelled_parent(run)
    found = Build.at(build)
    receipt = found.receipt(shard)
    if receipt is not None:
        return told(receipt, f"already done: {shard_message(receipt)}")
    plan = found.plan
    # who opened this process's runtime was told its settings; a file in storage is no such person
    settings = plan.settings if is_running() else stored_settings(plan.settings)
    with running(settings, settings.model) as runtime, _progress(found, shard):
        try:
            runtime.check_model(plan.model)
            resolved = resolve.submit(build, shard).result()
            segments = answer_batches(resolved, plan.settings.layout.window_batches)
            receipt = persist.submit(build, shard, segments).result()
        finally:
            runtime.forget_shard(build, shard)
    message = shard_message(receipt)
    return told(receipt, f"{message}{publish_if_last(found)}")


shape_form(build_shard)


def _progress(build: Build, shard: int) -> AbstractContextManager[None]:
    """The shard's own bar; in its parent's process the parent's bar says it."""
    if not deployed_run():
        return nullcontext()
    rows = build.plan.shards[shard].rows
    key = artifact_key(f"progress-shard-{shard:05d}", build)
    return progress_artifact(key, rows, 0, f"Rows of shard {shard} that are answered or rejected")


def publish_if_last(build: Build) -> str:
    """Publish a build whose shards are all done when the run that should publish it is gone.

    Args:
        build: The build of a shard that was just done.

    Returns:
        What came of it, for the shard's own message; empty: nothing to do.
    """
    run = deployed_run()
    if not run or parent_lives(run) or not build.whole():
        return ""
    try:
        publish.submit(build.uri).result()
    except FatalError as error:
        # the shard is done all the same
        return f"; all shards are done, but the build is not published: {error}"
    return "; this was the last shard, and the build is published"


def answer_batches(resolved: Resolved, window_batches: int) -> list[str]:
    """Send batches through the stages, a bounded number at once.

    While the engine answers batch n, the batches after it are fetched and decoded. When one
    fails, those in flight still finish and keep their answers; then its error is raised.

    Args:
        resolved: Batches to do, and those an earlier attempt finished.
        window_batches: Batches in flight at once.

    Returns:
        Paths of the batches' segments: a listing might not show the last ones yet.
    """
    in_flight: deque[list[Any]] = deque()
    failures: list[Exception] = []
    segments: list[str] = []

    def finish_oldest() -> None:
        stages = in_flight.popleft()
        stages[-1].wait()
        # the stages after the one that failed never ran: only its own error says why
        failed = next((stage for stage in stages if not stage.state.is_completed()), None)
        if failed is not None:
            failures.append(failed.state.result(raise_on_failure=False))
        else:
            segments.append(stages[-1].result().segment)

    for batch in resolved.finished:
        in_flight.append([_generate().submit(batch)])
    for batch in resolved.batches:
        while len(in_flight) >= window_batches:
            finish_oldest()
        if failures:
            break
        in_flight.append(_submit(batch, resolved.clips))
    while in_flight:
        finish_oldest()
    if failures:
        raise failures[0]
    return segments


def _submit(batch: BatchRef, clips_in_shard: int) -> list[Any]:
    """Submit a batch's four stages; their futures in order."""
    # each takes the one before it as its argument: Prefect waits for it and draws the arrow
    fetched: Any = fetch.submit(batch, clips_in_shard)
    validated: Any = validate.submit(fetched)
    decoded: Any = decode.submit(validated)
    # its segment does not exist: an older result of Prefect's must not stand in for it
    asked: Any = _generate(refresh_cache=True).submit(decoded)
    return [fetched, validated, decoded, asked]


def _generate(**options: Any) -> Any:
    """The one task whose result is kept."""
    return generate.with_options(result_storage=private_results(), **options)
