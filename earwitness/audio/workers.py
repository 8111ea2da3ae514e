"""Probing and decoding in processes of their own: parallel, and a native crash costs one clip.

Workers are forked from a small server process that has the decoders loaded (`forkserver`), so
that a new one takes milliseconds and shares its memory. Each worker has its own pipe and is fed
by its own thread: no queue is shared, so a crash can neither lose nor spoil another clip.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from earwitness.audio import decode as decoding
from earwitness.audio import probe as probing
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from multiprocessing.connection import Connection
    from pathlib import Path

    from earwitness.audio.decode import DecodedClip
    from earwitness.audio.probe import ProbedClip
    from earwitness.settings import AudioSettings

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 120.0
MEMORY_LIMIT_BYTES = 4 * 2**30
"""Address space of one worker: a header that lies about its size cannot take the machine."""
_PR_SET_PDEATHSIG = 1

_launching = threading.Lock()
_open_pools = 0


class DecodePool:
    """Worker processes that probe and decode clips.

    Futures end with the result, with `BadRecordError` (also for `decoder_crash` and
    `decode_timeout`), or with `CancelledError` once the pool is closed. In asyncio, await
    `asyncio.wrap_future(…)`.

    Args:
        processes: How many. Default: the cores this process may use.
        timeout_s: How long one clip may take.
    """

    def __init__(
        self, processes: int | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        count = processes or len(os.sched_getaffinity(0))
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._workers = [_Worker() for _ in range(count)]
        self._idle: LifoQueue[_Worker] = LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._closed = threading.Event()
        _count_pools(1)

    def probe(self, path: Path, policy: AudioSettings) -> Future[ProbedClip]:
        """`earwitness.audio.probe.probe`, in a worker."""
        return self._threads.submit(self._run, Stage.VALIDATE, probing.probe, path, policy)

    def decode(self, path: Path, destination: Path, policy: AudioSettings) -> Future[DecodedClip]:
        """`earwitness.audio.decode.decode`, in a worker."""
        job = partial(self._run, Stage.DECODE, decoding.decode)
        return self._threads.submit(job, path, destination, policy)

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Any importable function, in a worker, under the same protection."""
        return self._threads.submit(self._run, Stage.DECODE, function, *arguments)

    def close(self) -> None:
        """Stop all work at once and leave no process behind."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill(for_good=True)
        self._threads.shutdown(wait=True)
        _count_pools(-1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, stage: Stage, function: Callable[..., T], *arguments: Any) -> T:
        worker = self._idle.get()
        try:
            try:
                return self._ask(worker, stage, function, arguments)
            except EOFError:
                # once more: the kernel may have killed the worker for another process's hunger
                return self._ask(worker, stage, function, arguments)
        except EOFError:
            detail = "the decoder crashed on this clip"
            raise BadRecordError(Rejection(stage, Reason.DECODER_CRASH, detail)) from None
        finally:
            self._idle.put(worker)

    def _ask(
        self, worker: _Worker, stage: Stage, function: Callable[..., T], arguments: tuple[Any, ...]
    ) -> T:
        if self._closed.is_set():
            raise CancelledError
        try:
            return worker.call(function, arguments, self._timeout_s)
        except TimeoutError:
            detail = f"decoding took longer than {self._timeout_s:g} s"
            raise BadRecordError(Rejection(stage, Reason.DECODE_TIMEOUT, detail)) from None
        except EOFError:
            if self._closed.is_set():
                raise CancelledError from None
            raise


class _Worker:
    """One process and the pipe to it; started when first needed, and again after a crash."""

    def __init__(self) -> None:
        self._process: ForkServerProcess | None = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()
        self._retired = False

    def call(self, function: Callable[..., T], arguments: tuple[Any, ...], timeout_s: float) -> T:
        """Run one call over there.

        Raises:
            EOFError: The process died.
            TimeoutError: It took too long; the process is gone.
        """
        with self._lock:
            if self._retired:
                raise EOFError
            pipe = self._pipe or self._start()
        try:
            pipe.send((function, arguments))
            answered = pipe.poll(timeout_s)
            error, result = pipe.recv() if answered else (None, None)
        except (OSError, EOFError):
            self.kill()
            raise EOFError from None
        if not answered:
            self.kill()
            raise TimeoutError
        if error is not None:
            raise error
        return cast("T", result)

    def kill(self, *, for_good: bool = False) -> None:
        """End the process and wait until it is gone; the next call starts another.

        Args:
            for_good: No next call: it raises `EOFError`.
        """
        with self._lock:
            self._retired = self._retired or for_good
            if self._process is not None:
                self._process.kill()
                self._process.join()
                self._process.close()
            # the thread that reads from the pipe sees its end; closing it here could hand its
            # number to somebody else under that thread's hands
            self._process = self._pipe = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        with theirs:
            process = ForkServerProcess(target=_serve, args=(theirs,), daemon=True)
            with _launching, _main_hidden(), _interrupt_blocked():
                context.set_forkserver_preload(["earwitness.audio.preload"])
                process.start()
        self._process, self._pipe = process, ours
        return ours


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Start what inherits a blocked SIGINT: Ctrl-C is for the owner, who ends it all anyway."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection) -> None:
    """A worker's life: answer calls until the owner is gone."""
    _protect()
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[Exception | None, Any]
        try:
            answer = (None, function(*arguments))
        except Exception as error:  # noqa: BLE001 - goes to the caller as it is
            answer = (error, None)
        pipe.send(answer)


def _protect() -> None:
    # The parent is the fork server, which ends when nobody holds its pipe any more. multiprocessing
    # lets every child hold it; without this line workers would keep it, and so themselves, alive.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # noqa: SLF001
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # mpg123 and others write warnings there, past Python; errors travel as exceptions
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    os.close(silent)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep multiprocessing from importing the program's main module in every worker.

    A worker needs nothing of it, and it may be large (a whole flow engine).
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    try:
        for name in hidden:
            setattr(main, name, None)
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def _count_pools(change: int) -> None:
    """Stop the fork server with the last pool: nothing stays behind."""
    global _open_pools  # noqa: PLW0603 - the fork server is one per process, as is this count
    with _launching:
        _open_pools += change
        if _open_pools == 0:
            # no public way to stop it; it starts again by itself when needed
            forkserver._forkserver._stop()  # type: ignore[attr-defined]  # noqa: SLF001
