"""Owns a server's processes, so that none of them outlives its owner.

vLLM is a tree of processes, and killing its API server leaves the rest alive, holding the GPU. So
a server is started by a guardian: a small process of its own session that starts the command in
a process group, and watches two things. When the pipe from its owner reads end of file (the owner
stopped it, or died, however it died), or when the command's first process dies, it ends every
process that descends from it, and exits with the command's status once none is left.

Standard library only, and run by path: it starts in milliseconds and imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType
    from typing import IO

GRACE_S = 5.0
"""How long processes told to end may take before they are killed."""
PASSED_ON_AS_SIGTERM = signal.SIGUSR1
"""A guardian's own SIGTERM ends everything; this one is for the command's first process alone."""
_TICK_S = 0.2
_KILL_LIMIT_S = 60.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_COMMAND_NOT_FOUND = 127
_OWNER_ONLY = 0o077


class Guarded:
    """A command under a guardian, seen from its owner.

    Args:
        guardian: The guardian's process.
        lifeline: Our end of the pipe; closing it ends everything.
    """

    def __init__(self, guardian: subprocess.Popen[bytes], lifeline: int) -> None:
        self._guardian = guardian
        self._lifeline: int | None = lifeline

    @property
    def pid(self) -> int:
        """The guardian's process id, also the id of its session."""
        return self._guardian.pid

    @property
    def returncode(self) -> int | None:
        """The command's exit status (128 + n: killed by signal n); None while it runs."""
        return self._guardian.poll()

    def alive(self) -> bool:
        """True until the command and all its processes are gone."""
        return self._guardian.poll() is None

    def ask_to_end(self) -> None:
        """Sends the command's first process SIGTERM, and leaves it all the time it wants."""
        with contextlib.suppress(ProcessLookupError):
            self._guardian.send_signal(PASSED_ON_AS_SIGTERM)

    def wait(self) -> int:
        """Waits until the command and all its processes are gone.

        Returns:
            The command's exit status.
        """
        return self._guardian.wait()

    def stop(self) -> int:
        """Ends the command and waits until nothing of it is left.

        Returns:
            The command's exit status.
        """
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        try:
            status = self._guardian.wait(GRACE_S + _KILL_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            status = self._guardian.wait()
        # only a guardian that was itself killed leaves anything here
        _kill_all(lambda: _session(self.pid))
        return status


def start_guarded(
    command: Sequence[str],
    *,
    log_path: Path | None,
    env: Mapping[str, str] | None = None,
    private: bool = False,
) -> Guarded:
    """Starts a command that will not outlive this process.

    Args:
        command: The command, word by word.
        log_path: Its output is appended here, for its owner's eyes alone; None: it goes where this
            process's own goes.
        env: Added to this process's environment.
        private: What it creates (files, sockets) is nobody else's to open.

    Returns:
        A handle to watch and stop it.
    """
    theirs, ours = os.pipe()
    try:
        with _output(log_path) as log:
            guardian = subprocess.Popen(
                [*guard_words(theirs), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                pass_fds=(theirs,),
                start_new_session=True,
                umask=_OWNER_ONLY if private else -1,
            )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return Guarded(guardian, ours)


def guard_words(lifeline: int) -> list[str]:
    """What to put before a command that somebody else starts, so that nothing of it stays.

    Args:
        lifeline: A file descriptor the command gets, whose end of file ends it all (0: the pipe
            that is its standard input).
    """
    return [sys.executable, "-I", "-S", __file__, str(lifeline)]


@contextlib.contextmanager
def _output(log_path: Path | None) -> Iterator[IO[bytes] | None]:
    if log_path is None:
        yield None
        return
    log_path.parent.mkdir(parents=True, exist_ok=True)
    # in a folder that others may write to, a link of theirs could lead anywhere
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(log_path, flags, 0o600), "ab") as log:
        os.fchmod(log.fileno(), 0o600)
        yield log


class _Processes:
    """All living processes, read from /proc once."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}
        self.session: dict[int, int] = {}
        for entry in os.listdir("/proc"):  # noqa: PTH208 - names only, and often
            if not entry.isdigit():
                continue
            # a process may end while it is being read
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
                state, parent, _group, session = stat.rpartition(")")[2].split()[:4]
                if state not in "ZX":
                    self.parent[int(entry)] = int(parent)
                    self.session[int(entry)] = int(session)


def _session(leader: int) -> set[int]:
    found = _Processes().session
    return {pid for pid, session in found.items() if session == leader and pid != os.getpid()}


def descendants(ancestor: int) -> set[int]:
    """All living processes that come from one.

    Args:
        ancestor: Its process id.

    Returns:
        Their ids, without its own.
    """
    children: dict[int, list[int]] = {}
    for pid, parent in _Processes().parent.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [ancestor]
    while todo:
        new = [pid for pid in children.get(todo.pop(), ()) if pid not in found]
        found.update(new)
        todo.extend(new)
    return found


def _signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _kill_all(find: _Finder, reap: _Reaper = lambda: None) -> bool:
    """Kills until `find` finds nothing; False when something will not die (a stuck driver)."""
    limit = time.monotonic() + _KILL_LIMIT_S
    pause_s = 0.01
    while True:
        reap()
        left = find()
        if not left:
            return True
        if time.monotonic() > limit:
            return False
        _signal_all(left, signal.SIGKILL)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _TICK_S)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class _Guardian:
    """The guardian process itself.

    Args:
        lifeline: The pipe whose end of file says that the owner is gone.
        command: What to start.
    """

    def __init__(self, lifeline: int, command: list[str]) -> None:
        self._lifeline = lifeline
        self._status: int | None = None
        self._told_to_stop = False
        os.set_inheritable(lifeline, False)  # noqa: FBT003 - the standard library's signature
        # orphans among the descendants become our children: none can hide from us
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # kept: an object given up would take the exit status with it, when that is there already
        self._leader = subprocess.Popen(
            command,
            process_group=0,
            preexec_fn=_prepare_child,  # noqa: PLW1509 - this process has one thread
            stdin=subprocess.DEVNULL,
        )
        signal.signal(PASSED_ON_AS_SIGTERM, self._pass_on)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._told_to_stop = True

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        if self._status is None:
            _signal_all({self._leader.pid}, signal.SIGTERM)

    def run(self) -> int:
        """Watches until the end, then cleans up; returns the command's exit status."""
        while self._status is None and not self._owner_gone():
            self._reap()
        if self._status is None:
            self._end_gracefully()
        clean = _kill_all(lambda: descendants(os.getpid()), self._reap)
        self._reap()
        if not clean:
            sys.stderr.write("guardian: a process could not be killed\n")
        return 1 if self._status is None else self._status

    def _owner_gone(self) -> bool:
        readable, _, _ = select.select([self._lifeline], [], [], _TICK_S)
        return self._told_to_stop or bool(readable)

    def _end_gracefully(self) -> None:
        limit = time.monotonic() + GRACE_S
        _signal_all(descendants(os.getpid()), signal.SIGTERM)
        while time.monotonic() < limit:
            self._reap()
            if not descendants(os.getpid()):
                return
            time.sleep(_TICK_S / 2)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._leader.pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code


def _prepare_child() -> None:
    # a guardian killed outright takes at least the command's first process with it
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _main(argv: list[str]) -> int:
    try:
        guardian = _Guardian(int(argv[0]), argv[1:])
    except OSError as error:
        sys.stderr.write(f"guardian: cannot start {argv[1]}: {error.strerror}\n")
        return _COMMAND_NOT_FOUND
    return guardian.run()


if TYPE_CHECKING:
    from collections.abc import Callable

    _Finder = Callable[[], set[int]]
    _Reaper = Callable[[], None]

if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
