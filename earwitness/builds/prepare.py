"""Settings as a person gave them, made definite: addresses, the question, the model, its limits."""

from __future__ import annotations

import asyncio
import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from earwitness.access import absolute_allowed, is_trusted
from earwitness.addresses import (
    absolute_uri,
    address_fault,
    local_path,
    parent_uri,
    split_protocol,
)
from earwitness.audio.facts import DEFAULT_MAX_DURATION_S
from earwitness.credentials import check_engine, check_no_secret
from earwitness.engine.client import Engine
from earwitness.engine.given import check_addresses
from earwitness.errors import SettingsError, close_name, told_os_error
from earwitness.identity import ModelIdentity, identify_model
from earwitness.settings import QUESTIONS, BuildSettings, LayoutSettings

_WORD = re.compile(r"[\w./-]+")
_PATIENCE_S = 30.0
"""How long a given engine may take to say what it serves, before anything is planned."""


def resolve_settings(settings: BuildSettings) -> BuildSettings:
    """Settings that mean the same wherever and whenever they are read again.

    Args:
        settings: As given on the command line, in a file or as flow parameters.

    Returns:
        The same with absolute addresses, the question's text and a definite longest clip.

    Raises:
        SettingsError: The question's file cannot be read, or an address carries credentials.
    """
    _check_secrets(settings)
    _check_addresses(settings)
    layout, source = settings.layout, settings.input
    output = absolute_uri(settings.output)
    manifest = absolute_uri(settings.manifest)
    model = settings.model
    if model is not None and Path(model).is_dir():
        model = str(Path(model).absolute())
    return settings.model_copy(
        update={
            "output": output,
            "manifest": manifest,
            "model": model,
            "question": _question(settings.question),
            "audio": settings.audio.model_copy(update={"max_duration_s": _longest_s(settings)}),
            "input": source.model_copy(
                update={
                    "audio_root": absolute_uri(source.audio_root or parent_uri(manifest)),
                    "trusted": is_trusted(manifest, trusted=source.trusted),
                    "allow": tuple(map(absolute_allowed, source.allow)),
                }
            ),
            "layout": layout.model_copy(update={"name": build_name(output, layout)}),
        }
    )


def _check_secrets(settings: BuildSettings) -> None:
    check_no_secret(settings.manifest, "manifest", signed_too=False)
    check_no_secret(settings.output, "output")
    check_no_secret(settings.input.audio_root or "", "input.audio_root")
    check_no_secret(settings.model or "", "model")
    check_engine(settings.engine)


def _check_addresses(settings: BuildSettings) -> None:
    named = {"manifest": settings.manifest, "output": settings.output}
    if settings.input.audio_root is not None:
        named["audio_root"] = settings.input.audio_root
    for name, address in named.items():
        fault = address_fault(address)
        if fault is not None:
            raise SettingsError(f"{name} {fault}")
    _check_output(settings.output)


def _check_output(output: str) -> None:
    """Refuse a local output below a file, before anything is read or started."""
    if split_protocol(output) != "file":
        return
    path = local_path(output).absolute()
    there = next(folder for folder in (path, *path.parents) if _exists(folder))
    if not there.is_dir():
        raise SettingsError(
            f"output {output}: {there} is a file, and the output has to be a folder"
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def build_name(output: str, layout: LayoutSettings) -> str:
    """The first part of a build's id: as set, else the output's last folder.

    Args:
        output: Absolute address.
        layout: As given.
    """
    return layout.name or output.rstrip("/").rpartition("/")[2] or "build"


def resolve_model(settings: BuildSettings) -> tuple[str, ModelIdentity]:
    """Which model answers, checked before anything is planned.

    Args:
        settings: Resolved settings.

    Returns:
        The name requests are sent under, and the identity.

    Raises:
        SettingsError: No model is named and no engine's address given.
        EngineUnavailableError: An engine at a given address does not answer.
        ModelIdentityError: The model cannot be named, or given engines serve another.
    """
    if settings.engine.url:
        name = asyncio.run(_served_name(settings))
        return name, identify_model(settings.model or name, settings.engine, declared=True)
    if settings.model is None:
        raise SettingsError(
            "no model is given: add --model (a local folder or a hub id), "
            "or --engine with the address of a running engine"
        )
    return settings.model, identify_model(settings.model, settings.engine, declared=False)


async def _served_name(settings: BuildSettings) -> str:
    await check_addresses(settings.engine)
    engine = Engine(
        settings.engine,
        settings.model,
        scratch=Path(),
        clips_per_prompt=1,
        unavailable_timeout_s=_PATIENCE_S,
    )
    async with engine:
        return await engine.model_id()


def _question(question: str | None) -> str | None:
    if question is None:
        return None
    if question.startswith("@"):
        text = _question_file(Path(question[1:]))
    else:
        text = QUESTIONS.get(question, question).strip()
        _check_meant(text)
    if not text:
        raise SettingsError(
            f"--question {question!r} is empty: give a text, @FILE, caption or transcribe"
        )
    return text


def _question_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise SettingsError(f"--question @{path}: the file is not UTF-8 text") from error
    except OSError as error:
        why = f"{told_os_error(error, path)}{close_name(path)}"
        raise SettingsError(f"--question @{path}: {why}") from error


def _check_meant(question: str) -> None:
    """Refuse a single word that nobody asks a model: a short name misspelt, or a file's name."""
    if not _WORD.fullmatch(question):
        return
    close = get_close_matches(question.lower(), QUESTIONS, n=1, cutoff=0.7)
    if close:
        raise SettingsError(
            f"--question {question!r}: did you mean {close[0]}? "
            "To ask something else, give a whole sentence"
        )
    if _exists(Path(question)):
        raise SettingsError(
            f"--question {question!r} is the name of a file: write @{question} to use its text"
        )


def _longest_s(settings: BuildSettings) -> float:
    """The longest clip asked about: as set, else what the model's own preprocessor says."""
    if settings.audio.max_duration_s is not None:
        return settings.audio.max_duration_s
    if settings.model is not None:
        config = _preprocessor(Path(settings.model))
        length = config.get("chunk_length")
        if isinstance(length, int | float) and length > 0:
            return float(length)
    return DEFAULT_MAX_DURATION_S


def _preprocessor(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
