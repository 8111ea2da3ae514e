"""`earwitness status`: how far a build is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from earwitness.build.status import Status

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

_NAMED_SHARDS = 10
_TOP_REASONS = 10

Where = Annotated[
    str, typer.Argument(help="Folder or URL given to earwitness build.", metavar="OUTPUT")
]
BuildId = Annotated[
    str | None, typer.Option("--build", help="A build's id. Default: the newest.", metavar="ID")
]


@app.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
def status(output: Where, *, build: BuildId = None) -> None:
    """Say how far a build of OUTPUT is: rows, unfinished shards, top rejections."""
    from cli.tables import print_table, reason_lines
    from earwitness.build.account_told import span
    from earwitness.build.choose import existing_build
    from earwitness.build.status import build_status

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
        *([("  under way", _numbers(now.started))] if now.started else []),
        *([("  not begun", _numbers(now.waiting))] if now.waiting else []),
        ("rows", f"{counts.rows:,} of {now.rows:,} decided{share}"),
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
        return f"being built by {now.holder}"
    if now.done == now.shards:
        return "not published (all shards are done: the same command says why, or publishes)"
    return "stopped; the same command, or earwitness retry, continues"


def _numbers(shards: tuple[int, ...]) -> str:
    listed = ", ".join(str(number) for number in shards[:_NAMED_SHARDS])
    more = len(shards) - _NAMED_SHARDS
    return f"{len(shards):,} (shard {listed}{f' and {more:,} more' if more > 0 else ''})"
