"""One attempt of a parent at the shards that are left: handed out, watched, counted."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from earwitness.errors import ShardFailedError
from earwitness.escaping import counted
from earwitness.progress import Advanced, tell
from flows.shard_runs import ShardRuns
from tasks.artifacts import ShardsTable, cause, run_link
from tasks.persist import shard_message
from tasks.telling import run_log

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from earwitness.builds.layout import Build, Receipt

_FIRST_POLL_S, _LONGEST_POLL_S = 0.5, 5.0
_REVIVALS_OF_A_CRASH = 2
"""So often a shard whose worker disappeared is given to another one: the shard is not at fault."""
_HOPELESS = 10
"""Where so many shards failed and none is done, they share one cause: no more are handed out."""
_PATIENCE_S = 60.0
"""A run that no worker takes for so long is explained in the log and in the table."""


class Attempt:
    """One attempt of a parent at the shards that are left.

    Args:
        build: The build.
        shards: Numbers of its shards without a receipt.
        runs: Their flow runs.
        at_once: How many may be on the pool at once.
        patience_s: A run that no worker takes for so long is explained.
    """

    def __init__(
        self,
        build: Build,
        shards: Iterable[int],
        *,
        runs: ShardRuns,
        at_once: int,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._runs = runs
        self._build = build
        self._todo = deque(shards)
        self._at_once = at_once
        self._table = ShardsTable(build)
        self._open: dict[UUID, int] = {}
        self._crashes: dict[int, int] = {}
        self._patience_s = patience_s
        self._waiting_since: dict[int, float] = {}
        self._causes: set[str] = set()
        self._done = 0
        self._failures: dict[int, FlowRun] = {}
        self._total = len(self._todo)
        self._running: set[int] = set()
        self._log = run_log()

    def run(self) -> None:
        """Hand the shards out and wait until each is done or has failed.

        Raises:
            ShardFailedError: Some are not done; the others are.
        """
        known = self._runs.found()
        pause_s = _FIRST_POLL_S
        while self._todo or self._open:
            while self._todo and len(self._open) < self._at_once and not self._hopeless:
                shard = self._todo.popleft()
                self._take_up(shard, known.get(shard))
            if self._hopeless and not self._open:
                break
            time.sleep(pause_s)
            pause_s = _FIRST_POLL_S if self._look() else min(1.3 * pause_s, _LONGEST_POLL_S)
            self._table.show()
        self._table.show(now=True)
        self._check()

    @property
    def _hopeless(self) -> bool:
        return not self._done and len(self._failures) >= _HOPELESS

    def _take_up(self, shard: int, run: FlowRun | None) -> None:
        if run is None:
            run = self._runs.start(shard)
            self._log.info("shard %s waits for a worker", shard)
        if run.state is not None and run.state.is_final():
            run = self._runs.restart(run)
            self._log.info("shard %s will run again and waits for a worker", shard)
        self._open[run.id] = shard
        self._table.note(shard, run)

    def _look(self) -> bool:
        """See how the open runs are; True when one ended."""
        ended = False
        found = self._runs.states(self._open)
        for deleted in set(self._open) - {run.id for run in found}:
            ended = True
            self._replace(deleted)
        for run in found:
            shard = self._open[run.id]
            if run.state is None or not run.state.is_final():
                self._table.note(shard, self._explained(shard, run))
                self._note_start(shard, run)
                continue
            self._table.note(shard, run)
            self._waiting_since.pop(shard, None)
            ended = True
            if run.state.is_crashed() and self._crashes.get(shard, 0) < _REVIVALS_OF_A_CRASH:
                self._crashes[shard] = self._crashes.get(shard, 0) + 1
                self._log.warning("shard %s: its worker is gone; another worker will run it", shard)
                del self._open[run.id]
                self._open[self._runs.restart(run).id] = shard
                continue
            del self._open[run.id]
            self._end(shard, run)
        return ended

    def _replace(self, deleted: UUID) -> None:
        """Start a run anew that somebody deleted; what its shard has done stays."""
        shard = self._open.pop(deleted)
        receipt = self._build.receipt(shard)
        if receipt is not None:
            self._finish(receipt)
            return
        self._log.warning("the flow run of shard %s was deleted; a new run will be started", shard)
        self._take_up(shard, None)

    def _explained(self, shard: int, run: FlowRun) -> FlowRun:
        """A run for the table; one that no worker takes says why."""
        if run.state is None or not (run.state.is_scheduled() or run.state.is_pending()):
            self._waiting_since.pop(shard, None)
            return run
        now = time.monotonic()
        if now - self._waiting_since.setdefault(shard, now) < self._patience_s:
            return run
        why = self._runs.why_waiting(run)
        if why not in self._causes:
            self._causes.add(why)
            self._log.warning("shard %s waits: %s", shard, why)
        return run.model_copy(update={"state": run.state.model_copy(update={"message": why})})

    def _note_start(self, shard: int, run: FlowRun) -> None:
        if run.state is not None and run.state.is_running() and shard not in self._running:
            self._running.add(shard)
            self._log.info("shard %s is running", shard)

    def _end(self, shard: int, run: FlowRun) -> None:
        receipt = self._build.receipt(shard)
        if receipt is None:
            self._failures[shard] = run
            self._log.error("shard %s is not done: %s %s", shard, _said(run), self._so_far)
        else:
            self._finish(receipt)

    def _finish(self, receipt: Receipt) -> None:
        self._done += 1
        counts = receipt.counts
        self._table.done(receipt)
        self._log.info(
            "shard %s is done: %s %s", receipt.shard, shard_message(receipt), self._so_far
        )
        tell(Advanced(counts.generated, counts.reused, counts.rejected))

    @property
    def _so_far(self) -> str:
        failed = f", {len(self._failures)} failed" if self._failures else ""
        return f"({self._done} of {self._total} done{failed})"

    def _check(self) -> None:
        """Compare with what is there: a person may have repaired a shard meanwhile."""
        missing = self._build.missing_shards()
        if not missing:
            return
        shard = next((number for number in missing if number in self._failures), missing[0])
        run = self._failures.get(shard)
        message = _said(run) if run else "it was not started"
        where = f"shard {shard} ({run_link(run.id)})" if run else f"shard {shard}"
        raise ShardFailedError(
            f"{len(missing)} of {counted(len(self._build.plan.shards), 'shard')} not done: "
            f"{message.rstrip('.')}. See {where}. Remove the cause, then retry this run: it "
            "repeats only the shards that are not done"
        )


def _said(run: FlowRun) -> str:
    """Why a run that ended did not do its shard, without what Prefect puts before it."""
    if run.state is None:
        return "its run has no state"
    if run.state.is_cancelled():
        return "its run was cancelled"
    return cause(run.state.message or run.state.name or "")


def answer_on_pool(build: Build, shards: list[int], deployment: str, *, at_once: int) -> None:
    """Have a worker pool answer a build's shards.

    Args:
        build: The build.
        shards: Numbers of the shards without a receipt.
        deployment: The deployment they run as.
        at_once: How many may be on the pool at once.

    Raises:
        ShardFailedError: Some are not done; the others are.
        SettingsError: There is no such deployment, or its work pool was deleted.
    """
    if shards:
        Attempt(build, shards, runs=ShardRuns(build.uri, deployment), at_once=at_once).run()
