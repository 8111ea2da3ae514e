"""Linting: what each line of a manifest asks, or why it is rejected.

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

This runs once for every row of a manifest in one process, so that its cost a line is kept near
that of parsing the JSON: no models, no copies, the rare cases behind cheap tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from earwitness.access import AccessPolicy
from earwitness.errors import BadRecordError, SettingsError
from earwitness.manifest.clips import ClipResolver
from earwitness.manifest.conversation import ask_text, lone_question, render
from earwitness.manifest.parse import missing_conversation, parse_record
from earwitness.manifest.planned import is_strict_json, own_bytes, plan_line
from earwitness.manifest.schema import CollisionCheck
from earwitness.manifest.signature import Signatures
from earwitness.records import PlannedRow, Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from earwitness.manifest.read import RawLine
    from earwitness.manifest.signature import Signature
    from earwitness.records import Json, Message
    from earwitness.settings import BuildSettings


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


_MAX_ASKED = 64
_LONGEST_ASKED = 4096
"""So many questions are kept as they were rendered: most manifests ask few, and short ones."""


@dataclass(frozen=True, slots=True)
class LintRules:
    """What a line is judged by.

    Attributes:
        audio_root: Folder or URL that relative clip paths start from.
        system_prompt: Put before conversations that have none; empty: none.
        question: Text asked of records without a conversation.
        ignore_fields: Fields that are carried through though they change what is asked elsewhere.
        access: Where clips may come from, as far as their addresses' text tells.
    """

    audio_root: str
    system_prompt: str
    question: str | None = None
    audio_column: str = "audio"
    conversation_column: str = "conversation"
    answer_column: str = "answer"
    provenance_column: str = "earwitness"
    max_clips: int = 16
    ignore_fields: tuple[str, ...] = ()
    access: AccessPolicy = field(default=AccessPolicy(trusted=True))


def lint_rules(settings: BuildSettings, question: str | None) -> LintRules:
    """The rules that a build's settings mean.

    Args:
        settings: The build's settings.
        question: The text `settings.question` stands for; None: no question is given.

    Returns:
        The rules for a `Linter`.
    """
    return LintRules(
        audio_root=settings.clip_root,
        system_prompt=settings.system_prompt if settings.system_prompt.strip() else "",
        question=question,
        audio_column=settings.input.audio_column,
        conversation_column=settings.input.conversation_column,
        answer_column=settings.layout.answer_column,
        provenance_column=settings.layout.provenance_column,
        max_clips=settings.input.max_clips,
        ignore_fields=settings.input.ignore_fields,
        access=settings.access(),
    )


def lint_line(raw: bytes, row: int, rules: LintRules) -> PlannedRow:
    """Judge one line of JSON; for many lines make one `Linter`.

    Args:
        raw: The line's bytes.
        row: Its position in the manifest.
        rules: What it is judged by.

    Returns:
        The row, to be asked or rejected.

    Raises:
        SettingsError: The record has a field named like one of ours, or one that changes what
            is asked.
    """
    return Linter(rules).judge(row, raw)[0]


class Linter:
    """Judges a manifest's lines one after the other.

    Args:
        rules: What they are judged by.
    """

    def __init__(self, rules: LintRules) -> None:
        self._rules = rules
        self._collisions = CollisionCheck(rules.answer_column, rules.provenance_column)
        read = (rules.audio_column, rules.conversation_column)
        self._meaning = MeaningCheck((*read, *rules.ignore_fields))
        self._resolve = ClipResolver(
            rules.audio_root, rules.audio_column, rules.max_clips, rules.access
        ).resolve
        self._signatures = Signatures()
        # (text, clips) of the commonest conversation → its messages, and these as JSON
        self._asked: dict[tuple[str, int], tuple[tuple[Message, ...], bytes]] = {}

    def lint(self, line: RawLine) -> PlannedRow:
        """Judge one line.

        Args:
            line: As `open_manifest` gives it.

        Returns:
            The row, to be asked or rejected.

        Raises:
            SettingsError: The record has a field named like one of ours, or one that changes what
                is asked.
        """
        return self.judge(line.row, line.text, line.record, line.rejection)[0]

    def plan(self, line: RawLine) -> tuple[PlannedRow, bytes, Signature | None]:
        """Judge one line and write it for the frozen plan.

        Args:
            line: As `open_manifest` gives it.

        Returns:
            The row, its line in the plan (see `plan_line`), and its record's signature if it has
            one.

        Raises:
            SettingsError: The record has a field named like one of ours, or one that changes what
                is asked.
        """
        row, raw, record, rejection = line.row, line.text, line.record, line.rejection
        quick = None if raw is None else self._signatures.parse(raw)
        if quick is None:
            planned, raw = self.judge(row, raw, record, rejection)
            return planned, plan_line(raw, planned), None
        record, signature = quick
        self._meaning.check(record, row)
        if self._collisions.strip(record, row):
            planned, messages = self._decide(row, record)
            return planned, plan_line(None, planned, messages), None
        planned, messages = self._decide(row, record)
        return planned, plan_line(raw, planned, messages), signature

    def judge(
        self,
        row: int,
        raw: bytes | None,
        record: Json | None = None,
        rejection: Rejection | None = None,
    ) -> tuple[PlannedRow, bytes | None]:
        """Judge a line by its parts.

        Args:
            row: Position in the manifest.
            raw: The line, where the manifest is text.
            record: The record, where it is not.
            rejection: What reading the line already found.

        Returns:
            The row, and the text that is exactly its record's, None when there is none or when it
            is not strict JSON.

        Raises:
            SettingsError: The record has a field named like one of ours, or one that changes what
                is asked.
        """
        if raw is not None:
            record, rejection = parse_record(raw)
        if record is None:
            return PlannedRow(row, None, rejection=rejection), None
        self._meaning.check(record, row)
        if self._collisions.strip(record, row) or (raw is not None and not is_strict_json(raw)):
            raw = None
        if rejection is not None:
            return PlannedRow(row, record, rejection=rejection), raw
        return self._decide(row, record)[0], raw

    def _decide(self, row: int, record: Json) -> tuple[PlannedRow, bytes | None]:
        """Judge a record; the row, and its messages as JSON where these are known already."""
        rules = self._rules
        column = rules.conversation_column
        conversation = record.get(column)
        try:
            clips = self._resolve(record)
            if conversation is None and rules.question is None and column not in record:
                detail = missing_conversation(record, column)
                rejection = Rejection(Stage.PLAN, Reason.NO_CONVERSATION, detail)
                return PlannedRow(row, record, rejection=rejection), None
            text = lone_question(conversation)
            if text is not None and len(text) <= _LONGEST_ASKED:
                messages, stored = self._lone(text, len(clips))
                return PlannedRow(row, record, clips, messages), stored
            messages = render(
                conversation,
                len(clips),
                system_prompt=rules.system_prompt,
                question=rules.question,
                field=column,
            )
        except BadRecordError as error:
            return PlannedRow(row, record, rejection=error.rejection), None
        return PlannedRow(row, record, clips, messages), None

    def _lone(self, text: str, clips: int) -> tuple[tuple[Message, ...], bytes]:
        known = self._asked.get((text, clips))
        if known is None:
            if len(self._asked) >= _MAX_ASKED:
                self._asked.clear()
            messages = ask_text(text, clips, self._rules.system_prompt)
            known = self._asked[text, clips] = messages, own_bytes(messages)
        return known
