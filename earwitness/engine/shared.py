"""A worker's engine as its flow runs find it, and what both say to each other.

A request is relayed as it came and an answer is the engine's own reply. What else there is to
say (a verdict on the record, an error for the whole run) travels as an error reply that the
client's side reads back into the very same object.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from earwitness.errors import (
    CredentialsError,
    EarwitnessError,
    EngineStartError,
    EngineUnavailableError,
    FatalError,
    ModelIdentityError,
    SettingsError,
)
from earwitness.identity import ModelIdentity
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from earwitness.records import Json


REJECTED = 422
"""Status of a reply that carries a verdict."""
FAILED = 500
"""Status of a reply that carries an error."""
RUN_HEADER = "Earwitness-Run"
"""Header of a request that says which flow run asks."""
STRIKES_HEADER = "Earwitness-Strikes"
"""Header of a request that says how many strikes its record has (see `Rejection.strikes`)."""
_VERDICT = "earwitness_rejection"
_ERROR = "earwitness_error"
_ERRORS: dict[str, type[EarwitnessError]] = {
    kind.__name__: kind
    for kind in (CredentialsError, EngineUnavailableError, ModelIdentityError, SettingsError)
}


class RelayedRequest:
    """A chat completion request that somebody else made.

    Args:
        body: Its JSON, as it came.
        folder: The only folder its `file://` clips may be read from, where they must travel
            inside the request.
        strikes: As its header says.

    Attributes:
        strikes: As given.
        reply: The engine's reply, once it has answered.

    Raises:
        ValueError: It is no request that has one reply.
    """

    def __init__(self, body: bytes, folder: Path, *, strikes: int = 0) -> None:
        try:
            self._asked: Json = json.loads(body)
        except RecursionError as error:
            raise ValueError("the request's JSON is nested too deeply") from error
        if not isinstance(self._asked, dict) or not self._asked.get("messages"):
            raise ValueError("a chat completion request needs messages")
        if self._asked.get("stream"):
            raise ValueError("streamed answers are not supported")
        self._body = body
        self._folder = folder.resolve()
        self.strikes = strikes
        self.reply = b""

    def encoded(self, model: str, *, inline: bool) -> bytes:
        """The body to send: as it came, but for clips that an engine cannot reach.

        Args:
            model: The name the engine serves the model under.
            inline: Send clips inside the request.
        """
        if not inline and self._asked.get("model") == model:
            return self._body
        asked: Json = {**self._asked, "model": model}
        if inline:
            asked["messages"] = [self._inline(message) for message in asked["messages"]]
        return json.dumps(asked, ensure_ascii=False).encode()

    def keep(self, reply: bytes) -> None:
        """Takes the engine's reply.

        Args:
            reply: Its bytes.
        """
        self.reply = reply

    def _inline(self, message: Json) -> Json:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        return {**message, "content": [self._inline_part(part) for part in content]}

    def _inline_part(self, part: Json) -> Json:
        url = part.get("audio_url", {}).get("url", "") if isinstance(part, dict) else ""
        if not url.startswith("file://"):
            return part
        path = Path(unquote(urlsplit(url).path)).resolve()
        if self._folder not in path.parents:
            raise SettingsError(f"clips can be read only from {self._folder}, not {path}")
        data = base64.b64encode(path.read_bytes()).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def verdict_json(rejection: Rejection) -> dict[str, Any]:
    """A verdict as the body of an error reply.

    Args:
        rejection: Why the record gets no answer.

    Returns:
        What `raise_or_verdict` reads back.
    """
    return {
        "error": {
            "type": _VERDICT,
            "message": rejection.detail,
            "stage": rejection.stage.value,
            "reason": rejection.reason.value,
            "detail": rejection.detail,
            "transient": rejection.transient,
            "strikes": rejection.strikes,
        }
    }


def error_json(error: EarwitnessError) -> dict[str, Any]:
    """An error as the body of an error reply.

    Args:
        error: What keeps the engine from answering anything.

    Returns:
        What `raise_or_verdict` reads back.
    """
    told = {"type": _ERROR, "kind": type(error).__name__, "message": str(error)}
    if isinstance(error, EngineStartError):
        told |= {"reason": error.reason, "log": error.log}
    return {"error": told}


def raise_or_verdict(status: int, body: bytes) -> Rejection | None:
    """Reads what a front has to say beside answers.

    Args:
        status: The reply's HTTP status.
        body: The reply's bytes.

    Returns:
        The verdict on the record; None when the reply is an engine's own.

    Raises:
        EarwitnessError: The error the front was told to pass on.
    """
    if status not in {REJECTED, FAILED}:
        return None
    try:
        told = json.loads(body)["error"]
        kind = told["type"]
        if kind == _VERDICT:
            strikes = int(told.get("strikes") or 0)
            reason = Reason(told["reason"])
            return Rejection(Stage(told["stage"]), reason, str(told["detail"]), strikes)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if kind == _ERROR:
        raise _error(told)
    return None


def _error(told: Json) -> EarwitnessError:
    if told.get("kind") == EngineStartError.__name__:
        return EngineStartError(str(told.get("reason")), str(told.get("log") or ""))
    return _ERRORS.get(str(told.get("kind")), FatalError)(str(told.get("message")))


URL_VARIABLE = "EARWITNESS_ENGINE_URL"
"""Environment variable: address of the worker's engine front."""
KEY_VARIABLE = "EARWITNESS_ENGINE_KEY"
"""Environment variable: the front's API key."""
MODEL_VARIABLE = "EARWITNESS_ENGINE_MODEL"
"""Environment variable: identity of the model it serves, as JSON."""
SLOTS_VARIABLE = "EARWITNESS_ENGINE_SLOTS"
"""Environment variable: requests it answers at once."""
WORKER_VARIABLE = "EARWITNESS_WORKER"
"""Environment variable: name of the worker a flow run belongs to."""


