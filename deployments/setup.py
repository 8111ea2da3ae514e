"""Create what the deployments need on a Prefect server: pools, queues, limits, automations.

It can be run again at any time: what exists is kept, and what differs is corrected. Limits that are
not given, and automations that a person disabled, are not changed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from rich.console import Console
from rich.table import Table

from deployments import automations
from earwitness.addresses import without_secrets
from earwitness.errors import EarwitnessError, FatalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from prefect.events.schemas.automations import AutomationCore

POOLS = {
    "default": "Runs of builds: they plan, start the runs of shards, and publish. No GPU needed.",
    "gpu": "Runs of shards, on GPU machines that run `earwitness worker --model …`.",
}
"""Work pools, and what runs on them."""
QUEUES = {"interactive": 1, "nightly": 10}
"""Queues of each pool, and their priority: the lower number goes first."""

ZOMBIE_AFTER_S = 90.0
"""Three heartbeats."""
PENDING_AFTER_S = 600.0
CANCELLING_AFTER_S = 300.0
_SHORTEST_S = 10.0
"""Prefect watches no shorter silence."""
Row = tuple[str, str, str]
"""A thing, its details, and what was done about it."""
_MADE, _CHANGED, _KEPT = "created", "changed", "unchanged"

_EPILOG = """\
To get a notification when a build fails, create a notification block once (in the UI: Blocks > + >
Slack Webhook, Microsoft Teams, …; or in Python), then give its name:

    python -m deployments.setup --notify slack-webhook/team

To give all runs a secret, create it in the same place (Blocks > + > Secret), then give its name:

    python -m deployments.setup --secret AWS_SECRET_ACCESS_KEY=aws-secret

