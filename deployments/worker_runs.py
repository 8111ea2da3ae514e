"""Prefect's process worker, with flow runs under guardians that can be handed back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State, StateType
from prefect.states import AwaitingRetry
from prefect.utilities.processutils import command_from_string, command_to_string
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from deployments.processes import marked
from earwitness.engine.guardian import descendants, guard_words

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.workers.process import ProcessJobConfiguration

_LOOK_S = 0.2
_CLEAR_UP_S = 1.0
_TELL_TRIES = 10
_TELL_PAUSE_S = 1.0
_RETRY = "Retry this run: it continues with what is left."
"""A build's run that is killed has not handed out all its shards, perhaps; nobody else does."""
_HANDED_BACK = frozenset({StateType.RUNNING, StateType.PENDING, StateType.CRASHED})


class _Started:
    """Notes a flow run's process, and tells whoever wanted to know of it."""

    def __init__(self, status: Any) -> None:
        self._status = status
        self.pid: int | None = None

    def started(self, value: Any = None) -> None:
        self.pid = value
        if self._status is not None:
            self._status.started(value)


class GuardedWorker(ProcessWorker):
    """Takes flow runs from a pool and runs each under a guardian.

    A flow run that is killed takes its decoders with it, and its worker sees at once that it
    ended; a worker that is killed takes its flow runs with it.

    Args:
        pool: The work pool.
        name: The worker's name.
        limit: Flow runs at once.
        environment: Added to the environment of flow runs.
    """

    @classmethod
    def __dispatch_key__(cls) -> str:
        # Prefect's own stays the one it finds by its type
        return "earwitness-process"

    def __init__(self, pool: str, *, name: str, limit: int, environment: dict[str, str]) -> None:
        super().__init__(
            work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False
        )
        self._environment = environment
        self._running: dict[UUID, _Started] = {}
        self._handing_back = False

    @property
    def busy(self) -> int:
        """Flow runs it is concerned with, from being taken until their end is told."""
        return len(self._submitting_flow_run_ids | set(self._running))

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: Any = None,
    ) -> ProcessWorkerResult:
        """Run a flow run's process to its end.

        Args:
            flow_run: The flow run.
            configuration: Its job; the command is put under a guardian here.
            task_status: Told the process's id.

        Returns:
            Its exit status; 0 where the run was handed back.
        """
        command = command_from_string(
            configuration.command or f"{sys.executable} -m prefect.engine"
        )
        # Prefect keeps the pipe that is the process's standard input open as long as it lives
        configuration.command = command_to_string([*guard_words(0), *command])
        configuration.env = {**configuration.env, **self._environment}
        self._spare_retried()
        started = _Started(task_status)
        self._running[flow_run.id] = started
        watching = asyncio.create_task(_clear_up(started, flow_run.id))
        try:
            result = await super().run(flow_run, configuration, started)
            if not (self._handing_back and result.status_code):
                return result
            await self._give_back(flow_run)
            return ProcessWorkerResult(status_code=0, identifier=result.identifier)
        finally:
            watching.cancel()
            del self._running[flow_run.id]

    def _spare_retried(self) -> None:
        """Have the part of Prefect that watches processes ask before it tells of a crash."""
        proposer = self._runner._state_proposer  # noqa: SLF001 - where it tells of crashes
        if "propose_crashed" in vars(proposer):
            return
        propose = proposer.propose_crashed

        async def propose_if_ours(flow_run: FlowRun, message: str) -> State[Any] | None:
            said = f"{message} {_RETRY}"
            return await propose(flow_run, said) if await self._ours(flow_run) else None

        proposer.propose_crashed = propose_if_ours  # type: ignore[method-assign]

    async def _propose_crashed_state(
        self, flow_run: FlowRun, message: str, client: PrefectClient | None = None
    ) -> None:
        if await self._ours(flow_run):
            await super()._propose_crashed_state(flow_run, f"{message} {_RETRY}", client)

    async def _ours(self, flow_run: FlowRun) -> bool:
        """False when a run that failed was retried while its process still ended."""
        try:
            now = await self.client.read_flow_run(flow_run.id)
        except Exception:  # noqa: BLE001 - whoever proposes the state meets it again
            return True
        if now.state is None or now.state.is_scheduled():
            return False
        # Prefect counts a run's starts: one more than when we took it, while it is ours
        pending = now.state.is_pending() and now.run_count > flow_run.run_count
        running = now.state.is_running() and now.run_count > flow_run.run_count + 1
        return not (pending or running)

    async def hand_back(self) -> None:
        """End the processes of all flow runs and put the runs back into the pool."""
        self._handing_back = True
        # they do not crash: their state is ours to tell
        self._runner._rescheduling = True  # noqa: SLF001 - what Prefect's own hand-back sets
        while self.busy:
            for started in list(self._running.values()):
                if started.pid is not None:
                    _kill_below(started.pid)
            await asyncio.sleep(_LOOK_S)

    async def _give_back(self, flow_run: FlowRun) -> None:
        message = f"returned to the work pool by worker {self.name}, which stopped"
        for left in reversed(range(_TELL_TRIES)):
            try:
                state = (await self.client.read_flow_run(flow_run.id)).state
                if state is not None and state.type in _HANDED_BACK:
                    again: State[Any] = AwaitingRetry(message=message)
                    await self.client.set_flow_run_state(flow_run.id, again, force=True)
            except Exception:
                # the server may be restarting; whoever watches heartbeats finds the run
                if not left:
                    self._logger.exception(
                        "could not return flow run %s to the work pool", flow_run.id
                    )
                    return
                await asyncio.sleep(_TELL_PAUSE_S)
            else:
                return


async def _clear_up(started: _Started, flow_run_id: UUID) -> None:
    """Kill what a guardian leaves that was killed itself: Prefect waits for all of it to end."""
    mark = f"PREFECT__FLOW_RUN_ID={flow_run_id}"
    while True:
        await asyncio.sleep(_CLEAR_UP_S)
        if started.pid is not None and _gone(started.pid):
            for pid in await asyncio.to_thread(marked, mark):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _kill_below(guardian_pid: int) -> None:
    """Kill what a guardian guards; it tells the end and goes by itself."""
    for pid in descendants(guardian_pid):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
