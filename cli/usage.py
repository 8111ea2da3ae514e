"""What is said of a wrongly typed command: one line with the mistake and the remedy."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from earwitness.addresses import without_secrets
from earwitness.escaping import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

_REASONS = {
    "input should be": "it has to be",
    "input should have": "it has to have",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
    "a valid list": "a list",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "tuple": "it",
    " after validation": "",
}
"""Pydantic's words, and plain ones for them."""


def usage(lines: Iterable[str]) -> NoReturn:
    """Say what is wrong with the command and end with status 2."""
    for line in lines:
        sys.stderr.write(f"error: {printable(without_secrets(line))}\n")
    raise typer.Exit(2)


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """` (did you mean …?)` with the nearest known word; empty where none is near."""
    close = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""


def no_such_command(word: str, known: Iterable[str], ctx: Any) -> Exception:
    """The error for a command that does not exist.

    Args:
        word: What was typed.
        known: The commands.
        ctx: Where it was typed.
    """
    hint = did_you_mean(word, known) or f" (the commands are {', '.join(known)})"
    return typer.BadParameter(f"there is no command {word!r}{hint}", ctx=ctx)


def show_usage_error(error: Any) -> int:
    """Print what the parser of the command line found wrong.

    Args:
        error: Its exception, one with `format_message`.

    Returns:
        The exit status.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return int(error.exit_code)
    ctx = getattr(error, "ctx", None)
    help_ = "" if ctx is None else f"; see {ctx.command_path} --help"
    text = printable(without_secrets(_told(error, ctx)))
    sys.stderr.write(f"error: {text}{help_}\n")
    return int(error.exit_code)


def _told(error: Any, ctx: Any) -> str:
    kind = type(error).__name__
    name = _param_name(error)
    message = str(error.message)
    option = getattr(error, "option_name", "")
    if kind == "NoSuchOption":
        close = did_you_mean(option, _options(ctx))
        vllm = " (flags for vllm serve go after --)" if _takes_vllm_flags(ctx) else ""
        return f"there is no option {option}{close or vllm}"
    if kind == "MissingParameter":
        return f"{name} is missing"
    if name:
        return f"{name}: {_plain(error, message)}"
    if kind == "BadOptionUsage":
        takes = "needs a value after it" if "requires" in message else "takes no value"
        return f"{option} {takes}"
    if "unexpected extra" in message:
        extra = message.rpartition("(")[2].rstrip(")")
        return f"there are more arguments than the command takes: {extra}"
    return message.rstrip(".")


def _param_name(error: Any) -> str:
    """The option or argument that is wrong, as it is typed."""
    param = getattr(error, "param", None)
    if param is None:
        return ""
    if param.param_type_name == "option":
        return str(max(param.opts, key=len))
    return str(param.metavar or param.name.upper())


def _plain(error: Any, message: str) -> str:
    """The parser's reason, with the value that was typed."""
    cause = error.__cause__ or error.__context__
    details = cause.errors()[0] if hasattr(cause, "errors") else {}
    given = f", not {details['input']!r}" if "input" in details else ""
    choices = message.removeprefix("Value error, ").partition(" is not one of ")
    if choices[1]:
        return f"it has to be one of {choices[2].rstrip('.')}, not {choices[0]}"
    return f"{plain_reason(message)}{given}"


def plain_reason(message: str) -> str:
    """Why a value was refused, in plain words.

    Args:
        message: As pydantic words it.
    """
    text = message.removeprefix("Value error, ").rstrip(".")
    text = (text[:1].lower() + text[1:]).partition(", unable to ")[0]
    for theirs, ours in _REASONS.items():
        text = text.replace(theirs, ours)
    return text


def _takes_vllm_flags(ctx: Any) -> bool:
    return ctx is not None and ctx.command.name in {"build", "retry", "worker"}


def _options(ctx: Any) -> list[str]:
    if ctx is None:
        return []
    return [name for param in ctx.command.params for name in (*param.opts, *param.secondary_opts)]
