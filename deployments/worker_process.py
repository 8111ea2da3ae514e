"""The worker proper: checks, engine, polling, and an orderly end. See `deployments.worker`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from deployments.worker import WorkerOptions
from earwitness.addresses import without_secrets
from earwitness.cpus import CPUS_VARIABLE, cpu_share
from earwitness.engine.shared import (
    KEY_VARIABLE,
    MODEL_VARIABLE,
    SLOTS_VARIABLE,
    URL_VARIABLE,
    WORKER_VARIABLE,
)
from earwitness.errors import EarwitnessError, FatalError
from earwitness.escaping import counted, printable
from earwitness.progress import EngineReady, EngineStarting, listen
from earwitness.scratch import (
    SCRATCH_VARIABLE,
    make_scratch,
    results_folder,
    sweep_results,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from deployments.engine_host import EngineHost
    from deployments.worker_runs import GuardedWorker
    from earwitness.progress import Event

_RESULTS = "PREFECT_LOCAL_STORAGE_PATH"
_HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
_HEARTBEAT_S = "30"
_RESULTS_KEPT_S = 7 * 24 * 3600.0
_HOUR_S = 3600.0
_API_PATIENCE_S = 60.0
_RETRY_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LOOK_S = 0.2
_POOL_S = 15.0
"""How often the worker makes sure that its work pool is there."""


def say(text: str) -> None:
    """Tell the operator something."""
    told = printable(without_secrets(text))
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} worker: {told}\n")
    sys.stdout.flush()


class Stop:
    """Why and how urgently the worker ends. Lives in the running loop.

    Attributes:
        wanted: Take no new runs.
        at_once: Do not wait for those under way.
        failure: What the engine was given up for, if that is why.
    """

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.at_once = asyncio.Event()
        self.failure: EarwitnessError | None = None
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.told)

    def told(self) -> None:
        """Take note of a signal: the first asks for an end, the second for one at once."""
        if self.wanted.is_set():
            self.at_once.set()
        self.wanted.set()

    def gave_up(self, failure: EarwitnessError) -> None:
        """Take note, from any thread, that the engine will not come back."""

        def note() -> None:
            self.failure = failure
            self.at_once.set()
            self.wanted.set()

        self._loop.call_soon_threadsafe(note)


def main(argv: list[str]) -> int:
    """Be a worker until told to stop.

    Args:
        argv: The worker's options as JSON.

    Returns:
        The exit status.
    """
    options = WorkerOptions.model_validate_json(argv[0])
    try:
        results = _prepare_environment()
        asyncio.run(_serve(options, results))
    except EarwitnessError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    say("stopped")
    return 0


def _prepare_environment() -> Path | None:
    """Set what Prefect reads when it is imported; gives the result objects' folder if ours."""
    for name in (URL_VARIABLE, KEY_VARIABLE, MODEL_VARIABLE, SLOTS_VARIABLE):
        os.environ.pop(name, None)
    os.environ.setdefault(_HEARTBEAT, _HEARTBEAT_S)
    if _RESULTS in os.environ:
        return None
    folder = results_folder()
    os.environ[_RESULTS] = str(folder)
    return folder


async def _serve(options: WorkerOptions, results: Path | None) -> None:
    stop = Stop()
    async with AsyncExitStack() as stack:
        await check_pool(options.pool)
        sweep_task = asyncio.create_task(_keep_doing(lambda: _sweep(results), _HOUR_S))
        stack.callback(sweep_task.cancel)
        scratch, lock = make_scratch()
        stack.callback(lock.close)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        environment = run_environment(options, scratch)
        if options.has_engine:
            lent = await _lend_engine(options, scratch, stop, stack)
            if lent is None:
                say("stopped while the engine was starting")
                return
            environment |= lent
        await _work(options, environment, stop)
    if stop.failure is not None:
        raise stop.failure


