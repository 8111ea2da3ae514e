"""`earwitness gc`: remove old builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from cli.help import Command
from cli.status import Where  # noqa: TC001 - typer reads the annotation

if TYPE_CHECKING:
    from earwitness.builds.gc import Garbage

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_HOUR_S = 3600


@app.command(
    cls=Command, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
def gc(
    output: Where,
    *,
    keep: Annotated[
        int,
        typer.Option(
            min=1,
            help="Keep this many published builds of each name, the newest ones. Default: 3.",
            metavar="N",
            show_default=False,
        ),
    ] = 3,
    unpublished_after_h: Annotated[
        float,
        typer.Option(
            min=0,
            help="Remove an unpublished build if a newer build is published and nothing in it has "
            "changed for this many hours. Default: 24.",
            show_default=False,
        ),
    ] = 24,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, without removing it.")
    ] = False,
) -> None:
    """Remove old builds of OUTPUT with the answers that only they used.

    The build that latest.json names is never removed, nor a build that is running, nor one that a
    running build reuses. The remaining builds load as before, and building the newest one's
    manifest again asks the engine nothing.
    """
    from cli.live import View
    from cli.tables import output as console
    from earwitness.builds.gc import find_garbage, remove_garbage

    with View() as view:
        view.busy("looking at the builds")
        after_s = unpublished_after_h * _HOUR_S
        found = find_garbage(output, keep=keep, unpublished_after_s=after_s)
    _print(found)
    if dry_run:
        console().print("nothing was removed (--dry-run)")
        return
    with View() as view:
        whole = remove_garbage(found, view.busy)
    if not whole:
        console().print("a build was started again meanwhile, and it was kept")


def _print(found: Garbage) -> None:
    from cli.tables import print_table

    lines = [
        (f"build {build.id}", f"to be removed, {decimal(build.bytes)}: {build.why}")
        for build in found.builds
    ]
    lines += [
        ("builds", f"{len(found.builds):,} of {found.builds_of:,} to be removed"),
        ("disk space freed", decimal(found.bytes)),
    ]
    print_table(lines)
