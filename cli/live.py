"""What a running build shows: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from cli.terminal import Terminal
from earwitness.escaping import printable
from earwitness.progress import (
    Advanced,
    Closed,
    EngineLoad,
    EngineReady,
    EngineStarting,
    Planned,
    Planning,
    Published,
    listen,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import Task, TaskID

    from earwitness.progress import Event

_PLAIN_EVERY_S = 10.0
_SPEED_WINDOW_S = 30.0
_QUIET_S = 10.0
"""After this long without a row (the engine starts, say) an old rate says nothing any more."""


@dataclass(slots=True)
class Tally:
    """Rows so far, and how full the engine was lately, from 0 to 1."""

    rows: int = 0
    generated: int = 0
    reused: int = 0
    rejected: int = 0
    load: float | None = None

    @property
    def done(self) -> int:
        """Rows with an outcome; a shard that is run again may tell some twice."""
        return min(self.rows, self.generated + self.reused + self.rejected)

    def told(self) -> str:
        """The counts in words, and how full the engine is."""
        told = f"{self.generated:,} generated, {self.reused:,} reused, {self.rejected:,} rejected"
        return told if self.load is None else f"{told}; engine {self.load:.0%} full"


class _Console(Terminal):
    """Falls silent when nobody reads it any more; rich's own would end the thread it is used in."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class View:
    """Shows a build's events while it runs; a context manager.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(stderr=True)
        self.tally = Tally()
        self.closed = Closed(0, 0)
        self._lock = threading.Lock()
        self._unlisten: Callable[[], None] = lambda: None
        self._warnings = _Warnings(self)
        self._bars = _Bars(self.console) if self.console.is_terminal else None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        self._unlisten = listen(self.hear)
        logging.getLogger("earwitness").addHandler(self._warnings)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("earwitness").removeHandler(self._warnings)
        self._unlisten()
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print a line above the bars."""
        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def busy(self, text: str) -> None:
        """Say what is being waited for; empty: nothing any more."""
        if self._bars is not None:
            self._bars.busy(text)

    def count(self, what: str, total: int) -> None:
        """Begin to count towards a total."""
        self.tally.rows = total
        if self._bars is not None:
            self._bars.rows(0, self.tally, what)

    def advance(self, rows: int) -> None:
        """Count on."""
        self.tally.generated += rows
        if self._bars is not None:
            self._bars.rows(self.tally.done, None)
        elif self._due():
            self.say(f"{self.tally.done:,} of {self.tally.rows:,} rows")

    def hear(self, event: Event) -> None:
        """Show an event; called from any thread."""
        with self._lock:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Planning):
            self._show_planning(event.rows)
        elif isinstance(event, Planned):
            self.tally.rows = event.rows
            self._last_line = time.monotonic()
            shards = f"{event.shards:,} shard{'s' if event.shards > 1 else ''}"
            known = "continued" if event.resumed else "new"
            self.busy("")
            self.say(f"build {event.build} ({known}): {event.rows:,} rows in {shards}")
        elif isinstance(event, EngineStarting):
            self.busy(f"starting the engine: {event.model} (its output: {event.log})")
            if self._bars is None:
                self.say(f"starting the engine: {event.model} (its output: {event.log})")
        elif isinstance(event, EngineReady):
            self.busy("")
            self.say(f"the engine answers after {event.seconds:.0f} s")
        elif isinstance(event, EngineLoad):
            self.tally.load = event.share
        elif isinstance(event, Advanced):
            self._advance(event)
        elif isinstance(event, Published):
            self._show_rows(final=True)
        elif isinstance(event, Closed):
            self.closed = event

    def _advance(self, event: Advanced) -> None:
        self.tally.generated += event.generated
        self.tally.reused += event.reused
        self.tally.rejected += event.rejected
        self._show_rows()

    def _show_planning(self, rows: int) -> None:
        if self._bars is not None:
            self._bars.busy(f"reading the manifest: {rows:,} rows")
        elif self._due():
            self.say(f"reading the manifest: {rows:,} rows")

    def _show_rows(self, *, final: bool = False) -> None:
        tally = self.tally
        if self._bars is not None:
            self._bars.rows(tally.rows if final else tally.done, tally)
        elif not final and self._due():
            share = tally.done / tally.rows if tally.rows else 0.0
            self.say(f"{tally.done:,} of {tally.rows:,} rows ({share:.0%}): {tally.told()}")

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < _PLAIN_EVERY_S:
            return False
        self._last_line = now
        return True


class _Bars:
    """The live part of a terminal: one bar for rows, one line for what is waited for."""

    def __init__(self, console: Console) -> None:
        self._rows = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            _Rate(),
            TextColumn("{task.fields[told]}", style="dim"),
            console=console,
            speed_estimate_period=_SPEED_WINDOW_S,
            transient=True,
        )
        self._wait = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._live = Live(
            Group(self._wait, self._rows), console=console, refresh_per_second=8, transient=True
        )
        self._row_task: TaskID | None = None
        self._wait_task: TaskID | None = None
        self._waits_for = ""
        self.start, self.stop = self._live.start, self._live.stop

    def busy(self, text: str) -> None:
        what = text.partition(":")[0]
        if self._wait_task is not None:
            if what == self._waits_for:  # the clock goes on where only a number changes
                self._wait.update(self._wait_task, description=text)
                return
            self._wait.remove_task(self._wait_task)
            self._wait_task = None
        self._waits_for = what
        if text:
            self._wait_task = self._wait.add_task(text, total=None)

    def rows(self, done: int, tally: Tally | None, what: str = "rows") -> None:
        if self._row_task is None and tally is not None:
            self._row_task = self._rows.add_task(what, total=tally.rows, told="", moved=0.0)
        if self._row_task is not None:
            told = tally.told() if tally is not None and tally.done else ""
            now = time.monotonic()
            self._rows.update(self._row_task, completed=done, told=told, moved=now)


class _Rate(ProgressColumn):
    """Rows a second, and the time left at that rate."""

    def render(self, task: Task) -> Text:
        quiet_s = time.monotonic() - float(task.fields["moved"])
        if not task.speed or task.finished or quiet_s > _QUIET_S:
            return Text("")
        left = int(task.time_remaining or 0)
        hours, rest = divmod(left, 3600)
        clock = f"{hours}:{rest // 60:02}:{rest % 60:02}"
        return Text(f"{task.speed:,.1f}/s, {clock} left", style="cyan")


class _Warnings(logging.Handler):
    """Earwitness's own warnings, as lines."""

    def __init__(self, view: View) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        self._view.say(f"warning: {record.getMessage()}", style="yellow")
