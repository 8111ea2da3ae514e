"""What the Prefect server does by itself: dead runs are ended, a failed build is told."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

if TYPE_CHECKING:
    from uuid import UUID

DEAD_RUN = "earwitness: dead run"
STUCK_START = "earwitness: stuck before the start"
STUCK_CANCEL = "earwitness: stuck while cancelling"
FAILED_BUILD = "earwitness: build failed"

_HEARTBEAT = "prefect.flow-run.heartbeat"
_CANCELLING = "prefect.flow-run.Cancelling"
# names of one state type, Pending, which a worker sets one after the other
_PENDING = {
    "prefect.flow-run.Pending",
    "prefect.flow-run.Submitting",
    "prefect.flow-run.InfrastructurePending",
}
_Match = dict[str, str | list[str]]
_RUNS: _Match = {"prefect.resource.id": "prefect.flow-run.*"}
_BUILDS: _Match = {"prefect.resource.role": "flow", "prefect.resource.name": ["build-dataset"]}
# Prefect fills in these templates and no other: what is filled in is never one. Chats and mails
# take what stands in angle brackets for HTML, links or calls to everybody: messages quote strangers
_PLAIN = '|replace("<", "\u2039")|replace(">", "\u203a")'
_NAME, _STATE = f"flow_run.name{_PLAIN}", f"flow_run.state.name{_PLAIN}"
_NEWS = f"""{{{{ flow.name }}}} {{{{ {_NAME} }}}}: {{{{ {_STATE} }}}}
{{{{ (flow_run.state.message or ""){_PLAIN} }}}}
{{{{ flow_run|ui_url }}}}"""


def dead_run(after_s: float) -> AutomationCore:
    """End a run whose heartbeat stopped: its process, worker or machine is gone.

    Args:
        after_s: Seconds without a heartbeat (one comes every 30 s).

    Returns:
        The automation.
    """
    message = (
        f"No heartbeat for {after_s:g} s: its process or its machine is gone. Retry continues it."
    )
    return _silence(DEAD_RUN, {_HEARTBEAT}, after_s, StateType.CRASHED, message)


def stuck_start(after_s: float) -> AutomationCore:
    """End a run that a worker took and never started.

    Args:
        after_s: Seconds a run may stay Pending.

    Returns:
        The automation.
    """
    message = (
        f"Pending for {after_s:g} s: its worker did not start it. Retry gives it to another worker."
    )
    return _silence(STUCK_START, _PENDING, after_s, StateType.CRASHED, message)


def stuck_cancel(after_s: float) -> AutomationCore:
    """End a run that nobody is left to cancel.

    Args:
        after_s: Seconds a run may stay Cancelling.

    Returns:
        The automation.
    """
    message = f"Cancelling for {after_s:g} s: no worker is left to stop it."
    return _silence(STUCK_CANCEL, {_CANCELLING}, after_s, StateType.CANCELLED, message)


def failed_build(block: UUID) -> AutomationCore:
    """Tell people that a build failed or crashed.

    Args:
        block: Id of the notification block that sends it.

    Returns:
        The automation.
    """
    # by the state's type, not its name: states have names of their own that say what happened
    trigger = EventTrigger(
        expect={"prefect.flow-run.*"},
        match={**_RUNS, "prefect.state-type": ["FAILED", "CRASHED"]},
        match_related=_BUILDS,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    subject = f"earwitness: {{{{ {_NAME} }}}} failed"
    action = SendNotification(block_document_id=block, subject=subject, body=_NEWS)
    return _complete(AutomationCore(name=FAILED_BUILD, trigger=trigger, actions=[action]))


def _silence(
    name: str, after: set[str], within_s: float, state: StateType, message: str
) -> AutomationCore:
    """Set a state when an event is followed by nothing at all."""
    trigger = EventTrigger(
        after=after,
        # any sign of life counts: states have names of their own
        expect={"prefect.flow-run.*"},
        match=_RUNS,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_s),
    )
    action = ChangeFlowRunState(name=None, state=state, message=message, force=False)
    return _complete(
        AutomationCore(name=name, description=message, trigger=trigger, actions=[action])
    )


def _complete(automation: AutomationCore) -> AutomationCore:
    """Mark every field as set: an update sends only those, and the server needs nearly all."""
    return AutomationCore.model_validate(automation.model_dump(exclude={"owner_resource"}))
