"""`earwitness`: the commands, and what errors look like.

Commands are listed here and imported only when called, so that `earwitness --help` is instant.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

DEBUG_VARIABLE = "EARWITNESS_DEBUG"
"""Environment variable: show tracebacks."""

_COMMANDS = {
    "init": ("[DIR]", "Write a settings file and a sample manifest"),
    "check": ("MANIFEST [OUTPUT]", "Lint and probe, estimate; no GPU"),
    "build": ("MANIFEST OUTPUT", "Build and publish; resumes by itself"),
    "status": ("OUTPUT", "Progress, unfinished shards, top rejections"),
    "show": ("OUTPUT [ROW]", "A build and what it cost, or one row"),
    "retry": ("OUTPUT", "Run only what failed, or rejections with --reason"),
    "gc": ("OUTPUT", "Remove old builds, and cached answers nobody uses"),
    "worker": ("--pool NAME", "Take runs from a pool; lends them an engine"),
}


class _Commands(TyperGroup):
    """Lists commands by name alone; imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        return name, typer.main.get_command(importlib.import_module(f"cli.{name}").app), rest

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(f"{name:<7} {takes}", does) for name, (takes, does) in _COMMANDS.items()]
            )


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # plain help here: loading rich would take longer than everything else
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the flag's value
    if wanted:
        from earwitness import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _earwitness(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Audio in, question-answer dataset out, every night, no row lost."""


for _name, (_, _does) in _COMMANDS.items():
    # placeholders; `_Commands` puts the real ones in their places
    app.command(_name, help=_does)(lambda: None)


def main() -> None:
    """Run the command line; errors are one clear line, never a traceback."""
    try:
        app(prog_name="earwitness")
    except Exception as error:
        # the last place that could still tell a person
        if os.environ.get(DEBUG_VARIABLE):
            raise
        sys.stderr.write(f"{_told(error)}\n")
        sys.exit(1)


def _told(error: Exception) -> str:
    from earwitness.addresses import without_secrets
    from earwitness.errors import EarwitnessError, disk_error
    from earwitness.escaping import printable

    if isinstance(error, EarwitnessError):
        return f"error: {printable(error, lines=True)}"
    if isinstance(error, OSError) and (full := disk_error(error, str(error.filename or "a disk"))):
        return f"error: {printable(full, lines=True)}"
    known = isinstance(error, OSError)
    kind = "error" if known else "unexpected error"
    hint = "" if known else f" ({DEBUG_VARIABLE}=1 shows where)"
    text = " ".join(str(error).split())
    return f"{kind}: {type(error).__name__}: {printable(without_secrets(text))}{hint}"


if __name__ == "__main__":
    main()
