"""What a running build shows: progress on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, SpinnerColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from cli.terminal import Terminal
from earwitness.escaping import counted, printable
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
    from collections.abc import Callable, Iterator

    from rich.console import Console, ConsoleOptions
    from rich.progress import Task, TaskID

    from earwitness.progress import Event

_PLAIN_EVERY_S = 10.0
_SPEED_WINDOW_S = 30.0
_BAR_WIDTH = 24
_GAP = 2
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

    def in_words(self) -> str:
        """The counts, and how full the engine is."""
        words = f"{self.generated:,} generated, {self.reused:,} reused, {self.rejected:,} rejected"
        return words if self.load is None else f"{words}; engine {self.load:.0%} full"


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
            self.say(f"{self.tally.done:,} of {counted(self.tally.rows, 'row')}")

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
            size = f"{counted(event.rows, 'row')} in {counted(event.shards, 'shard')}"
            known = "continued" if event.resumed else "new"
            self.busy("")
            self.say(f"build {event.build} ({known}): {size}")
        elif isinstance(event, EngineStarting):
            self.say(f"starting the engine for {event.model}; its output goes to")
            self.say(f"  {event.log}")
            self.busy("starting the engine")
        elif isinstance(event, EngineReady):
            self.busy("")
            self.say(f"the engine is ready after {event.seconds:.0f} s")
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
            rows = counted(tally.rows, "row")
            self.say(f"{tally.done:,} of {rows} ({share:.0%}): {tally.in_words()}")

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < _PLAIN_EVERY_S:
            return False
        self._last_line = now
        return True


class _Bars:
    """The live part of a terminal: one line for rows, one for what is waited for."""

    def __init__(self, console: Console) -> None:
        self._rows = Progress(
            _RowsLine(),
            console=console,
            speed_estimate_period=_SPEED_WINDOW_S,
            transient=True,
        )
        self._wait = Progress(
            SpinnerColumn(), _WaitLine(table_column=Column(no_wrap=True)), console=console
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
            self._row_task = self._rows.add_task(what, total=tally.rows, tally=None, moved=0.0)
        if self._row_task is not None:
            now = time.monotonic()
            self._rows.update(self._row_task, completed=done, tally=tally, moved=now)


class _WaitLine(ProgressColumn):
    """What is waited for, after the seconds that it has taken so far."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.elapsed or 0.0:.0f} s  {task.description}")


class _RowsLine(ProgressColumn):
    """Progress in one line that never wraps: what does not fit is left out, least needed first."""

    def render(self, task: Task) -> Fitting:
        """The line, to be fitted to the terminal's width."""
        total = int(task.total or 0)
        tally: Tally | None = task.fields["tally"]
        bar = ProgressBar(total=total or 1, completed=task.completed, width=_BAR_WIDTH)
        parts: list[_Part] = [
            _Part(0, task.description),
            _Part(6, bar, _BAR_WIDTH),
            _Part(0, f"{int(task.completed):,}/{total:,}"),
            _Part(1, f"{task.percentage:.0f}%"),
            *_pace(task),
        ]
        if tally is not None and tally.done:
            parts += [
                _Part(7, f"{tally.generated:,} generated"),
                _Part(8, f"{tally.reused:,} reused"),
                _Part(3, f"{tally.rejected:,} rejected"),
            ]
            if tally.load is not None:
                parts.append(_Part(5, f"engine {tally.load:.0%} full"))
        return Fitting(parts)


def _pace(task: Task) -> list[_Part]:
    """Rows a second, and the time left at that rate."""
    quiet_s = time.monotonic() - float(task.fields["moved"])
    if not task.speed or task.finished or quiet_s > _QUIET_S:
        return []
    left = int(task.time_remaining or 0)
    hours, rest = divmod(left, 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}"
    return [_Part(4, f"{task.speed:,.1f}/s", style="cyan"), _Part(2, f"{clock} left", style="cyan")]


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the progress line.

    Attributes:
        drop: Parts with the highest number are left out first; 0: never.
        what: A text, or something that draws itself.
        width: In columns. Default: the text's.
        style: The text's.
    """

    drop: int
    what: str | ProgressBar
    width: int = 0
    style: str = ""

    @property
    def columns(self) -> int:
        """Columns that it takes on the terminal."""
        return self.width or cell_len(str(self.what))


@dataclass(frozen=True, slots=True)
class Fitting:
    """Parts side by side, as many of them as the terminal has room for.

    Attributes:
        parts: In the order they are shown in.
    """

    parts: list[_Part]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """Draw the parts that fit."""
        kept = list(self.parts)
        while sum(part.columns + _GAP for part in kept) - _GAP > options.max_width:
            least = max(kept, key=lambda part: part.drop)
            if not least.drop:
                break
            kept.remove(least)
        grid = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        shown: list[Any] = []
        for part in kept:
            grid.add_column(no_wrap=True)
            text = isinstance(part.what, str)
            shown.append(Text(str(part.what), style=part.style) if text else part.what)
        grid.add_row(*shown)
        yield grid

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        """As wide as the terminal allows."""
        return Measurement(1, options.max_width)


class _Warnings(logging.Handler):
    """Earwitness's own warnings, as lines."""

    def __init__(self, view: View) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        self._view.say(f"warning: {record.getMessage()}", style="yellow")
