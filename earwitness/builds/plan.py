"""Plan: read the manifest once, lint every line, and freeze the build."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import earwitness
from earwitness.addresses import without_secrets
from earwitness.builds.failures import too_many_failed
from earwitness.builds.layout import (
    Build,
    Gates,
    ManifestFacts,
    Plan,
    ShardPlan,
    first_gates,
    shard_path,
)
from earwitness.builds.publish import latest_planned_at
from earwitness.builds.sources import choose_sources
from earwitness.errors import BuildNotFoundError, ManifestError, SettingsError
from earwitness.identity import question_digest
from earwitness.manifest.clips import audio_root_hint
from earwitness.manifest.lint import Linter, lint_rules
from earwitness.manifest.planned import plan_line
from earwitness.manifest.read import open_manifest
from earwitness.manifest.schema import SchemaBuilder
from earwitness.progress import Planning, tell
from earwitness.records import PlannedRow, Stage
from earwitness.scratch import scratch_folder
from earwitness.storage import Store
from earwitness.storage_calls import sure_stamp
from earwitness.unexpected import rejection_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earwitness.identity import ModelIdentity
    from earwitness.manifest.read import ManifestSource
    from earwitness.settings import BuildSettings

LintedRow = tuple["PlannedRow", bytes, int]
"""A row, its line in the plan, and the number of its line in the manifest."""
_TELL_EVERY_ROWS = 5_000
_HINT_ROWS = 20
_WRITE_BYTES = 2**16
_RESUMABLE_BUILDS = 50


def plan_identity(settings: BuildSettings, model: ModelIdentity) -> str:
    """What two runs must share to be the same build: frozen settings and the model's identity."""
    # a signature is no part of what is read, and is not stored
    unsigned = settings.model_copy(update={"manifest": without_secrets(settings.manifest)})
    text = f"{unsigned.frozen_digest()}:{model.digest()}"
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_stamp(uri: str) -> str:
    """The manifest's size and version now; empty where storage does not say or it is not there."""
    try:
        stamp = sure_stamp(uri)
    except (OSError, ValueError):
        return ""
    return str(stamp) if stamp.version else ""


def find_unpublished(output: str, identity: str, stamp: str) -> Build | None:
    """The newest unpublished build of an output that a run with this identity continues.

    Args:
        output: Folder or URL datasets are published under.
        identity: `plan_identity` of the run.
        stamp: The manifest's stamp now; an unknown one never matches.
    """
    if not stamp:
        return None
    pointed = latest_planned_at(output)
    builds = sorted(Store(output).folders("builds"), key=_started, reverse=True)
    for name in builds[:_RESUMABLE_BUILDS]:
        build = Build(output, name)
        try:
            plan = build.plan
        except (BuildNotFoundError, ValueError):
            continue  # killed before it was planned, or damaged
        # newer than what latest.json points at: killed before the pointer was moved
        if build.published and plan.planned_at <= pointed:
            continue
        if plan.identity == identity and plan.manifest.stamp == stamp:
            return build
    return None


def _started(name: str) -> str:
    """The part of a build's id that sorts by time."""
    return "-".join(name.rsplit("-", 2)[-2:])


def plan_build(
    build: Build, settings: BuildSettings, model: ModelIdentity, planned_at: datetime
) -> Plan:
    """Freeze a build: shards' rows as files, the plan last. A plan that exists is kept as it is.

    Args:
        build: Where it goes.
        settings: Resolved settings.
        model: Which model will answer.
        planned_at: The build's scheduled start, in UTC; the plan says a later one where a build
            planned after it is published already (clocks go wrong, schedules run late).

    Returns:
        The frozen plan.

    Raises:
        ManifestError: The manifest as a whole cannot be read.
        SettingsError: A manifest field is named like one of ours.
        BuildVersionError: The output's builds are another version's.
    """
    try:
        return build.plan
    except BuildNotFoundError:
        pass
    _check_versions(build.output.root)
    question = question_digest(model, settings.sampling)
    sources = choose_sources(build.output.root, settings.layout.name or "", question)
    linter = Linter(lint_rules(settings, settings.question))
    size = settings.layout.shard_rows
    with open_manifest(settings.manifest, max_line_bytes=settings.input.max_line_bytes) as source:
        asked = settings.question and (settings.input.conversation_column, settings.question)
        fields = SchemaBuilder(source.schema, asked or None)
        rows = linted_rows(source, linter, fields, settings)
        shards: list[ShardPlan] = []
        while (shard := _write_shard(build, len(shards), islice(rows, size))) is not None:
            shards.append(shard)
        manifest = ManifestFacts(
            uri=without_secrets(source.uri),
            stamp=source.stamp or "",
            sha256=source.digest,
            bytes=source.read_bytes,
            line_a_row=source.schema is None and source.lines == source.rows,
        )
    plan = Plan(
        earwitness=earwitness.__version__,
        build=build.id,
        planned_at=_planning_time(build, planned_at),
        manifest=manifest,
        settings=settings.model_copy(update={"manifest": without_secrets(settings.manifest)}),
        model=asdict(model),
        identity=plan_identity(settings, model),
        question_digest=question,
        base=sources.base,
        sources=sources.all,
        fields=fields.finish().to_json(),
        rows=sum(shard.rows for shard in shards),
        shards=tuple(shards),
    )
    build.set_gates(first_gates(settings))
    build.store.write_bytes("plan.json", plan.to_bytes())
    return plan


