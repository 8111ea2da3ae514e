"""One attempt of a parent at the shards that are left: handed out, watched, counted."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from earwitness.errors import ShardFailedError
from earwitness.progress import Advanced, tell
from flows.shard_runs import ShardRuns
from tasks.artifacts import ShardsTable, run_link

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from earwitness.build.layout import Build

_log = logging.getLogger("earwitness.shards")

_FIRST_POLL_S, _LONGEST_POLL_S = 0.5, 5.0
_REVIVALS_OF_A_CRASH = 2
"""A worker that went away says nothing about its shards: another one takes them, so many times."""
_HOPELESS = 10
"""So many shards failed and none was done: what ails them ails all, the rest is not handed out."""


class Attempt:
    """One attempt of a parent at the shards that are left.

    Args:
        build: The build.
        shards: Numbers of its shards without a receipt.
        runs: Their flow runs.
        at_once: How many may be on the pool at once.
    """

    def __init__(
        self, build: Build, shards: Iterable[int], *, runs: ShardRuns, at_once: int
    ) -> None:
        self._runs = runs
        self._build = build
        self._todo = deque(shards)
        self._at_once = at_once
        self._table = ShardsTable(build)
        self._open: dict[UUID, int] = {}
        self._crashes: dict[int, int] = {}
        self._done = 0
        self._failures: dict[int, FlowRun] = {}

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
        if run.state is not None and run.state.is_final():
            self._runs.revive(run)
        self._open[run.id] = shard
        self._table.note(shard, run)

    def _look(self) -> bool:
        """See how the open runs are; True when one ended."""
        ended = False
        for run in self._runs.states(self._open):
            shard = self._open[run.id]
            self._table.note(shard, run)
            if run.state is None or not run.state.is_final():
                continue
            ended = True
            if run.state.is_crashed() and self._crashes.get(shard, 0) < _REVIVALS_OF_A_CRASH:
                self._crashes[shard] = self._crashes.get(shard, 0) + 1
                _log.warning("shard %s lost its worker; another one takes it", shard)
                self._runs.revive(run)
                continue
            del self._open[run.id]
            self._end(shard, run)
        return ended

    def _end(self, shard: int, run: FlowRun) -> None:
        receipt = self._build.receipt(shard)
        if receipt is None:
            self._failures[shard] = run
            return
        self._done += 1
        counts = receipt.counts
        self._table.done(receipt)
        tell(Advanced(counts.generated, counts.reused, counts.rejected))

    def _check(self) -> None:
        """Compare with what is there: a person may have mended a shard meanwhile."""
        missing = self._build.missing_shards()
        if not missing:
            return
        shard = next((number for number in missing if number in self._failures), missing[0])
        run = self._failures.get(shard)
        message = (run.state.message or run.state.name) if run and run.state else "not handed out"
        where = f" ({run_link(run.id)})" if run else ""
        raise ShardFailedError(
            f"{len(missing)} of {len(self._build.plan.shards)} shards are not done; "
            f"shard {shard}{where}: {message} - mend the cause, then retry this run, or that one"
        )


def answer_on_pool(build: Build, shards: list[int], deployment: str, *, at_once: int) -> None:
    """Have a worker pool answer a build's shards.

    Args:
        build: The build.
        shards: Numbers of the shards without a receipt.
        deployment: The deployment they run as.
        at_once: How many may be on the pool at once.

    Raises:
        ShardFailedError: Some are not done; the others are.
        SettingsError: There is no such deployment.
    """
    if shards:
        Attempt(build, shards, runs=ShardRuns(build.uri, deployment), at_once=at_once).run()
