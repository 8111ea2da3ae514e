"""The engine a worker lends its flow runs, as they find it in their environment."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from earwitness.errors import ModelIdentityError, SettingsError
from earwitness.identity import ModelIdentity

if TYPE_CHECKING:
    from earwitness.records import Json

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
