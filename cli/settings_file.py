"""From command line and settings file to `BuildSettings`, with errors that name the option."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from cli.options import all_options, flag_of
from cli.usage import did_you_mean, plain_reason, usage
from earwitness.errors import close_name, told_os_error
from earwitness.escaping import printable
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.settings import EngineSettings

_SHOWN_CHARS = 80
_YAML_PROBLEMS = {
    "'\\t'": "a tab stands where YAML wants spaces",
    "mapping values are not allowed": "a colon stands inside a value; put the value in quotes",
    "could not find expected ':'": "a name has no colon after it",
    "did not find expected ',' or": "a list or a pair of brackets is not closed",
    "expected the node content": "a list or a pair of brackets is not closed",
    "found unexpected end of stream": "a quote is not closed",
    "did not find expected <document start>": "it holds more than names with values",
    "did not find expected key": "a line is not indented like the lines around it",
    "expected <block end>": "a line is not indented like the lines around it",
}
"""What PyYAML says, and what it means for somebody who writes settings."""


def make_settings(
    given: dict[str, Any], config: Path | None, defaults: dict[str, Any] | None = None
) -> BuildSettings:
    """Settings from what was given; the command line wins, then the file, then the defaults.

    Args:
        given: From the command line, nested like the settings.
        config: A settings file, nested in the same way.
        defaults: For what neither says.

    Returns:
        The settings. Where they are wrong, each fault is printed as one line and the program ends.
    """
    from_file = _read(config) if config is not None else {}
    merged = merge(merge(defaults or {}, from_file), given)
    for name in ("manifest", "output"):
        if merged.get(name) is None:
            usage([f"{name.upper()} is missing: give it on the command line or in a --config file"])
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


def note_ignored(engine: EngineSettings) -> None:
    """Name the settings that an engine which runs already never learns of.

    Args:
        engine: As given.
    """
    # the engine's modules are loaded when a command runs, not for its help
    from earwitness.engine.given import without_effect

    names = [
        "flags after --" if name == "vllm_args" else flag_of(("engine", name))
        for name in without_effect(engine)
    ]
    if names:
        ignored = printable(", ".join(names))
        sys.stderr.write(f"note: --engine names an engine that runs already; ignored: {ignored}\n")


def _read(config: Path) -> dict[str, Any]:
    found: Any = None
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        usage([f"--config {config}: the file is not UTF-8 text"])
    except OSError as error:
        usage([f"--config: {told_os_error(error, config)}{close_name(config)}"])
    except yaml.YAMLError as error:
        usage([f"--config {config}{_yaml_fault(error)}"])
    if found is None:
        return {}
    if not isinstance(found, dict):
        usage([f"--config {config}: it has to hold names with values, such as max_tokens: 256"])
    # a section whose lines are all commented out is there, with nothing in it
    return {name: value for name, value in found.items() if value is not None}


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Where a file is not YAML, and why, as the rest of a sentence."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", "") or "it holds a character that YAML does not allow")
    why = next((ours for theirs, ours in _YAML_PROBLEMS.items() if theirs in problem), problem)
    return f"{'' if mark is None else f', line {mark.line + 1}'}: this is not valid YAML: {why}"


def _lines(error: ValidationError, given: dict[str, Any], config: Path | None) -> list[str]:
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False):
        path = tuple(str(word) for word in one["loc"] if not isinstance(word, int))
        dotted = ".".join(path)
        on_line = _given(given, path)
        where = flag_of(path) if on_line or config is None else f"{dotted} in {config}"
        if one["type"] == "extra_forbidden":
            lines[dotted] = f"{where}: there is no such setting{_close(path)}"
            continue
        if one["type"] in {"model_type", "model_attributes_type"}:
            why = f"settings have to stand below {path[-1]}:, each on a line of its own"
            lines[dotted] = f"{where}: {why}"
            continue
        message = plain_reason(one["msg"])
        told = f"{where}: {message}, not {_shown(one['input'])}" if path else message
        # of a list, the fault of its first bad item says enough
        lines.setdefault(dotted, told)
    return list(lines.values())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _given(given: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(given, dict) or name not in given:
            return False
        given = given[name]
    return True


def _close(path: tuple[str, ...]) -> str:
    """The setting that a misspelt or misplaced name means, in brackets."""
    name = path[-1].replace("-", "_")
    known = {setting[-1]: setting for setting in _setting_paths()}
    here = [setting[-1] for setting in known.values() if setting[:-1] == path[:-1]]
    if name not in known:
        hint = did_you_mean(name, here)
        close = "" if hint else did_you_mean(name, known, cutoff=0.8)
        name = close[len(" (did you mean ") : -len("?)")]
        if hint or not name:
            return hint
    place = ".".join(known[name][:-1])
    return f" (did you mean {name} {f'below {place}:' if place else 'at the top level'}?)"


def _setting_paths() -> list[tuple[str, ...]]:
    options = [option.path for option in all_options()]
    sections = {(path[0],) for path in options if len(path) > 1}
    return [("manifest",), ("output",), ("engine", "vllm_args"), *sections, *options]
