"""`earwitness gc`: remove old builds, and what of the cache nobody uses any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from cli.status import Where  # noqa: TC001 - typer reads the annotation

if TYPE_CHECKING:
    from earwitness.build.gc import Garbage, OldSegments

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

_HOUR_S = 3600


@app.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
def gc(
    output: Where,
    *,
    keep: Annotated[
        int, typer.Option(min=1, help="How many published builds stay, newest first.", metavar="N")
    ] = 3,
    unpublished_after_h: Annotated[
        float,
        typer.Option(
            min=0,
            help="An unpublished build that a later published one has overtaken goes when nothing "
            "in it has changed for this many hours.",
        ),
    ] = 24,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, remove nothing.")
    ] = False,
) -> None:
    """Remove old builds of OUTPUT, and cached answers that no build left uses.

    The build latest.json names always stays, and any that somebody works on. Builds that stay
    load as before, and building their manifests again asks nothing.
    """
    from cli.live import View
    from cli.tables import output as console
    from earwitness.build.gc import Listener, find_garbage, remove_garbage

    with View() as view:
        view.busy("reading what builds use")
        found = find_garbage(
            output,
            keep=keep,
            unpublished_after_s=unpublished_after_h * _HOUR_S,
            listener=Listener(lambda rows: view.count("rows read", rows), view.advance),
        )
    _print(found)
    if dry_run:
        console().print("nothing was removed (--dry-run)")
        return
    with View() as view:
        whole = remove_garbage(found, view.busy)
    if not whole:
        console().print("a build came back into use meanwhile: it stays, and so does the cache")


def _print(found: Garbage) -> None:
    from cli.tables import print_table

    lines = [
        (f"build {build.id}", f"goes, {decimal(build.bytes)}: {build.why}")
        for build in found.builds
    ]
    lines += [
        ("builds", f"{len(found.builds):,} of {found.builds_of:,} go"),
        ("outcome segments", _segments(found.outcomes, found.note)),
        ("clip segments", _segments(found.clips, found.note)),
        ("freed", decimal(found.bytes)),
    ]
    print_table(lines)


def _segments(old: OldSegments, note: str) -> str:
    if note:
        return f"all stay: {note}"
    size = f", {decimal(old.bytes)}" if old.names else ""
    return f"{len(old.names):,} of {old.of:,} go{size}"
