"""Command-line options made from the settings' models, so that each setting is defined once."""

from __future__ import annotations

import inspect
import re
import shlex
from dataclasses import dataclass
from functools import cache, wraps
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_QUOTED = re.compile(r"`([^`]*)`")

Path = tuple[str, ...]
"""Where a setting is: `("engine", "dtype")`."""

_FLAGS: dict[Path, str] = {
    ("engine", "url"): "--engine",
    ("layout", "formats"): "--format",
}
"""Options named otherwise than their field."""

_OPPOSITES: dict[Path, str] = {("input", "trusted"): "--untrusted"}
"""How an option is turned off, where a word says it better than `--no-`."""

_REPEATED: frozenset[Path] = frozenset({("engine", "url"), ("input", "allow")})
"""Lists whose option is given once for each item."""

_NO_OPTION: frozenset[Path] = frozenset({("manifest",), ("output",), ("engine", "vllm_args")})
"""Arguments, and what follows `--`."""

_HELP: dict[Path, str] = {
    ("build",): "Id of the build to make or continue. Default: chosen as described above.",
}
"""Help where the field's docstring is not made for the command line."""

_PANELS = {
    "model": "Engine",
    "question": "Prompt",
    "system_prompt": "Prompt",
    "max_tokens": "Sampling",
    "max_rejected": "Output",
    "build": "Run",
    "input": "Input",
    "engine": "Engine",
    "sampling": "Sampling",
    "audio": "Audio",
    "layout": "Output",
}
_ORDER = ("Input", "Prompt", "Engine", "Sampling", "Audio", "Output", "Run")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting as a command-line option.

    Attributes:
        path: The field it sets.
        flag: `--max-tokens`.
        kind: What typer parses it as.
        default: Shown, never passed on: what is not given is not set.
        help: From the field's docstring, without the default.
        panel: The group it is shown in.
    """

    path: Path
    flag: str
    kind: Any
    default: Any
    help: str
    panel: str

    @property
    def name(self) -> str:
        """The name of the command's parameter."""
        return "__".join(self.path)

    def parameter(self) -> inspect.Parameter:
        """The option as typer reads it from a signature."""
        off = _OPPOSITES.get(self.path, f"--no-{self.flag[2:]}")
        flags = f"{self.flag}/{off}" if self.kind is bool else self.flag
        declared = typer.Option(
            flags,
            help=self._help_with_default(),
            show_default=False,
            rich_help_panel=self.panel,
            metavar=_METAVARS.get(self.path),
        )
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=self.default,
            annotation=Annotated[self.kind, declared],
        )

    def _help_with_default(self) -> str:
        if self.default in (None, "") or isinstance(self.default, bool) or "Default:" in self.help:
            return self.help
        return f"{self.help} Default: {str(self.default).rstrip('.')}."

    def value(self, given: Any) -> Any:
        """What a parsed option sets its field to."""
        if self.path == ("layout", "formats"):
            return [name.strip() for name in given.split(",") if name.strip()]
        if self.path == ("engine", "command"):
            return shlex.split(given)
        return given


_METAVARS: dict[Path, str] = {
    ("engine", "url"): "URL",
    ("input", "allow"): "WHERE",
    ("layout", "formats"): "parquet,jsonl",
    ("engine", "command"): "COMMAND",
}


@cache
def all_options() -> tuple[Option, ...]:
    """An option for every setting, grouped as the help shows them."""
    found = [*_of(BuildSettings, ())]
    return tuple(sorted(found, key=lambda option: _ORDER.index(option.panel)))


def options_of(*panels: str) -> tuple[Option, ...]:
    """The options of some groups."""
    return tuple(option for option in all_options() if option.panel in panels)


@cache
def machinery() -> tuple[Option, ...]:
    """Options that a build may be continued with: those that are no part of what it is."""
    frozen = BuildSettings(manifest="m", output="o").frozen()
    return tuple(
        option
        for option in all_options()
        if option.path != ("build",) and not _holds(frozen, option.path)
    )


def flag_of(path: Iterable[Any]) -> str:
    """The option that sets a field, or the field's dotted name where none does."""
    words = [str(word) for word in path]
    for option in all_options():
        if list(option.path) == words[: len(option.path)]:
            return option.flag
    return {"manifest": "MANIFEST", "output": "OUTPUT"}.get(".".join(words), ".".join(words))


def with_options(options: tuple[Option, ...]) -> Callable[[Callable[..., None]], Any]:
    """Give a command more options.

    Args:
        options: Each becomes a keyword-only parameter of the command that typer sees.

    Returns:
        A decorator. The function takes `ctx` and, instead of the options, one dictionary `given`,
        nested like the settings: what was on the command line, nothing else.
    """

    def decorate(function: Callable[..., None]) -> Any:
        own = inspect.signature(function, eval_str=True).parameters.values()
        named = [one for one in own if one.kind is one.KEYWORD_ONLY and one.name != "given"]
        merged = [one for one in own if one.kind is not one.KEYWORD_ONLY]
        merged += [*(option.parameter() for option in options), *named]

        @wraps(function)
        def command(**values: Any) -> None:
            given: dict[str, Any] = {}
            for option in options:
                value = values.pop(option.name)
                if was_given(values["ctx"], option.name):
                    put(given, option.path, option.value(value))
            function(**values, given=given)

        # typer reads the one or the other, by version
        command.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in merged}
        return command

    return decorate


def was_given(ctx: typer.Context, name: str) -> bool:
    """True when a parameter was on the command line, even with its default as value."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def put(tree: dict[str, Any], path: Path, value: Any) -> None:
    """Set a value in nested dictionaries."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _holds(tree: Any, path: Path) -> bool:
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True


def _of(model: type[BaseModel], prefix: Path) -> Iterable[Option]:
    for name, field in model.model_fields.items():
        path = (*prefix, name)
        kind = _plain(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _of(kind, path)
        elif path not in _NO_OPTION:
            yield Option(
                path=path,
                flag=_FLAGS.get(path, f"--{name.replace('_', '-')}"),
                kind=_kind(kind, path),
                default=_default(field.get_default(), path),
                help=_help(_HELP.get(path) or field.description or ""),
                panel=_PANELS[path[0]],
            )


def _plain(annotation: Any) -> Any:
    """A type without `None` beside it and without pydantic's bounds around it."""
    if get_origin(annotation) in {Union, UnionType}:
        kept = [one for one in get_args(annotation) if one is not type(None)]
        return _plain(kept[0])
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    return annotation


def _kind(kind: Any, path: Path) -> Any:
    if get_origin(kind) is tuple:
        return list[str] if path in _REPEATED else str
    return kind


def _default(default: Any, path: Path) -> Any:
    if path == ("layout", "formats"):
        return ",".join(default)
    return None if default == () else default


def _help(description: str) -> str:
    """A docstring as help: one paragraph, with settings named as their options."""
    return _QUOTED.sub(_as_option, " ".join(description.split()))


def _as_option(quoted: re.Match[str]) -> str:
    name = quoted.group(1)
    paths = [(name,), *((section, name) for section in _PANELS)]
    known = name in BuildSettings.model_fields or any(_is_field(path) for path in paths)
    return f"--{name.replace('_', '-')}" if known else name


def _is_field(path: Path) -> bool:
    section = BuildSettings.model_fields.get(path[0])
    kind = None if section is None else section.annotation
    return (
        len(path) > 1
        and isinstance(kind, type)
        and issubclass(kind, BaseModel)
        and path[1] in kind.model_fields
    )
