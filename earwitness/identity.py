"""What makes two questions the same question: cache keys, request seeds, model identity, ids."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from earwitness.errors import ModelIdentityError, close_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwitness.records import Message
    from earwitness.settings import EngineSettings, SamplingSettings

KEY_VERSION = 3
"""Raised whenever the same sounds and messages would be asked differently by newer code. A decoder
that is mended changes the sounds' digests instead."""

_sorted_json = msgspec.json.Encoder(order="sorted").encode

_NEUTRAL_FLAGS = dict.fromkeys(
    (
        "disable-log-requests",
        "disable-log-stats",
        "enable-chunked-prefill",
        "enable-prefix-caching",
        "enforce-eager",
        "no-enable-chunked-prefill",
        "no-enable-prefix-caching",
        "no-enforce-eager",
    ),
    0,
) | dict.fromkeys(
    (
        "allowed-local-media-path",
        "api-server-count",
        "block-size",
        "cpu-offload-gb",
        "data-parallel-size",
        "distributed-executor-backend",
        "download-dir",
        "gpu-memory-utilization",
        "kv-cache-memory-bytes",
        "limit-mm-per-prompt",
        "max-model-len",
        "max-num-batched-tokens",
        "max-num-seqs",
        "pipeline-parallel-size",
        "scheduling-policy",
        "swap-space",
        "tensor-parallel-size",
        "uvicorn-log-level",
    ),
    1,
)
"""vLLM flags that decide where and how fast it answers, not what, and how many values they take.

Any other word of vLLM's command line is part of the model's identity.
"""
_SHORT_FLAGS = {
    "-asc": "api-server-count",
    "-dp": "data-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-q": "quantization",
    "-tp": "tensor-parallel-size",
}
_NUMBER = re.compile(r"-[0-9.]+")


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model answers, so exactly that equal identities give interchangeable answers.

    Attributes:
        kind: `hub` (id and commit), `local` (digest of the folder's files), `declared` (the id
            an engine at a given address serves).
        name: Hub id, folder name or declared id, for people; not part of a local model's digest.
        version: Commit, digest, or empty.
        arguments: Engine arguments that change output, sorted.
    """

    kind: str
    name: str
    version: str
    arguments: tuple[str, ...] = ()

    def digest(self) -> str:
        """Hex SHA-256 over what decides answers."""
        decides = asdict(self)
        if self.kind == "local":
            del decides["name"]
        return _digest(decides)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def cache_key(sounds: Sequence[str], messages: Sequence[Message], question_digest: str) -> str:
    """The key under which the outcome of an ask is kept.

    Args:
        sounds: PCM digests of the sounds in order, hex.
        messages: The rendered messages, system prompt included.
        question_digest: `question_digest()` of everything all asks of a build share.

    Returns:
        Hex SHA-256.
    """
    decides = {
        "version": KEY_VERSION,
        "kind": "say",
        "sounds": list(sounds),
        "messages": list(messages),
        "question": question_digest,
        "sample": 0,
        "schema": None,
    }
    try:
        # the same bytes as `_digest` makes, many times as fast: every record of every build has one
        return hashlib.sha256(_sorted_json(decides)).hexdigest()
    except (UnicodeEncodeError, TypeError):  # half a surrogate pair
        return _digest(decides)


def question_digest(model: ModelIdentity, sampling: SamplingSettings) -> str:
    """The part of a cache key that all asks of a build share: model and sampling.

    Limits and policies for clips are not in it: they decide whether a clip is asked about, and what
    is heard of it is in the digest of its sound.
    """
    return _digest([model.digest(), sampling.model_dump(mode="json")])


def request_seed(key: str) -> int:
    """The seed of a request of a seeded build: 31 bits of its cache key (which holds the seed)."""
    return int(key[:8], 16) & 0x7FFF_FFFF


def output_arguments(engine: EngineSettings) -> tuple[str, ...]:
    """The engine arguments that change the answers, in a stable order.

    Only flags that are known to be neutral are left out, with the one value that they take. Every
    other word counts: an unknown flag can cost a repeated answer, but never gives a wrong one. A
    value that names a file or a folder counts by its content.
    """
    named = {
        "dtype": engine.dtype,
        "quantization": engine.quantization,
        "chat-template": _file_or_text(engine.chat_template),
    }
    found = [(name, f"--{name}={value}") for name, value in named.items() if value is not None]
    for name, values in _flags(engine.vllm_args):
        values_taken = _NEUTRAL_FLAGS.get(name)
        if values_taken is None:
            flag = name if name.startswith("-") else f"--{name}"
            found.append((name, "=".join([flag, *map(_content, values)])))
        else:
            found += [("", _content(value)) for value in values[values_taken:]]
    # by name alone: of a repeated flag vLLM takes the last one
    return tuple(text for _, text in sorted(found, key=lambda one: one[0]))


def _flags(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with its values; a flag goes by its long name, an unknown short one by its own."""
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word):
            name, separator, value = word.partition("=")
            if name.startswith("--"):
                name = name[2:].replace("_", "-")
            flags.append((_SHORT_FLAGS.get(name, name), [value] if separator else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            flags.append(("", [word]))
    return flags


def _content(value: str) -> str:
    """A flag's value; the content of the file or folder that it names, also as `NAME=PATH`."""
    name, separator, path = value.rpartition("=")
    try:
        if path and Path(path).is_dir():
            return f"{name}{separator}{folder_digest(Path(path))}"
        if Path(path).is_file():
            return f"{name}{separator}{_file_or_text(path)}"
    except (OSError, ValueError):  # no path: too long, or with a NUL byte
        return value
    return value


def _file_or_text(value: str | None) -> str | None:
    """A chat template by its content, whether it is given as a path or as text."""
    if value is None:
        return None
    try:
        content = Path(value).read_bytes()
    except (OSError, ValueError):
        content = value.encode()
    return hashlib.sha256(content).hexdigest()


def folder_digest(folder: Path) -> str:
    """Hex SHA-256 over a model folder's files (names and bytes), notes and hidden files aside.

    Digests of single files are remembered by size, mtime and inode in the user's cache folder, so
    that a nightly start does not read 15 GB again.
    """
    remembered = _remembered_digests()
    found: dict[str, str] = {}
    fresh: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not path.is_file() or path.suffix.lower() == ".md":
            continue
        status = path.stat()
        stamp = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        digest = remembered.get(stamp)
        if digest is None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            # a file written moments ago could change again within the clock's tick
            if datetime.now(tz=UTC).timestamp() - status.st_mtime > _SETTLED_S:
                fresh[stamp] = digest
        found[relative.as_posix()] = digest
    if fresh:
        _remember_digests(remembered | fresh)
    return _digest(found)


_SETTLED_S = 2.0


def _digests_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "earwitness" / "model-digests.json"


def _remembered_digests() -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(_digests_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known


def _remember_digests(known: dict[str, str]) -> None:
    path = _digests_file()
    temporary = path.with_suffix(f".{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def identify_model(model: str, engine: EngineSettings, *, declared: bool) -> ModelIdentity:
    """Name the model a build asks, before anything is asked.

    Args:
        model: Local folder, hub id, or the id given engines serve.
        engine: Revision, cache folder and the arguments that change output.
        declared: True when engines at given addresses answer; `model` is then their id.

    Raises:
        ModelIdentityError: The hub id cannot be resolved, or the folder holds no model.
    """
    arguments = output_arguments(engine)
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelIdentityError(f"the folder {model} is not a model: it has no config.json")
        return ModelIdentity("local", folder.resolve().name, folder_digest(folder), arguments)
    if declared:
        return ModelIdentity("declared", model, "", arguments)
    if model.startswith((".", "/", "~")):
        raise ModelIdentityError(f"model {model}: there is no such folder{close_name(folder)}")
    return ModelIdentity("hub", model, _hub_commit(model, engine), arguments)


def _hub_commit(model: str, engine: EngineSettings) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    revision = engine.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        commit = HfApi().model_info(model, revision=revision, timeout=30).sha
    except HFValidationError as error:
        raise ModelIdentityError(
            f"model {model} is neither a local folder{close_name(Path(model))} nor the id of a "
            "model on the hub, such as Qwen/Qwen2-Audio-7B-Instruct"
        ) from error
    # its client lets its transport's errors through, and has had three transports so far
    except Exception as error:  # noqa: BLE001 - whatever it is, the hub did not answer
        hub = Path(engine.hub_cache or constants.HF_HUB_CACHE)
        ref = hub / f"models--{model.replace('/', '--')}" / "refs" / revision
        try:
            return ref.read_text(encoding="utf-8").strip()
        except OSError:
            raise ModelIdentityError(_not_resolved(model, revision, hub, error)) from error
    if not commit:
        raise ModelIdentityError(f"the hub gives no commit for {model}@{revision}")
    return commit


def _not_resolved(model: str, revision: str, hub: Path, error: Exception) -> str:
    """Why a hub id could not be resolved, in plain words."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    close = close_name(Path(model))
    if isinstance(error, GatedRepoError):
        return (
            f"model {model} needs permission: request access on its page on the hub, then set "
            "HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no model {model}: it is neither a local folder{close} nor on the hub (a "
            "private model needs HF_TOKEN)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"model {model} has no revision {revision} on the hub: change --revision"
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"the hub does not answer for {model}@{revision}, and the model is neither in the cache "
        f"{hub} nor a local folder{close} ({why})"
    )


def build_id(name: str, started: datetime, run: str) -> str:
    """A build's id: `<name>-<scheduled start>-<6 characters of the run>`.

    Args:
        name: For people; anything but letters, digits, `.`, `_` and `-` becomes `-`.
        started: Scheduled start; the same over retries.
        run: The run's own id; the same over retries.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "build"
    letters = re.sub(r"[^a-z0-9]", "", run.lower())[-6:]
    return f"{safe}-{started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{letters}"