def run_environment(options: WorkerOptions, scratch: Path) -> dict[str, str]:
    """What a worker tells each of its flow runs, the engine apart.

    Args:
        options: What the worker does.
        scratch: The folder its flow runs make their scratch folders in.

    Returns:
        Environment variables.
    """
    return {
        SCRATCH_VARIABLE: str(scratch),
        WORKER_VARIABLE: options.named(),
        # each has decoders of its own: together they have no more than the machine
        CPUS_VARIABLE: str(max(1, cpu_share() // options.limit)),
    }


async def check_pool(pool: str) -> None:
    """Make sure that there is a pool to work for.

    Args:
        pool: The work pool's name.

    Raises:
        FatalError: There is no Prefect API, no such pool, or it is of another type.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    address = get_current_settings().api.url
    if not address:
        raise FatalError(
            "PREFECT_API_URL is not set: set it to the API of the Prefect server that the worker "
            "gets its runs from (http://HOST:4200/api)"
        )
    limit = time.monotonic() + _API_PATIENCE_S
    async with get_client() as client:
        while (unreachable := await client.api_healthcheck()) is not None:
            if time.monotonic() > limit:
                why = " ".join(str(unreachable).split())
                raise FatalError(f"the Prefect API at {address} does not answer: {why}")
            await asyncio.sleep(_RETRY_S)
        try:
            found = await client.read_work_pool(pool)
        except ObjectNotFound:
            raise FatalError(
                f"there is no work pool {pool!r} at {address}: "
                "create the pools with `python -m deployments.setup`"
            ) from None
    if found.type != "process":
        raise FatalError(
            f"the work pool {pool!r} is of type {found.type!r}, not 'process': give another --pool"
        )


async def _lend_engine(
    options: WorkerOptions, scratch: Path, stop: Stop, stack: AsyncExitStack
) -> dict[str, str] | None:
    """Start the engine and its front; None when told to stop meanwhile."""
    from deployments.engine_host import EngineHost

    engine = options.engine
    stack.callback(listen(_tell))
    host = EngineHost(engine, options.model, scratch=scratch, clips_per_prompt=options.max_clips)
    stack.push_async_callback(_close, host)
    starting = asyncio.wrap_future(host.start(stop.gave_up))
    stopping = asyncio.create_task(stop.wanted.wait())
    waiting: set[asyncio.Future[Any]] = {starting, stopping}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        return None
    shared = starting.result()
    say(f"the engine is ready at {shared.url}, for up to {shared.slots} requests at once")
    return shared.environment()


async def _close(host: EngineHost) -> None:
    say("stopping the engine")
    await asyncio.to_thread(host.close)


def _tell(event: Event) -> None:
    if isinstance(event, EngineStarting):
        say(f"starting the engine with {event.model}; its log: {event.log}")
    elif isinstance(event, EngineReady):
        say(f"the engine started in {event.seconds:.0f} s")


async def _work(options: WorkerOptions, environment: dict[str, str], stop: Stop) -> None:
    from prefect.settings import get_current_settings

    from deployments.worker_runs import GuardedWorker

    name = options.named()
    worker = GuardedWorker(options.pool, name=name, limit=options.limit, environment=environment)
    query_s = get_current_settings().worker.query_seconds
    async with worker:
        say(f"{name} polls the work pool {options.pool}, for up to {options.limit} runs at once")
        polling = asyncio.create_task(_keep_doing(worker.get_and_submit_flow_runs, query_s))
        beating = asyncio.create_task(
            _keep_doing(worker.sync_with_backend, worker.heartbeat_interval_seconds)
        )
        # Prefect's worker polls a pool that was deleted without a word
        watching = asyncio.create_task(_keep_doing(lambda: check_pool(options.pool), _POOL_S))
        try:
            await stop.wanted.wait()
            await _end(watching)
            await _end(polling)
            await _drain(worker, options.grace_s, stop)
        finally:
            await _end(watching)
            await _end(polling)
            await _end(beating)


async def _drain(worker: GuardedWorker, grace_s: float, stop: Stop) -> None:
    """Let runs finish; hand back what has not when the time is over."""
    if stop.failure is not None:
        say(f"the engine failed permanently: {stop.failure}")
    elif worker.busy:
        say(f"stopping: waiting up to {grace_s:g} s for {counted(worker.busy, 'run')} to finish")
    limit = time.monotonic() + grace_s
    while worker.busy and time.monotonic() < limit and not stop.at_once.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.at_once.wait(), _LOOK_S)
    if worker.busy:
        say(f"returning {counted(worker.busy, 'run')} to the work pool")
        await worker.hand_back()


async def _keep_doing(work: Callable[[], Awaitable[Any]], interval_s: float) -> None:
    """Do something again and again; what goes wrong is told and tried again, later each time."""
    failures = 0
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the server may be down: the worker outlives that
            failures += 1
            if failures == 1:
                kind = "" if isinstance(error, EarwitnessError) else f"{type(error).__name__}: "
                say(f"failed, and will retry: {kind}{' '.join(str(error).split())}")
        else:
            failures = 0
        pause_s = min(interval_s * 2.0 ** min(failures, 6), max(interval_s, _LONGEST_PAUSE_S))
        await asyncio.sleep(pause_s)


async def _sweep(results: Path | None) -> None:
    if results is not None:
        await asyncio.to_thread(sweep_results, results, older_than_s=_RESULTS_KEPT_S)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
