"""From command line and settings file to `BuildSettings`, with errors that name the option."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

import typer
import yaml
from pydantic import BaseModel, ValidationError

from cli.options import flag_of
from earwitness.escaping import printable
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def make_settings(
    given: dict[str, Any], config: Path | None, defaults: dict[str, Any] | None = None
) -> BuildSettings:
    """Settings from what was given; the command line wins, then the file, then the defaults.

    Args:
        given: From the command line, nested like the settings.
        config: A settings file, nested in the same way.
        defaults: For what neither says.

    Returns:
        The settings. Where they are wrong, each fault is told in a line and the program ends.
    """
    from_file = _read(config) if config is not None else {}
    merged = merge(merge(defaults or {}, from_file), given)
    for name in ("manifest", "output"):
        if merged.get(name) is None:
            usage([f"{name.upper()} is missing"])
    try:
        return BuildSettings.model_validate(merged)
    except ValidationError as error:
        usage(_lines(error, given, config))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two nested dictionaries as one; overriding one nested value keeps the others."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[name] = merge(below, value)
        else:
            merged[name] = value
    return merged


def usage(lines: Iterable[str]) -> NoReturn:
    """Say what is wrong with the command and end with status 2."""
    for line in lines:
        sys.stderr.write(f"error: {printable(line)}\n")
    raise typer.Exit(2)


def _read(config: Path) -> dict[str, Any]:
    found: Any = None
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        usage([f"--config {config}: {why}"])
    except yaml.YAMLError as error:
        usage([f"--config {config}: {' '.join(str(error).split())}"])
    if found is None:
        return {}
    if not isinstance(found, dict):
        usage([f"--config {config}: settings are names with values, not a {type(found).__name__}"])
    # a section whose lines are all commented out is there, with nothing in it
    return {name: value for name, value in found.items() if value is not None}


def _lines(error: ValidationError, given: dict[str, Any], config: Path | None) -> list[str]:
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False):
        path = tuple(word for word in one["loc"] if isinstance(word, str))
        dotted = ".".join(path)
        on_line = _given(given, path)
        where = flag_of(path) if on_line or config is None else f"{dotted} in {config}"
        if one["type"] == "extra_forbidden":
            lines[dotted] = f"{where}: there is no such setting{_close(path)}"
            continue
        message = one["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        told = f"{where}: {message}, not {one['input']!r}" if path else message
        # of a list, the fault of its first bad item says enough
        lines.setdefault(dotted, told)
    return list(lines.values())


def _given(given: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(given, dict) or name not in given:
            return False
        given = given[name]
    return True


def _close(path: tuple[str, ...]) -> str:
    model: Any = BuildSettings
    for name in path[:-1]:
        field = model.model_fields.get(name)
        if field is None or not issubclass(field.annotation, BaseModel):
            return ""
        model = field.annotation
    close = get_close_matches(path[-1], model.model_fields, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
