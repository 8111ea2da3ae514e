"""Judging manifest lines: each becomes a planned row, asked or rejected, never dropped.

This runs once for every row of a manifest in one process, so that its cost a line is kept near
that of parsing the JSON: no models, no copies, the rare cases behind cheap tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from earwitness.access import AccessPolicy
from earwitness.addresses import parent_uri
from earwitness.errors import BadRecordError
from earwitness.manifest.clips import ClipResolver
from earwitness.manifest.conversation import render
from earwitness.manifest.fields import CollisionCheck
from earwitness.manifest.parse import parse_record
from earwitness.manifest.planned import plan_line
from earwitness.records import PlannedRow

if TYPE_CHECKING:
    from earwitness.manifest.source import RawLine
    from earwitness.records import Json, Rejection
    from earwitness.settings import BuildSettings


@dataclass(frozen=True, slots=True)
class LintRules:
    """What a line is judged by.

    Attributes:
        audio_root: Folder or URL that relative clip paths start from.
        system_prompt: Leads conversations that bring none; empty: none.
        question: Text asked of records without a conversation.
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
        audio_root=settings.input.audio_root or parent_uri(settings.manifest),
        system_prompt=settings.system_prompt,
        question=question,
        audio_column=settings.input.audio_column,
        conversation_column=settings.input.conversation_column,
        answer_column=settings.layout.answer_column,
        provenance_column=settings.layout.provenance_column,
        max_clips=settings.input.max_clips,
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
        SettingsError: The record has a field named like one of ours.
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
        self._resolve = ClipResolver(
            rules.audio_root, rules.audio_column, rules.max_clips, rules.access
        ).resolve

    def lint(self, line: RawLine) -> PlannedRow:
        """Judge one line.

        Args:
            line: As `open_manifest` gives it.

        Returns:
            The row, to be asked or rejected.

        Raises:
            SettingsError: The record has a field named like one of ours.
        """
        return self.judge(line.row, line.text, line.record, line.rejection)[0]

    def plan(self, line: RawLine) -> tuple[PlannedRow, bytes]:
        """Judge one line and write it for the frozen plan.

        Args:
            line: As `open_manifest` gives it.

        Returns:
            The row and its line in the plan (see `plan_line`).

        Raises:
            SettingsError: The record has a field named like one of ours.
        """
        planned, raw = self.judge(line.row, line.text, line.record, line.rejection)
        return planned, plan_line(raw, planned)

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
            The row, and the text that is exactly its record's, None when there is none.

        Raises:
            SettingsError: The record has a field named like one of ours.
        """
        if raw is not None:
            record, rejection = parse_record(raw)
        if record is None:
            return PlannedRow(row, None, rejection=rejection), None
        if self._collisions.strip(record, row):
            raw = None
        if rejection is not None:
            return PlannedRow(row, record, rejection=rejection), raw
        rules = self._rules
        try:
            clips = self._resolve(record)
            messages = render(
                record.get(rules.conversation_column),
                len(clips),
                system_prompt=rules.system_prompt,
                question=rules.question,
                field=rules.conversation_column,
            )
        except BadRecordError as error:
            return PlannedRow(row, record, rejection=error.rejection), raw
        return PlannedRow(row, record, clips, messages), raw
