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

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the signal's number."""

_COMMANDS = {
    "init": ("[DIR]", "Write a settings file and a sample manifest"),
    "check": ("MANIFEST [OUTPUT]", "Say what a build would reject; needs no GPU"),
    "build": ("MANIFEST OUTPUT", "Build a dataset, or continue one"),
    "status": ("OUTPUT", "Show how far a build is"),
    "show": ("OUTPUT [ROW]", "Show a build, or one row of it"),
    "retry": ("OUTPUT", "Run again what failed or was rejected"),
    "gc": ("OUTPUT", "Remove old builds and unused cached answers"),
    "worker": ("--pool NAME", "Run on a GPU machine, for a work pool"),
}


class _Commands(TyperGroup):
    """Lists commands by name alone; imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            from cli.usage import no_such_command

            raise no_such_command(args[0], _COMMANDS, ctx)
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
    """Turn audio into question-answer datasets."""


for _name, (_, _does) in _COMMANDS.items():
    # placeholders; `_Commands` puts the real ones in their places
    app.command(_name, help=_does)(lambda: None)


def main(words: list[str] | None = None) -> None:
    """Run the command line; an error is one clear line, never a traceback.

    Args:
        words: The command, without the program's name. Default: the process's own.
    """
    try:
        status = app(words, prog_name="earwitness", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except Exception as error:
        # the last place that could still tell a person
        if hasattr(error, "format_message"):
            from cli.usage import show_usage_error

            sys.exit(show_usage_error(error))
        if os.environ.get(DEBUG_VARIABLE):
            raise
        sys.stderr.write(f"{_told(error)}\n")
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _told(error: Exception) -> str:
    from earwitness.addresses import without_secrets
    from earwitness.errors import EarwitnessError, disk_error, told_os_error
    from earwitness.escaping import printable

    if isinstance(error, EarwitnessError):
        return f"error: {printable(error, lines=True)}"
    if isinstance(error, OSError):
        full = disk_error(error, str(error.filename or "a disk"))
        return f"error: {printable(without_secrets(str(full or told_os_error(error))), lines=True)}"
    text = printable(without_secrets(" ".join(str(error).split())))
    hint = f"set {DEBUG_VARIABLE}=1 and run again to see where"
    return f"error: unexpected {type(error).__name__}: {text} ({hint})"


if __name__ == "__main__":
    main()
