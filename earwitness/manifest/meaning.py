"""Fields beside audio and conversation that change what a record asks, and that nothing here reads.

A record is asked about its whole clips, by its conversation alone. Other tools read more of the
same manifests; a row that means something else to them must not be answered in silence:

- NeMo: a row is the stretch of its file from `offset` on (docs.nvidia.com/nemo-framework, ASR
  datasets). `duration` beside a whole file is its length, and says nothing new.
- LLaMA-Factory (`data/README.md`): the columns `system`, `tools`, `images`, `videos`, `history`.
- ms-swift (Custom dataset): `system`, `tools`, `images`, `videos`, `history`.
- OpenAI's chat requests and logs of them: `tools`, before them `functions`. OpenOrca and its kin:
  `system_prompt`.

Only what surely means this is in the list. Fields like `start`, `end`, `segments`, `instruction` or
`prompt` as often describe a clip that was cut already; they are carried through.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from earwitness.records import Json


def _is_position(value: Any) -> bool:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return seconds != 0 and not math.isnan(seconds)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and any(item not in (None, "") for item in value)


def _is_list_or_text(value: Any) -> bool:
    return _is_list(value) or (_is_text(value) and value.strip() not in ("[]", "null"))


_STRETCH = "it means that only a part of the clip is heard, and earwitness asks about whole clips"
_SYSTEM = (
    "it means another system prompt, and earwitness reads only system turns inside the "
    "conversation and --system-prompt"
)
_TOOLS = "it means tools that the model is told of, and earwitness asks without tools"
_SIGHT = "it means pictures that the question is about, and earwitness sends audio alone"
_HISTORY = "it means turns before the question, and earwitness reads only those of the conversation"

_CHANGING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "offset": (_is_position, _STRETCH),
    "system": (_is_text, _SYSTEM),
    "system_prompt": (_is_text, _SYSTEM),
    "tools": (_is_list_or_text, _TOOLS),
    "functions": (_is_list_or_text, _TOOLS),
    "images": (_is_list_or_text, _SIGHT),
    "videos": (_is_list_or_text, _SIGHT),
    "history": (_is_list, _HISTORY),
}
"""By field: whether a value changes what is asked, and how, for the message."""


class MeaningCheck:
    """Refuses manifests with fields that change what is asked.

    Args:
        known: Fields that are read, or that somebody decided to ignore.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._names = frozenset(_CHANGING) - frozenset(known)

    def check(self, record: Json, row: int) -> None:
        """Look at a record.

        Args:
            record: The manifest's fields.
            row: Its position in the manifest.

        Raises:
            SettingsError: A field of the record changes what is asked.
        """
        if self._names.isdisjoint(record):
            return
        for name, (changes, meaning) in _CHANGING.items():
            if name in self._names and changes(record.get(name)):
                raise SettingsError(
                    f"row {row} of the manifest has a field {name!r}: {meaning}. Change the "
                    f"manifest, or give --ignore-fields {name} (input.ignore_fields) to ask "
                    "without it; the field is then carried through as it is"
                )
