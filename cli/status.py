"""`earwitness status`: how far a build is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.help import Command
from earwitness.escaping import listed

if TYPE_CHECKING:
    from earwitness.builds.show import Status

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_NAMED_SHARDS = 10
_TOP_REASONS = 10

Where = Annotated[
    str, typer.Argument(help="The OUTPUT that was given to earwitness build.", metavar="OUTPUT")
]
BuildId = Annotated[
    str | None, typer.Option("--build", help="Id of a build. Default: the newest.", metavar="ID")
]


@app.command(
    cls=Command, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
def status(output: Where, *, build: BuildId = None) -> None:
    """Show how far a build of OUTPUT is: rows, unfinished shards, most frequent rejections."""
    from cli.tables import print_table, reason_lines
    from earwitness.builds.account import span
    from earwitness.builds.choose import existing_build
    from earwitness.builds.show import build_status

    found = existing_build(output, build)
    now = build_status(found)
    counts = now.counts
    share = f" ({counts.rows / now.rows:.0%})" if now.rows else ""
    lines = [
        ("build", found.id),
        ("state", _state(now)),
        ("manifest", found.plan.manifest.uri),
        ("model", str(found.plan.model["name"])),
        ("shards", f"{now.done:,} of {now.shards:,} done"),
        *([("  running or stopped", _numbers(now.started))] if now.started else []),
        *([("  not started", _numbers(now.waiting))] if now.waiting else []),
        ("rows", f"{counts.rows:,} of {now.rows:,} answered or rejected{share}"),
        ("answered", f"{counts.answered:,}"),
        ("  generated", f"{counts.generated:,}"),
        ("  reused", f"{counts.reused:,}"),
        ("rejected", f"{counts.rejected:,}"),
        *reason_lines(counts.reasons)[:_TOP_REASONS],
        ("audio", span(counts.audio_s)),
    ]
    print_table(lines)


def _state(now: Status) -> str:
    if now.published:
        return "published"
    if now.holder:
        return f"running on {now.holder}"
    if now.done == now.shards:
        return "all shards are done, but it is not published: run the same command again"
    return "stopped: run the same command or earwitness retry to continue"


def _numbers(shards: tuple[int, ...]) -> str:
    return f"{len(shards):,} (shard {listed(map(str, shards), _NAMED_SHARDS)})"
