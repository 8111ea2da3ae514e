"""Freeze a build, or take up the plan that is there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from prefect import task
from prefect.runtime import flow_run

from earwitness.build.layout import Build, Gates
from earwitness.build.plan import plan_build, plan_identity
from earwitness.build.prepare import resolve_model, resolve_settings
from earwitness.errors import SettingsError
from earwitness.identity import build_id
from earwitness.progress import Advanced, Planned, tell
from earwitness.settings import BuildSettings  # noqa: TC001 - Prefect reads the annotation
from tasks.retrying import retrying


@dataclass(frozen=True, slots=True)
class PlannedBuild:
    """What flows need to know of a plan.

    Attributes:
        uri: The build's address.
        rows: Records in all.
        shards: Shards without a receipt, in order.
        model: The name requests are sent under.
        settings: The settings to run with: frozen where they must be, this run's elsewhere.
    """

    uri: str
    rows: int
    shards: list[int]
    model: str
    settings: BuildSettings


@task(name="plan", task_run_name="plan {settings.manifest}", **retrying)
def plan(settings: BuildSettings) -> PlannedBuild:
    """Read and lint the manifest, freeze it as shards; nothing is planned twice."""
    settings = resolve_settings(settings)
    name, model = resolve_model(settings)
    started = flow_run.scheduled_start_time or datetime.now(tz=UTC)
    chosen = settings.build or build_id(settings.layout.name or "build", started, flow_run.id or "")
    build = Build(settings.output, chosen)
    resumed = build.store.exists("plan.json")
    frozen = plan_build(build, settings, model, started.astimezone(UTC))
    if frozen.identity != plan_identity(settings, model):
        raise SettingsError(
            f"{build.id} was planned with other settings or another model; leave out --build "
            "to start a build with these"
        )
    build.set_gates(Gates(**{**build.gates.model_dump(), "max_rejected": settings.max_rejected}))
    tell(Planned(build.id, frozen.rows, len(frozen.shards), resumed))
    missing = build.missing_shards()
    tell(Advanced(**_done(build, missing)))
    if model.kind == "hub":  # the engine must serve the very commit the keys are made with
        engine = settings.engine.model_copy(update={"revision": model.version})
        settings = settings.model_copy(update={"engine": engine})
    return PlannedBuild(build.uri, frozen.rows, missing, name, settings)


def _done(build: Build, missing: list[int]) -> dict[str, int]:
    """Counts of the shards an earlier run finished."""
    done = set(range(len(build.plan.shards))).difference(missing)
    counts = [receipt.counts for number in done if (receipt := build.receipt(number))]
    return {
        kind: sum(getattr(one, kind) for one in counts)
        for kind in ("generated", "reused", "rejected")
    }
