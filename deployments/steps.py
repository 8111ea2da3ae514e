"""Steps of `prefect.yaml`: what a deploy takes from its environment, what a run checks first."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import earwitness
from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

NEEDED = ("manifest", "output", "model")
"""What a build cannot do without."""
DEFAULTS = {"cron": "0 2 * * *", "timezone": "UTC"}
"""What the schedule is when the environment does not say."""


def from_environment(
    *, environment: Mapping[str, str] = os.environ, **variables: str
) -> dict[str, str | bool]:
    """Give a deploy the values that differ from house to house.

    A variable that is not set gives no value at all: the parameter stays empty in the form, and a
    run without it is refused by name. A nightly build that lacks one gets its schedule switched
    off, instead of failing every night.

    Args:
        environment: Where the variables are.
        **variables: Name in `prefect.yaml` → name of the environment variable.

    Returns:
        The values that are set, this `version` of earwitness, and whether the nightly's are
        `complete`.
    """
    values = {name: environment.get(variable, "") for name, variable in variables.items()}
    found = {name: value or DEFAULTS.get(name, "") for name, value in values.items()}
    missing = [variables[name] for name in NEEDED if name in variables and not found.get(name)]
    if missing:
        sys.stderr.write(
            f"{' and '.join(missing)} not set: each run has to give the value itself, and the "
            "nightly schedule is off. To turn it on, set the variable and deploy again.\n"
        )
    given = {name: value for name, value in found.items() if value}
    return {**given, "version": earwitness.__version__, "complete": not missing}


def keep_paused(*, deployment: str, slug: str, complete: bool) -> dict[str, bool]:
    """Whether a schedule is to be on: not when somebody has paused it since the last deploy.

    Prefect switches a schedule to what `prefect.yaml` says of it, at every deploy.

    Args:
        deployment: `flow/deployment`.
        slug: Of the schedule in it.
        complete: Whether the deploy knows what to build.

    Returns:
        Whether the schedule is `active`.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            known = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return {"active": complete}
    # the deployment's own switch is set back by a deploy, and cannot be set from `prefect.yaml`
    off = known.paused or any(one.slug == slug and not one.active for one in known.schedules)
    # without them the last deploy has switched it off, and no person
    was_complete = all(known.parameters.get(name) for name in NEEDED)
    if complete and off and was_complete:
        sys.stderr.write(
            f"the schedule {slug!r} of {deployment} was paused and stays paused: resume it in the "
            "UI (Deployments)\n"
        )
        return {"active": False}
    return {"active": complete}


def check_version(version: str) -> None:
    """Refuse a run on a worker whose earwitness is not the one that was deployed.

    Args:
        version: The version that was deployed.

    Raises:
        SettingsError: The worker's differs.
    """
    here = earwitness.__version__
    if here != version:
        message = (
            f"this worker has earwitness {here}, but the deployment was made with {version}. "
            "Update the worker's checkout and restart the worker, or run `prefect deploy --all` "
            "with the workers' version; then retry the run"
        )
        _fail_this_run(message)
        raise SettingsError(message)


def _fail_this_run(message: str) -> None:
    """Say it in the run's state: an error before the flow starts would be in its log alone."""
    run_id = os.environ.get("PREFECT__FLOW_RUN_ID")
    if not run_id:
        return
    from prefect.client.orchestration import get_client
    from prefect.states import Failed

    with get_client(sync_client=True) as client:
        # no rule applies: the run has not begun
        client.set_flow_run_state(UUID(run_id), Failed(message=message), force=True)