PREFECT_API_URL (or the current Prefect profile) says which Prefect server is set up.
"""


def set_up(
    client: SyncPrefectClient,
    limits: Mapping[str, int | None],
    secrets: Mapping[str, str],
    wanted: Sequence[AutomationCore],
) -> Iterator[Row]:
    """Make everything, one thing after the other.

    Args:
        client: The Prefect server.
        limits: Flow runs at once, by pool; None leaves what is set.
        secrets: Secret block by the environment variable that runs get it as.
        wanted: The automations.

    Yields:
        What was done about each thing.
    """
    for name, description in POOLS.items():
        yield _pool(client, name, description, limits.get(name))
        for variable, block in secrets.items():
            yield _secret(client, name, variable, block)
        for queue, priority in QUEUES.items():
            yield _queue(client, name, queue, priority)
    for automation in wanted:
        yield _automation(client, automation)


def _pool(client: SyncPrefectClient, name: str, description: str, limit: int | None) -> Row:
    thing = f"work pool {name}"
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        from prefect.workers.process import ProcessWorker

        new = WorkPoolCreate(
            name=name,
            description=description,
            type=ProcessWorker.type,
            base_job_template=ProcessWorker.get_default_base_job_template(),
        )
        if limit is not None:
            new.concurrency_limit = limit
        client.create_work_pool(new)
        return thing, _limit(limit), _MADE
    if pool.type != "process":
        raise FatalError(
            f"the work pool {name!r} is of type {pool.type!r}, not 'process'; delete or rename it"
        )
    if limit is None or pool.concurrency_limit == limit:
        return thing, _limit(pool.concurrency_limit), _KEPT
    client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))
    return thing, _limit(limit), _CHANGED


def _secret(client: SyncPrefectClient, pool: str, variable: str, block: str) -> Row:
    """Let the pool's workers look a secret up for each run; only its block's name is stored."""
    thing, details = f"secret {pool}/{variable}", f"block secret/{block}"
    template = client.read_work_pool(pool).base_job_template
    environment = template["variables"]["properties"]["env"]
    looked_up = f"{{{{ prefect.blocks.secret.{block} }}}}"
    known = environment.get("default") or {}
    if known.get(variable) == looked_up:
        return thing, details, _KEPT
    environment["default"] = {**known, variable: looked_up}
    client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))
    return thing, details, _CHANGED if variable in known else _MADE


def _limit(limit: int | None) -> str:
    return "no limit" if limit is None else f"{limit} at once"


def _queue(client: SyncPrefectClient, pool: str, name: str, priority: int) -> Row:
    thing, details = f"queue {pool}/{name}", f"priority {priority}"
    try:
        queue = client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        client.create_work_queue(name, priority=priority, work_pool_name=pool)
        return thing, details, _MADE
    if queue.priority == priority:
        return thing, details, _KEPT
    client.update_work_queue(queue.id, priority=priority)
    return thing, details, _CHANGED


def _automation(client: SyncPrefectClient, wanted: AutomationCore) -> Row:
    thing, details = f"automation “{wanted.name}”", wanted.description.partition(":")[0]
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return thing, details, _MADE
    there = found[0]
    # who switched it off meant it
    wanted = wanted.model_copy(update={"enabled": there.enabled})
    if all(getattr(there, name) == getattr(wanted, name) for name in type(wanted).model_fields):
        return thing, details, _KEPT
    client.update_automation(there.id, wanted)
    return thing, details, _CHANGED


def _wanted(client: SyncPrefectClient, options: argparse.Namespace) -> list[AutomationCore]:
    wanted = [
        automations.dead_run(options.zombie_after_s),
        automations.stuck_start(options.pending_after_s),
        automations.stuck_cancel(CANCELLING_AFTER_S),
    ]
    if options.notify:
        kind, _, name = options.notify.partition("/")
        wanted.append(automations.failed_build(_block(client, kind, name)))
    return wanted


def _block(client: SyncPrefectClient, kind: str, name: str) -> UUID:
    try:
        return client.read_block_document_by_name(name, kind, include_secrets=False).id
    except ObjectNotFound as error:
        raise FatalError(
            f"there is no block {kind}/{name} on this server: `prefect block ls` lists all blocks "
            "as TYPE/NAME"
        ) from error


def _secrets(client: SyncPrefectClient, given: Sequence[str]) -> dict[str, str]:
    secrets = dict(pair.split("=", 1) for pair in given)
    for block in secrets.values():
        _block(client, "secret", block)
    return secrets


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.setup",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for pool in POOLS:
        parser.add_argument(
            f"--{pool}-limit", type=int, metavar="N", help=f"most runs at once on the pool {pool}"
        )
    parser.add_argument(
        "--notify", metavar="TYPE/NAME", help="notification block to use when a build fails"
    )
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        type=_pair,
        metavar="VARIABLE=BLOCK",
        help="give every run this Prefect Secret block as an environment variable; may be repeated",
    )
    parser.add_argument(
        "--zombie-after-s",
        type=_seconds,
        default=ZOMBIE_AFTER_S,
        metavar="S",
        help="end a run that sends no heartbeat for this many seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--pending-after-s",
        type=_seconds,
        default=PENDING_AFTER_S,
        metavar="S",
        help="end a run that a worker took and did not start for this many seconds (default: "
        "%(default)g)",
    )
    return parser


def _pair(text: str) -> str:
    variable, _, block = text.partition("=")
    if not variable or not block:
        raise argparse.ArgumentTypeError(f"it has to be VARIABLE=BLOCK, not {text!r}")
    return text


def _seconds(text: str) -> float:
    seconds = float(text)
    if seconds < _SHORTEST_S:
        raise argparse.ArgumentTypeError(f"it has to be at least {_SHORTEST_S:g}, not {text}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Set up the Prefect server; print what was made.

    Args:
        arguments: The command line. Default: the process's own.
    """
    options = _parser().parse_args(arguments)
    limits = {pool: getattr(options, f"{pool}_limit") for pool in POOLS}
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    try:
        address = get_current_settings().api.url
        if not address:
            raise FatalError(
                "PREFECT_API_URL is not set: set it to the API of the Prefect server to set up "
                "(http://HOST:4200/api)"
            )
        with get_client(sync_client=True) as client:
            secrets, wanted = _secrets(client, options.secret), _wanted(client, options)
            for row in set_up(client, limits, secrets, wanted):
                table.add_row(*row)
    except httpx.TransportError as error:
        sys.exit(
            without_secrets(f"error: the Prefect server at {address} does not answer ({error})")
        )
    except httpx.HTTPStatusError as error:
        sys.exit(without_secrets(f"error: the Prefect server refused: {error}").partition("\n")[0])
    except EarwitnessError as error:
        sys.exit(f"error: {error}")
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    if not options.notify:
        console.print("\nNo notification is sent when a build fails; see --notify in --help.")
    console.print("\nNext: prefect deploy --all", style="bold")


if __name__ == "__main__":
    main()
