"""What a build would reject, found without an engine: lines are linted, clips decoded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from earwitness.builds.batch import Batch, ClipState, RowState
from earwitness.builds.plan import linted_rows
from earwitness.builds.sources import outcomes_now
from earwitness.builds.stages import (
    decode_batch,
    fetch_batch,
    key_rows,
    recall_rows,
    validate_batch,
)
from earwitness.manifest.lint import Linter, lint_rules
from earwitness.manifest.read import open_manifest
from earwitness.manifest.schema import SchemaBuilder
from earwitness.progress import Planning, tell
from earwitness.runtime import ShardMemory, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from earwitness.builds.layout import Build
    from earwitness.records import PlannedRow, Rejection
    from earwitness.runtime import Runtime
    from earwitness.settings import BuildSettings

T = TypeVar("T")

_EXAMPLES = 3
_ROWS_AT_ONCE = 64
_TELL_EVERY_ROWS = 5_000
_LOOKED_UP_AT_ONCE = 4096


@dataclass(slots=True)
class Found:
    """Rejections of one reason.

    Attributes:
        rows: How many rows.
        examples: The first few: where they are in the manifest, and the detail.
    """

    rows: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        rows: Rows of the manifest; every one was linted.
        sound: Rows that passed the line check.
        heard: Of these, rows whose clips were fetched and decoded.
        audio_s: Length of the clips that would be asked about, of the decoded rows.
        asked: Of the decoded rows, those that would be asked.
        known: Of these, rows whose answer is stored already; None: it was not looked for.
        rejections: By reason.
    """

    rows: int = 0
    sound: int = 0
    heard: int = 0
    audio_s: float = 0.0
    asked: int = 0
    known: int | None = None
    rejections: dict[str, Found] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        """Rows that a build would reject, as far as they were checked."""
        return sum(found.rows for found in self.rejections.values())

    def expected(self, rows: int) -> int:
        """Scale a number of decoded rows up to all rows that passed the line check."""
        return round(self.sound * rows / self.heard) if self.heard else self.sound

    def add(self, place: str, rejection: Rejection) -> None:
        """Count a rejection.

        Args:
            place: Where the row is in the manifest, for a person.
            rejection: Why it would be rejected.
        """
        found = self.rejections.setdefault(str(rejection.reason), Found())
        found.rows += 1
        if len(found.examples) < _EXAMPLES:
            found.examples.append((place, rejection.detail))


def lint_manifest(settings: BuildSettings) -> Report:
    """Lint every line of a manifest; nothing is written, no clip is touched.

    Args:
        settings: Resolved settings.

    Returns:
        Rows, and rejections by reason.

    Raises:
        ManifestError: The manifest as a whole cannot be used.
        SettingsError: A field is named like one of ours.
    """
    report = Report()
    for planned, place in _planned(settings):
        report.rows += 1
        if planned.rejection is not None:
            report.add(place, planned.rejection)
        if report.rows % _TELL_EVERY_ROWS == 0:
            tell(Planning(report.rows))
    report.sound = report.rows - report.rejected
    return report


def check_clips(
    settings: BuildSettings,
    report: Report,
    *,
    sample: int | None = None,
    stored: Build | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Fetch and decode the clips of rows that passed the line check, as a build would.

    Args:
        settings: Resolved settings.
        report: What linting found; what is found here is added.
        sample: Only this many rows, evenly spread. Default: all.
        stored: A build whose output is searched for answers, as given by its model.
        advance: Told how many rows were done.

    Raises:
        CredentialsError: Storage refused the credentials themselves.
    """
    if not sampled(report.sound, sample):
        return
    sound = (pair for pair in _planned(settings) if pair[0].rejection is None)
    chosen = _spread(sound, report.sound, sample)
    look_up = _StoredAnswers(stored, report)
    with running(settings, "") as runtime:
        number = 0
        while rows := list(islice(chosen, _ROWS_AT_ONCE)):
            places = {planned.row: place for planned, place in rows}
            batch = _hear(runtime, [planned for planned, _ in rows], number)
            for row in batch.rows:
                if row.outcome is not None and row.outcome.rejection is not None:
                    report.add(places[row.row], row.outcome.rejection)
                    continue
                heard = [batch.clips[uri].heard for uri in row.clips]
                report.audio_s += sum(clip.heard_s for clip in heard if clip is not None)
            report.heard += len(rows)
            report.asked += len(batch.open_rows())
            look_up.add(batch)
            number += 1
            advance(len(rows))
        look_up.flush()


class _StoredAnswers:
    """Counts rows whose answer is stored, many at once: a look-up reads the builds' keys."""

    def __init__(self, build: Build | None, report: Report) -> None:
        self._build = build
        if build is not None:
            self._outcomes = outcomes_now(build)
        self._report = report
        self._rows: list[RowState] = []

    def add(self, batch: Batch) -> None:
        if self._build is None:
            return
        self._rows += key_rows(batch, self._build.plan.question_digest)
        if len(self._rows) >= _LOOKED_UP_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if self._build is None:
            return
        recall_rows(self._build, self._rows, 0, self._outcomes)
        found = sum(
            row.outcome is not None and row.outcome.answer is not None for row in self._rows
        )
        self._report.known = (self._report.known or 0) + found
        self._rows = []


def sampled(sound: int, sample: int | None) -> int:
    """How many rows `check_clips` will look at."""
    return sound if sample is None else min(sound, sample)


def _spread(rows: Iterator[T], total: int, sample: int | None) -> Iterator[T]:
    wanted = sampled(total, sample)
    taken = 0
    for number, row in enumerate(rows):
        # the k-th of n wanted rows is the first at or after k * total / n
        if taken < wanted and number * wanted >= taken * total:
            taken += 1
            yield row


def _hear(runtime: Runtime, rows: Iterable[PlannedRow], number: int) -> Batch:
    states = [RowState(row.row, list(row.clips), list(row.messages)) for row in rows]
    batch = Batch(states, {uri: ClipState(uri) for row in states for uri in row.clips})
    folder = runtime.batch_folder("check", 0, number)
    clips, audio = folder / "clips", folder / "audio"
    clips.mkdir(parents=True)
    audio.mkdir()
    try:
        runtime.run(fetch_batch(runtime, ShardMemory(), batch, clips))
        runtime.run(validate_batch(runtime, batch, clips))
        runtime.run(decode_batch(runtime, batch, clips, audio))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return batch


def _planned(settings: BuildSettings) -> Iterator[tuple[PlannedRow, str]]:
    """The manifest's rows as planning would judge them, each with its place in the manifest."""
    linter = Linter(lint_rules(settings, settings.question))
    with open_manifest(settings.manifest, max_line_bytes=settings.input.max_line_bytes) as source:
        fields = SchemaBuilder(source.schema)
        lines = source.schema is None
        for planned, _, number in linted_rows(source, linter, fields, settings):
            yield planned, f"row {planned.row}" + (f", line {number}" if lines else "")
        fields.finish()
