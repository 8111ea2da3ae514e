"""Paths in a run that has no working folder of its own: a flow run of a deployment.

Its working folder is temporary and deleted with it, so that a relative path there names nothing
that lasts. On the command line a relative path starts from the folder a person is in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from earwitness.access import is_folder
from earwitness.addresses import split_protocol
from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earwitness.settings import BuildSettings, EngineSettings

_ONE_SLASH = re.compile(r"(?i)(?P<scheme>[a-z][a-z0-9+]+):/?(?P<rest>[^/].*)")
_WHERE = re.compile(r"(?i)(\.{1,2}|~[^/]*)(/.*)?|file:.*")
"""A text that is a relative path whatever else it could be."""
_MOST_SLASHES = 1
"""A model's id on the hub has no more: `owner/name`."""
_PATH_FLAGS = frozenset(
    {
        "allowed-local-media-path",
        "chat-template",
        "download-dir",
        "generation-config",
        "hf-config-path",
        "speculative-model",
        "tokenizer",
        "tool-parser-plugin",
    }
)
"""vLLM's flags that take a path; those that also take a hub id are judged as a model is."""
_MAY_BE_IDS = frozenset({"generation-config", "hf-config-path", "speculative-model", "tokenizer"})


def check_absolute(settings: BuildSettings) -> None:
    """Refuse every setting that names a local file or folder by a relative path.

    Args:
        settings: As given, before anything is resolved.

    Raises:
        SettingsError: One of them is relative; the message has its name and what to give.
    """
    check_absolute_address("manifest", settings.manifest, "/data/clips.jsonl")
    check_absolute_address("output", settings.output)
    if settings.question and settings.question.startswith("@"):
        _check_path("question", settings.question[1:], "@/data/question.txt")
    if settings.model and not settings.engine.url and _is_local_model(settings.model):
        _check_path("model", settings.model, "/data/model")
    if settings.input.audio_root:
        check_absolute_address("input.audio_root", settings.input.audio_root)
    for entry in settings.input.allow:
        if is_folder(entry) and "://" not in entry and not _is_network(entry):
            _check_path("input.allow", entry, "/data/clips/")
    for name, path in _engine_paths(settings.engine):
        _check_path(f"engine.{name}", path, "/data/file")


def check_absolute_address(name: str, address: str, example: str = "/data/dataset") -> None:
    """Refuse a relative path where a path or a URL is given.

    Args:
        name: The setting's or the parameter's name.
        address: As given.
        example: An absolute path that could be given instead.

    Raises:
        SettingsError: It is relative.
    """
    if split_protocol(address) != "file":
        return
    bucket = f"s3://bucket/{Path(example).name}"
    _check_path(name, address, f"{example}, or a URL such as {bucket}")


def _check_path(name: str, path: str, example: str) -> None:
    if path.startswith("/") or re.match(r"(?i)file://(localhost)?/", path):
        return
    meant = _ONE_SLASH.fullmatch(path)
    if meant and meant["scheme"].lower() != "file":
        hint = f"did you mean {meant['scheme']}://{meant['rest']}?"
        raise SettingsError(f"{name}: {path!r} is neither an absolute path nor a URL; {hint}")
    raise SettingsError(
        f"{name}: {path!r} is a relative path, and the folder that a deployment's run works in is "
        f"deleted when the run ends. Give an absolute path such as {example}"
    )


def _is_local_model(model: str) -> bool:
    """True where a model's name can only be a folder's."""
    return bool(
        _WHERE.fullmatch(model)
        or model.endswith("/")
        or model.count("/") > _MOST_SLASHES
        or Path(model).is_dir()
    )


def _is_network(entry: str) -> bool:
    return bool(re.fullmatch(r"[0-9A-Fa-f.:\[\]]+/\d+", entry))


def _engine_paths(engine: EngineSettings) -> Iterator[tuple[str, str]]:
    if engine.hub_cache:
        yield "hub_cache", engine.hub_cache
    template = engine.chat_template
    if template and not any(mark in template for mark in "\n{"):
        yield "chat_template", template
    # a name without a slash is looked up in PATH
    for name, program in (("python", engine.python), ("command", next(iter(engine.command), None))):
        if program and ("/" in program or _WHERE.fullmatch(program)):
            yield name, program
    yield from (("vllm_args", path) for path in _paths_in(engine.vllm_args))


def _paths_in(words: tuple[str, ...]) -> Iterator[str]:
    """The local paths in vLLM's flags."""
    flag = ""
    for word in words:
        value = word
        if word.startswith("-"):
            name, mark, value = word.partition("=")
            flag = name.lstrip("-").replace("_", "-")
            if not mark:
                continue
        if _WHERE.fullmatch(value) or (flag in _PATH_FLAGS and _names_path(flag, value)):
            yield value
        flag = ""


def _names_path(flag: str, value: str) -> bool:
    return flag not in _MAY_BE_IDS or _is_local_model(value)
