"""Probing and decoding in processes of their own: parallel, and a native crash costs one clip.

A worker ends with its owner, may not eat the machine's memory, and prints nothing of what native
libraries print.

Workers are forked from a small server process that has the decoders loaded (`forkserver`), so
that a new one takes milliseconds and shares its memory. Each worker has its own pipe and is fed
by its own thread: no queue is shared, so a crash can neither lose nor spoil another clip. Clips go
to a worker several at a time, since the way there and back costs as much as a small clip; where
that ends badly, each is tried again alone.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from earwitness.audio import decode as decoding
from earwitness.audio import probe as probing
from earwitness.cpus import usable_cpus
from earwitness.errors import BadRecordError, EarwitnessError
from earwitness.records import Reason, Rejection, Stage
from earwitness.scratch import make_scratch, remove_scratch, takes_sockets, temporary_root
from earwitness.unexpected import rejection_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from multiprocessing.connection import Connection
    from pathlib import Path
    from typing import IO

    from earwitness.audio.probe import ProbedClip
    from earwitness.records import ClipFacts
    from earwitness.settings import AudioSettings


T = TypeVar("T")

MEMORY_LIMIT_BYTES = 4 * 2**30
"""Address space of one worker: a header that lies about its size cannot take the machine."""
_PR_SET_PDEATHSIG = 1


def serve(pipe: Connection) -> None:
    """A worker's life: answer calls until the owner is gone.

    Args:
        pipe: Brings functions with their arguments, takes errors or results.
    """
    _protect()
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[Exception | None, Any]
        try:
            answer = (None, function(*arguments))
        except Exception as error:  # noqa: BLE001 - goes to the caller
            answer = (_sendable(error), None)
        pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """An error that the owner can read, with the trace it cannot see."""
    if isinstance(error, EarwitnessError):
        return error
    trace = traceback.format_exc()
    plain = all(isinstance(one, str | bytes | int | float | None) for one in error.args)
    if plain and type(error).__module__ == "builtins":
        error.add_note(trace)
        return error
    # the pipe may not carry it, or its class may not be made again from what it carries
    return RuntimeError(trace)


def call_each(
    function: Callable[..., T], many: Sequence[tuple[Any, ...]], budget_s: float
) -> list[T | Rejection]:
    """Call a function once for each of several clips, for as long as the time given lasts.

    Args:
        function: What is called.
        many: The arguments of each call.
        budget_s: No call begins once this much time has gone by; the first always does.

    Returns:
        Results, or rejections, in order; of the first calls alone when the time ran out.
    """
    started_s = time.monotonic()
    found: list[T | Rejection] = []
    for arguments in many:
        if found and time.monotonic() - started_s > budget_s:
            break
        try:
            found.append(function(*arguments))
        except BadRecordError as error:
            found.append(error.rejection)
    return found


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


DEFAULT_TIMEOUT_S = 120.0
SEVERAL_CLIPS = 8
"""How many clips are worth sending to a worker at once; more would only leave others idle."""
_SEVERAL_S = 1.0
"""After so long a worker gives back what it has of several clips: time-outs are for one clip."""

_launching = threading.Lock()
_open_pools = 0
_sockets: tuple[Path, IO[str]] | None = None
"""Where the fork server listens, and the lock that says that we live."""


class DecodePool:
    """Worker processes that probe and decode clips.

    Futures end with the result, with `BadRecordError` (also for `decoder_crash` and
    `decode_timeout`), or with `CancelledError` once the pool is closed. In asyncio, await
    `asyncio.wrap_future(…)`.

    Args:
        processes: How many. Default: the CPUs this process may use.
        timeout_s: How long one clip may take.

    Attributes:
        processes: How many there are.
    """

    def __init__(
        self, processes: int | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.processes = count = processes or usable_cpus()
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._workers = [_Worker() for _ in range(count)]
        self._idle: LifoQueue[_Worker] = LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._closed = threading.Event()
        _count_pools(1)

    def probe(self, path: Path) -> Future[ProbedClip]:
        """`earwitness.audio.probe.probe`, in a worker."""
        return self._threads.submit(self._run, Stage.VALIDATE, probing.probe, path)

    def decode(self, path: Path, destination: Path, policy: AudioSettings) -> Future[ClipFacts]:
        """`earwitness.audio.decode.decode`, in a worker."""
        job = partial(self._run, Stage.DECODE, decoding.decode)
        return self._threads.submit(job, path, destination, policy)

    def probe_each(self, paths: Sequence[Path]) -> Future[list[ProbedClip | Rejection]]:
        """`probe` of several clips in one worker; rejections come in the place of results."""
        many = [(path,) for path in paths]
        return self._threads.submit(self._run_each, Stage.VALIDATE, probing.probe, many)

    def decode_each(
        self, files: Sequence[tuple[Path, Path]], policy: AudioSettings
    ) -> Future[list[ClipFacts | Rejection]]:
        """`decode` of several clips in one worker, each with its destination; likewise."""
        many = [(path, destination, policy) for path, destination in files]
        return self._threads.submit(self._run_each, Stage.DECODE, decoding.decode, many)

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Any importable function, in a worker, under the same protection."""
        return self._threads.submit(self._run, Stage.DECODE, function, *arguments)

    def submit_each(
        self, function: Callable[..., T], many: Sequence[tuple[Any, ...]]
    ) -> Future[list[T | Rejection]]:
        """Any importable function, once for each of several clips, in one worker."""
        return self._threads.submit(self._run_each, Stage.DECODE, function, many)

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

    def _run_each(
        self, stage: Stage, function: Callable[..., T], many: Sequence[tuple[Any, ...]]
    ) -> list[T | Rejection]:
        found: list[T | Rejection] = []
        while left := many[len(found) :]:
            worker = self._idle.get()
            try:
                found += self._ask(worker, stage, call_each, (function, left, _SEVERAL_S))
                continue
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001, S110 - one of them: each is tried again alone
                pass
            finally:
                self._idle.put(worker)
            found += [self._run_alone(stage, function, arguments) for arguments in left]
        return found

    def _run_alone(
        self, stage: Stage, function: Callable[..., T], arguments: tuple[Any, ...]
    ) -> T | Rejection:
        try:
            return self._run(stage, function, *arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this clip alone
            return rejection_of(error, stage, f"the clip in {arguments[0]}")

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
            process = ForkServerProcess(target=serve, args=(theirs,), daemon=True)
            with _launching, _main_hidden(), _interrupt_blocked():
                context.set_forkserver_preload(["earwitness.audio.preload"])
                _make_socket_folder()
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


def _make_socket_folder() -> None:
    """Have the fork server listen in a folder of ours: a kill leaves it to the next sweep.

    multiprocessing's own folder (`pymp-…`) bears no sign of whether its owner lives.
    """
    global _sockets
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
    if config.get("tempdir") is not None:
        return
    folder, lock = make_scratch(temporary_root())
    if not takes_sockets(folder):
        remove_scratch(folder)
        lock.close()
        return
    # no public way to name it
    config["tempdir"], _sockets = str(folder), (folder, lock)


def _count_pools(change: int) -> None:
    """Stop the fork server with the last pool: nothing stays behind."""
    global _open_pools, _sockets  # noqa: PLW0603 - the fork server is one per process
    with _launching:
        _open_pools += change
        if _open_pools:
            return
        # no public way to stop it; it starts again by itself when needed
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # noqa: SLF001
        if _sockets is not None:
            (folder, lock), _sockets = _sockets, None
            multiprocessing.current_process()._config["tempdir"] = None  # type: ignore[attr-defined]  # noqa: SLF001
            remove_scratch(folder)
            lock.close()
