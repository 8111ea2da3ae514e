"""What a build says while it runs, where there is no terminal and where there is one."""

from __future__ import annotations

import functools
import io
import logging
import re
import time

import pytest
from rich.console import Console

from cli.live import View
from earwitness.progress import (
    Advanced,
    EngineLoad,
    EngineReady,
    EngineStarting,
    Planned,
    Planning,
    Published,
    tell,
)


def told(*, terminal: bool) -> tuple[str, View]:
    out = io.StringIO()
    view = View(Console(file=out, force_terminal=terminal, width=120, highlight=False))
    with view:
        tell(Planning(5_000))
        tell(Planned("night-1", 12_000, 2, resumed=True))
        tell(EngineStarting("some-model", "/tmp/engine.log"))
        tell(EngineReady(41.2))
        tell(EngineLoad(0.934))
        tell(Advanced(generated=7, reused=2, rejected=1))
        logging.getLogger("earwitness.engine").warning("the engine died")
        tell(Published("night-1"))
    tell(Advanced(generated=1))
    return out.getvalue(), view


def test_without_a_terminal_it_says_plain_lines():
    text, _ = told(terminal=False)
    assert "\x1b" not in text
    assert "build night-1 (continued): 12,000 rows in 2 shards" in text
    assert "starting the engine for some-model; its output goes to\n  /tmp/engine.log\n" in text
    assert "the engine is ready after 41 s" in text
    assert "warning: the engine died" in text


def test_on_a_terminal_the_bar_counts_rows():
    text, _ = told(terminal=True)
    assert "7 generated  2 reused  1 rejected" in text


def test_beside_the_rows_stands_how_full_the_engine_is():
    text, _ = told(terminal=True)
    assert "1 rejected  engine 93% full" in text


@functools.cache
def shown(width: int, log: str = "/tmp/engine.log") -> list[str]:
    """What stands on a terminal of so many columns, line by line, without its styles."""
    out = io.StringIO()
    with View(Console(file=out, force_terminal=True, width=width, highlight=False)) as view:
        tell(EngineStarting("some-model", log))
        view.busy("starting the engine")
        time.sleep(0.3)
        tell(EngineReady(41.2))
        tell(Planned("night-1", 1_200_000, 60, resumed=False))
        tell(EngineLoad(0.934))
        for _ in range(3):
            tell(Advanced(generated=100_000, reused=20_000, rejected=10_000))
            time.sleep(0.15)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain)]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_progress_stays_in_one_line_with_the_count_and_share(width: int):
    lines = [line for line in shown(width) if line.startswith("rows ")]
    assert lines
    assert max(map(len, lines)) <= width
    assert any("390,000/1,200,000" in line for line in lines)
    assert all("%" in line for line in lines if width >= 40)


def test_a_terminal_of_60_columns_has_room_for_the_time_left_and_rejections():
    (*_, last) = [line for line in shown(60) if line.startswith("rows ") and "left" in line]
    assert "30,000 rejected" in last


def test_an_engine_that_starts_is_shown_with_its_seconds_and_its_whole_log_path():
    log = "/" + "/".join(["a-long-folder-name"] * 8) + "/engine.log"
    lines = shown(60, log)
    assert f"  {log}" in lines
    assert any(re.fullmatch(r"\S 0 s  starting the engine", line) for line in lines)


def test_it_listens_only_while_it_is_open():
    _, view = told(terminal=False)
    assert (view.tally.done, view.tally.generated) == (10, 7)


def test_rows_told_twice_never_make_more_than_there_are():
    out = io.StringIO()
    with View(Console(file=out)) as view:
        tell(Planned("b", 3, 1, resumed=False))
        tell(Advanced(generated=3))
        tell(Advanced(generated=2))
    assert view.tally.done == 3


def test_a_view_that_nobody_reads_any_more_falls_silent_and_harms_nobody():
    view = View()
    view.console.file = _Nobody()
    view.say("unheard")
    view.hear(EngineReady(1.0))
    assert view.console.quiet


class _Nobody(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError
