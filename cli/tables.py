"""What commands print when they are done: tables and rows, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from cli.terminal import Terminal
from earwitness.builds.account import account_lines, span
from earwitness.builds.show import all_rows, question_of, read_planned
from earwitness.escaping import counted, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from earwitness.builds.layout import Build, Counts
    from earwitness.builds.show import RowResult
    from earwitness.progress import Closed
    from earwitness.records import PlannedRow


def output() -> Terminal:
    """Standard output; long lines stay whole where it is no terminal."""
    return Terminal()


def print_summary(build: Build, counts: Counts, closed: Closed) -> None:
    """The closing table of a build."""
    lines = count_lines(counts)
    lines += account_lines(build.facts().get("account"))
    requests = counted(closed.engine_requests, "engine request")
    lines.append(("this run", f"{requests}, {counted(closed.downloads, 'download')}"))
    print_table(lines)
    console = output()
    console.print(f"data: {build.store.uri('data')}", soft_wrap=True)
    if counts.rejected:
        console.print(f"rejected: {build.store.uri('rejected')}", soft_wrap=True)


def count_lines(counts: Counts) -> list[tuple[str, str]]:
    """A build's ledger."""
    lines: list[tuple[str, str]] = [
        ("rows", f"{counts.rows:,}"),
        ("answered", f"{counts.answered:,}"),
        ("  generated", f"{counts.generated:,}"),
        ("  reused", f"{counts.reused:,}"),
    ]
    if counts.cut_by_max_tokens:
        lines.append(("  cut by max_tokens", f"{counts.cut_by_max_tokens:,}"))
    lines.append(("rejected", f"{counts.rejected:,}"))
    lines += reason_lines(counts.reasons)
    lines.append(("audio", span(counts.audio_s)))
    lines.append(
        ("tokens", f"{counts.prompt_tokens:,} in prompts, {counts.completion_tokens:,} in answers")
    )
    return lines


def reason_lines(reasons: dict[str, int]) -> list[tuple[str, str]]:
    """Rejections by reason, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return [(f"  {reason}", f"{count:,}") for reason, count in ordered]


def print_table(lines: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns; long values run on rather than wrap."""
    rows = list(lines)
    width = max((len(name) for name, _ in rows), default=0)
    console = output()
    for name, value in rows:
        line = Text(f"{name:<{width}}  ", style="" if name.startswith(" ") else "bold")
        console.print(line.append(printable(value), style="not bold"), soft_wrap=True)


def print_rows(build: Build) -> None:
    """A line for each answer and each rejection, in row order."""
    console = output()
    planned = read_planned(build)
    for result in all_rows(build):
        console.print(_row_line(next(planned), result), soft_wrap=True)
    console.print()


def _row_line(planned: PlannedRow, result: RowResult) -> Text:
    clips = one_line(", ".join(clip.rpartition("/")[2] for clip in planned.clips))
    line = Text(f"{result.row:>4}  ", style="dim")
    if result.rejection is not None:
        line.append(f"rejected: {result.rejection.reason}", style="red")
        line.append(f"  {one_line(result.rejection.detail)}")
        if clips:
            line.append(f"  ({clips})", style="dim")
        return line
    line.append(f"{clips}: {one_line(question_of(planned.messages))}  ", style="dim")
    line.append(one_line(result.answer or ""))
    return line


def one_line(text: Any) -> str:
    """A text without its line breaks, and with control characters made visible."""
    return printable(" ".join(str(text).split()))