def _check_versions(output: str) -> None:
    """Refuse an output whose newest build another version planned."""
    for name in sorted(Store(output).folders("builds"), key=_started, reverse=True):
        with suppress(BuildNotFoundError, ValueError):  # not planned to its end, or damaged
            _ = Build(output, name).plan
            return


def copy_plan(source: Build, target: Build, planned_at: datetime, gates: Gates) -> Plan:
    """Start a new build over the rows of an earlier one.

    Args:
        source: A planned build.
        target: The new build.
        planned_at: The new build's start, in UTC.
        gates: The new build's gates, among them the reasons to ask again.

    Returns:
        The new build's plan.
    """
    plan = source.plan
    name = plan.settings.layout.name or ""
    sources = choose_sources(target.output.root, name, plan.question_digest, base=source.id)
    plan = plan.model_copy(
        update={
            "build": target.id,
            "planned_at": _planning_time(target, planned_at),
            "base": sources.base,
            "sources": sources.all,
        }
    )
    for number in range(len(plan.shards)):
        data = source.store.read_bytes(shard_path(number))
        target.store.write_bytes(shard_path(number), data)
    target.set_gates(gates)
    target.store.write_bytes("plan.json", plan.to_bytes())
    return plan


def _planning_time(build: Build, planned_at: datetime) -> str:
    """When a build counts as planned: always after what is published when it is planned.

    Otherwise one build planned while a clock was a year ahead would stay the newest for a year.
    """
    pointed = latest_planned_at(build.output.root)
    if pointed:
        after = datetime.fromisoformat(pointed) + timedelta(microseconds=1)
        planned_at = max(planned_at, after)
    return planned_at.isoformat(timespec="microseconds")


def linted_rows(
    source: ManifestSource, linter: Linter, fields: SchemaBuilder, settings: BuildSettings
) -> Iterator[LintedRow]:
    """The manifest's rows as they will be planned, with their lines in the plan and the manifest.

    Args:
        source: The opened manifest.
        linter: Judges the lines.
        fields: Told of every record that is not rejected.
        settings: The build's settings, resolved.

    Raises:
        ManifestError: The manifest cannot be read, or its clips are named relative to the working
            directory.
    """
    return _with_hint(_linted(source, linter, fields), settings)


def _linted(source: ManifestSource, linter: Linter, fields: SchemaBuilder) -> Iterator[LintedRow]:
    unexpected = 0
    for line in source:
        try:
            planned, text, signature = linter.plan(line)
            if planned.rejection is None and planned.record is not None:
                fields.add(planned.record, len(text), signature)
        except SettingsError as error:
            if source.schema is not None:
                raise
            # rows count from 0, and editors count lines from 1, with those that are empty
            raise SettingsError(f"{error} (line {line.line_number} of the file)") from error
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this line alone
            rejection = rejection_of(error, Stage.PLAN, f"row {line.row}")
            planned = PlannedRow(line.row, None, rejection=rejection)
            text = plan_line(None, planned)
            unexpected += rejection.transient
        if source.rows % _TELL_EVERY_ROWS == 0:
            tell(Planning(source.rows))
        yield planned, text, line.line_number
    if too_many_failed(unexpected, source.rows):
        raise ManifestError(
            f"{unexpected:,} of {source.rows:,} lines failed with unexpected errors, so nothing is "
            "planned; the log has their traces"
        )


def _with_hint(rows: Iterator[LintedRow], settings: BuildSettings) -> Iterator[LintedRow]:
    """Stop at the start when the manifest's clips exist only relative to the working directory."""
    first = list(islice(rows, _HINT_ROWS))
    paths: list[str] = []
    for planned, *_ in first:
        audio = (planned.record or {}).get(settings.input.audio_column)
        named = [audio] if isinstance(audio, str) else audio if isinstance(audio, list) else []
        paths += [path for path in named if isinstance(path, str)]
    hint = audio_root_hint(paths, settings.input.audio_root or "")
    if hint is not None:
        raise ManifestError(hint)
    yield from first
    yield from rows


def _write_shard(build: Build, number: int, rows: Iterator[LintedRow]) -> ShardPlan | None:
    """Write the next shard's rows as one file; None where no rows are left."""
    first, count, rejected = -1, 0, 0
    with scratch_folder() as folder:
        path = folder / "rows"
        with path.open("wb", buffering=_WRITE_BYTES) as file:
            for planned, text, _ in rows:
                first = planned.row if first < 0 else first
                count += 1
                rejected += planned.rejection is not None
                file.write(text + b"\n")
        if not count:
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        build.store.upload(path, shard_path(number))
    return ShardPlan(first_row=first, rows=count, rejected=rejected, sha256=digest.hexdigest())
