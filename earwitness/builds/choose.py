"""Which build a command works on: the one named, the one to continue, or a new one."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from earwitness.builds.layout import Build
from earwitness.builds.plan import find_unpublished, manifest_stamp, plan_identity
from earwitness.builds.publish import latest_build, latest_planned_at
from earwitness.errors import BuildNotFoundError, SettingsError
from earwitness.escaping import listed
from earwitness.identity import build_id
from earwitness.storage import Store

if TYPE_CHECKING:
    from earwitness.identity import ModelIdentity
    from earwitness.settings import BuildSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RUN_BYTES = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """The build a run works on.

    Attributes:
        build: The build.
        continued: True when its plan exists already.
    """

    build: Build
    continued: bool


def choose_build(settings: BuildSettings, model: ModelIdentity, *, new: bool = False) -> Choice:
    """Choose the build that a run with these settings makes or continues.

    The build named; else the newest unpublished one with the same identity and manifest, unless a
    newer one is published already: finishing that would move nothing. Else a new one.

    Args:
        settings: Resolved settings.
        model: Which model will answer.
        new: Start another one even where one could be continued.

    Returns:
        The build, and whether it is continued.

    Raises:
        SettingsError: The id given is no id.
    """
    if settings.build is not None:
        build = Build(settings.output, checked_id(settings.build))
        return Choice(build, build.store.exists("plan.json"))
    if not new:
        stamp = manifest_stamp(settings.manifest)
        found = find_unpublished(settings.output, plan_identity(settings, model), stamp)
        if found is not None and not _overtaken(found):
            return Choice(found, continued=True)
    return Choice(Build(settings.output, new_id(settings.layout.name)), continued=False)


def checked_id(build: str) -> str:
    """A build's id as given, made sure to be one.

    Raises:
        SettingsError: It could not be the name of a folder.
    """
    if not _NAME.fullmatch(build):
        raise SettingsError(
            f"{build!r} cannot be a build's id: an id has only letters, digits, '.', '_' and '-'"
        )
    return build


def new_id(name: str | None) -> str:
    """The id of a build that starts now."""
    return build_id(name or "build", datetime.now(tz=UTC), secrets.token_hex(_RUN_BYTES))


def run_build_id(build: str | None, name: str, started: datetime, run: str) -> str:
    """The id of the build that a flow run makes: as given, else the same over the run's retries.

    Args:
        build: The id given, if one is.
        name: First part of the id otherwise.
        started: When the run was scheduled to start.
        run: The run's own id.

    Raises:
        SettingsError: The id given is no id.
    """
    return checked_id(build) if build else build_id(name, started, run)


def build_of_run(output: str, started: datetime, run: str) -> Build | None:
    """The planned build that an earlier attempt of a flow run made, if there is one.

    Args:
        output: Folder or URL datasets are published under.
        started: When the run was scheduled to start.
        run: The run's own id.
    """
    ending = build_id("", started, run).removeprefix("build")
    found = (Build(output, name) for name in build_ids(output) if name.endswith(ending))
    return next((build for build in found if build.store.exists("plan.json")), None)


def existing_build(output: str, build: str | None = None, *, published: bool = False) -> Build:
    """A build that is there, to be looked at.

    Args:
        output: Folder or URL datasets are published under.
        build: Its id. Default: the newest.
        published: Prefer the newest published one.

    Raises:
        BuildNotFoundError: There is none.
        SettingsError: The id given is no id.
    """
    if build is not None:
        found = Build(output, checked_id(build))
        if found.store.exists("plan.json"):
            return found
        known = listed(build_ids(output), 3) or "none"
        raise BuildNotFoundError(
            f"there is no build {build} at {found.output.root} (newest: {known})"
        )
    latest = latest_build(output) if published else ""
    for name in [latest] if latest else build_ids(output):
        found = Build(output, name)
        if found.store.exists("plan.json"):
            return found
    raise BuildNotFoundError(f"there is no build at {Store(output).root}")


def build_ids(output: str) -> list[str]:
    """The ids of an output's builds, newest first."""
    names = Store(output).folders("builds")
    return sorted(names, key=lambda name: name.rsplit("-", 2)[-2:], reverse=True)


def _overtaken(build: Build) -> bool:
    """True when a build planned later is published."""
    return latest_planned_at(build.output.root) > build.plan.planned_at