@dataclass(frozen=True, slots=True)
class SharedEngine:
    """A worker's engine front, seen from a flow run on the same machine.

    Attributes:
        url: Its address.
        key: Its API key.
        model: What answers there.
        slots: Requests it answers at once.
    """

    url: str
    key: str
    model: ModelIdentity
    slots: int

    def environment(self) -> dict[str, str]:
        """The variables by which a flow run finds it."""
        return {
            URL_VARIABLE: self.url,
            KEY_VARIABLE: self.key,
            MODEL_VARIABLE: json.dumps(asdict(self.model)),
            SLOTS_VARIABLE: str(self.slots),
        }

    def check_model(self, planned: Json) -> None:
        """Makes sure that the model a build was planned for is the one that answers here.

        Args:
            planned: A model's identity, as a plan has it.

        Raises:
            ModelIdentityError: It is another one.
        """
        wanted = identity_from(planned)
        if wanted.digest() != self.model.digest():
            raise ModelIdentityError(
                f"this build needs {told(wanted)}, but the worker serves {told(self.model)}: "
                "start the worker with the build's --model and flags, or send the build to a "
                "work pool whose workers serve its model"
            )


def shared_engine() -> SharedEngine | None:
    """The engine the environment names.

    Returns:
        None where there is none.

    Raises:
        SettingsError: The variables do not make sense together.
    """
    url = os.environ.get(URL_VARIABLE)
    if not url:
        return None
    try:
        return SharedEngine(
            url,
            os.environ.get(KEY_VARIABLE, ""),
            identity_from(json.loads(os.environ[MODEL_VARIABLE])),
            int(os.environ[SLOTS_VARIABLE]),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{URL_VARIABLE} is set, but {MODEL_VARIABLE} or {SLOTS_VARIABLE} is missing or not "
            f"valid ({error}): set all of them, as a worker does, or none"
        ) from error


def identity_from(found: Json) -> ModelIdentity:
    """A model's identity from its JSON.

    Args:
        found: As `dataclasses.asdict` gave it, and as plans have it.

    Returns:
        The identity.
    """
    return ModelIdentity(
        str(found["kind"]),
        str(found["name"]),
        str(found.get("version") or ""),
        tuple(map(str, found.get("arguments") or ())),
    )


def told(model: ModelIdentity) -> str:
    """A model's identity in a person's words.

    Args:
        model: The identity.

    Returns:
        Its name, version and the arguments that change answers.
    """
    version = f" ({model.version[:12]})" if model.version else ""
    arguments = f" with {' '.join(model.arguments)}" if model.arguments else ""
    return f"{model.name}{version}{arguments}"
