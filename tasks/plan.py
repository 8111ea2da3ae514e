"""Freeze a build, or take up the plan that is there."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - Prefect reads it
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from prefect import task
from prefect.runtime import deployment, flow_run

from earwitness.addresses import absolute_uri, without_secrets
from earwitness.builds.choose import build_of_run, run_build_id
from earwitness.builds.layout import Build, Plan
from earwitness.builds.plan import plan_build, plan_identity
from earwitness.builds.prepare import build_name, resolve_model, resolve_settings
from earwitness.builds.retry import build_to_retry, source_to_retry
from earwitness.builds.stored import continued_engine
from earwitness.credentials import check_engine
from earwitness.errors import SettingsError
from earwitness.escaping import counted
from earwitness.progress import Advanced, Planned, tell
from earwitness.records import Reason  # noqa: TC001 - Prefect reads it
from earwitness.settings import BuildSettings, EngineSettings  # noqa: TC001 - Prefect reads them
from tasks.retrying import retrying
from tasks.telling import plainly, told


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


def _run_name(parameters: dict[str, Any]) -> str:
    return f"plan {without_secrets(parameters['settings'].manifest)}"


@task(name="plan", task_run_name=cast("Any", _run_name), **retrying)
@plainly
def plan(settings: BuildSettings) -> PlannedBuild:
    """Read and lint the manifest, freeze it as shards; nothing is planned twice."""
    settings = resolve_settings(settings)
    name, model = resolve_model(settings)
    started, run = _this_run()
    wanted = build_name(settings.output, settings.layout)
    chosen = run_build_id(settings.build, wanted, started, run)
    build = Build(settings.output, chosen)
    resumed = build.store.exists("plan.json")
    frozen = plan_build(build, settings, model, started.astimezone(UTC))
    if frozen.identity != plan_identity(settings, model):
        raise SettingsError(
            f"{build.id} was planned with other settings or another model: leave out --build "
            "to start a new build with these settings"
        )
    gates = {"max_rejected": settings.max_rejected, **_price(settings.engine)}
    planned = _begin(build, name, settings, gates, resumed=resumed)
    rows, shards = counted(planned.rows, "row"), counted(len(frozen.shards), "shard")
    return told(planned, f"{rows} in {shards}")


@task(name="plan", task_run_name="continue the build", **retrying)
@plainly
def take_up(
    output: str,
    build: str | None,
    max_rejected: float | None,
    engine: EngineSettings,
    *,
    reasons: Sequence[Reason] = (),
) -> PlannedBuild:
    """Find a build that was planned earlier, or one over the same rows that asks some again."""
    check_engine(engine)
    found = _retried(absolute_uri(output), build, reasons)
    settings = _continued(found.plan.settings, engine)
    name, _ = resolve_model(settings) if settings.engine.url else (settings.model, None)
    gates = {"max_rejected": max_rejected, **_price(engine)}
    return _begin(found, name or "", settings, gates, resumed=True)


def _retried(output: str, build: str | None, reasons: Sequence[Reason]) -> Build:
    """The build that goes on; with reasons a new one, the same over the flow run's retries."""
    if not reasons:
        return source_to_retry(output, build, with_reason=False)
    started, run = _this_run()
    made = build_of_run(output, started, run)
    if made is not None:
        return made
    source = source_to_retry(output, build, with_reason=True)
    name = source.plan.settings.layout.name or "build"
    return build_to_retry(source, reasons, run_build_id(None, name, started, run))


def _this_run() -> tuple[datetime, str]:
    """When the flow run was scheduled to start, and its id."""
    return flow_run.scheduled_start_time or datetime.now(tz=UTC), flow_run.id or ""


def _price(engine: EngineSettings) -> dict[str, float | None]:
    return {"price_per_hour": engine.price_per_hour}


def _begin(
    build: Build,
    model: str,
    settings: BuildSettings,
    gates: dict[str, float | None],
    *,
    resumed: bool,
) -> PlannedBuild:
    """Set the gates of a planned build that this run names, and tell what of it is done."""
    named = {name: value for name, value in gates.items() if value is not None}
    if named:
        build.set_gates(build.gates.model_copy(update=named))
    frozen = build.plan
    tell(Planned(build.id, frozen.rows, len(frozen.shards), resumed))
    missing = build.missing_shards()
    tell(Advanced(**_done(build, missing)))
    return PlannedBuild(build.uri, frozen.rows, missing, model, _pinned(settings, frozen))


def _continued(planned: BuildSettings, engine: EngineSettings) -> BuildSettings:
    """The settings a build was planned with, and for the engine's machinery what is given now.

    A value that is the default says nothing: forms send a whole group that nobody touched.
    """
    given = {
        name: getattr(engine, name)
        for name, field in type(engine).model_fields.items()
        if getattr(engine, name) != field.default
    }
    # a run of a deployment starts no engine: its shards go to workers, which have their own
    told = {"shards_on": True, **given} if deployment.id else given
    taken_up = continued_engine(planned.engine, told).model_copy(update=given)
    changed = planned.model_copy(update={"engine": taken_up})
    if changed.frozen_digest() != planned.frozen_digest():
        raise SettingsError(
            "a build continues with the engine arguments that it was planned with: leave out the "
            "engine settings, or start a new build"
        )
    return changed


def _pinned(settings: BuildSettings, frozen: Plan) -> BuildSettings:
    """Settings whose engine serves the very commit the keys are made with."""
    if frozen.model["kind"] != "hub":
        return settings
    engine = settings.engine.model_copy(update={"revision": frozen.model["version"]})
    return settings.model_copy(update={"engine": engine})


def _done(build: Build, missing: list[int]) -> dict[str, int]:
    """Counts of the shards an earlier run finished."""
    done = set(range(len(build.plan.shards))).difference(missing)
    counts = [receipt.counts for number in done if (receipt := build.receipt(number))]
    return {
        kind: sum(getattr(one, kind) for one in counts)
        for kind in ("generated", "reused", "rejected")
    }
