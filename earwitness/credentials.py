"""Credentials never travel in settings: these are stored with every build."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from earwitness.addresses import has_login, is_signed, without_secrets
from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from earwitness.settings import EngineSettings

_WHERE = (
    "settings are stored with every build, so give credentials in the environment "
    "(for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) or in a Prefect block"
)
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[-_])(?:\w*key|key_id|token|secret|\w*passw(?:or)?d|auth_string)$"
)
_ASSIGNED = re.compile(r"-{0,2}([A-Za-z][\w-]*)(=|$)")
_INSTEAD = {
    "api-key": "VLLM_API_KEY in the environment (an engine that earwitness starts has its own key)",
    "hf-token": "HF_TOKEN in the environment",
}
"""vLLM's flags that carry a credential, and what to use in their place."""
_SHORTEST = 8
"""Values of the environment shorter than this are no secrets, and would blot out ordinary words."""


def check_no_secret(uri: str, field: str, *, signed_too: bool = True) -> None:
    """Refuse an address that carries a password or a signature.

    Args:
        uri: The address, as given.
        field: The setting it was given for.
        signed_too: Refuse signed URLs, too; they may be all that somebody has to read a manifest.

    Raises:
        SettingsError: It carries one; the text names the field, never the secret.
    """
    if has_login(uri):
        raise SettingsError(f"{field} contains a user name or password before the @: {_WHERE}")
    if signed_too and is_signed(uri):
        raise SettingsError(f"{field} is a signed URL or contains a key: {_WHERE}")


def check_engine(engine: EngineSettings) -> None:
    """Refuse credentials among the engine's settings: they would be stored, and shown by `ps`.

    Args:
        engine: As given.

    Raises:
        SettingsError: There is one; the text names the flag, never the secret.
    """
    for url in engine.url:
        check_no_secret(url, "engine.url")
    if engine.chat_template and "\n" not in engine.chat_template:
        check_no_secret(engine.chat_template, "engine.chat_template")
    _check_words(engine.vllm_args, "engine.vllm_args")
    _check_words(engine.command, "engine.command")


def _check_words(words: Iterable[str], field: str) -> None:
    known = list(_secrets_of(os.environ))
    for word in words:
        check_no_secret(word, field)
        named = _secret_named(word)
        if named:
            instead = _INSTEAD.get(named, "the environment")
            raise SettingsError(
                f"{field} contains --{named}: settings are stored with every build, and every user "
                f"of the machine can read a command line. Use {instead}"
            )
        if any(secret in word for secret in known):
            raise SettingsError(
                f"{field} contains the value of a secret environment variable: {_WHERE}"
            )


def _secret_named(word: str) -> str:
    """The flag (also cut short, as vLLM takes it) or variable whose value would be a secret."""
    found = _ASSIGNED.match(word)
    if found is None:
        return ""
    name = found.group(1).replace("_", "-").lower()
    if word.startswith("-"):
        whole = next((flag for flag in _INSTEAD if flag.startswith(name) and len(name) > 3), name)  # noqa: PLR2004
        return whole if _SECRET_NAME.search(whole) else ""
    return name if found.group(2) and _SECRET_NAME.search(name) else ""


def without_known_secrets(text: str, environment: Mapping[str, str]) -> str:
    """A text of somebody else's, with what our environment keeps secret blotted out.

    Args:
        text: Such as the last lines of an engine's output.
        environment: What the engine was started with.
    """
    for secret in _secrets_of(environment):
        text = text.replace(secret, "***")
    return without_secrets(text)


def _secrets_of(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            yield value
