"""What people see of a build in Prefect's UI beside its runs: progress, shards, summary.

A server that refuses an artifact never harms the build.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_UI_URL

from earwitness.addresses import without_secrets
from earwitness.builds.account import account_lines
from earwitness.builds.show import build_status
from earwitness.errors import EarwitnessError
from earwitness.escaping import counted, markdown, markdown_code, markdown_lines, printable
from earwitness.progress import Advanced, listen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from earwitness.builds.layout import Build, Counts, Receipt
    from earwitness.progress import Event
    from earwitness.records import Json

_log = logging.getLogger(__name__)

_EVERY_S = 5.0
_TABLE_EVERY_S = 15.0
_MESSAGE_CHARS = 48
"""Cells do not wrap: a longer message is broken into lines."""
_TABLE_ROWS = 500
"""More shards than this are not listed one by one: failed and running ones first."""


def run_link(run: UUID) -> str:
    """The address of a flow run's page in the UI."""
    return f"{PREFECT_UI_URL.value()}/runs/flow-run/{run}"


def artifact_key(kind: str, build: Build) -> str:
    """A key Prefect takes: lowercase letters, digits and dashes."""
    words = f"{kind}-{build.id}".lower()
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in words).split())


def post(kind: str, key: str, data: Any, description: str) -> UUID | None:
    """Create an artifact of the current flow run.

    Args:
        kind: `progress`, `table` or `markdown`.
        key: Artifacts with the same key are versions of one.
        data: As Prefect wants it for the kind.
        description: Shown above it.

    Returns:
        Its id; None: the server did not take it, or there is no flow run.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    made = ArtifactCreate(
        type=kind, key=key, data=data, description=description, flow_run_id=context.flow_run.id
    )
    with _server(key) as client:
        return client.create_artifact(artifact=made).id
    return None


def update(artifact: UUID, data: Any, description: str | None = None) -> bool:
    """Bring an artifact up to date.

    Args:
        artifact: Its id.
        data: As Prefect wants it for the kind.
        description: Shown above it. Default: as it was.

    Returns:
        False when the server did not take it.
    """
    changed = {"data": data} if description is None else {"data": data, "description": description}
    with _server(str(artifact)) as client:
        client.update_artifact(artifact, ArtifactUpdate(**changed))
        return True
    return False


@contextmanager
def _server(artifact: str) -> Iterator[SyncPrefectClient]:
    """Prefect's API for the block; an artifact that it refuses is a warning, and no more."""
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        why = printable(without_secrets(str(error)))
        _log.warning("the Prefect server refused the artifact %s: %s", artifact, why)


@contextmanager
def progress_artifact(key: str, rows: int, done: int, what: str) -> Iterator[None]:
    """Show how far this process is, as an artifact of the current flow run, during the block.

    Args:
        key: The artifact's key (see `artifact_key`).
        rows: Rows in all.
        done: Rows an earlier run has done.
        what: What the bar is about.
    """
    bar = _Bar(key, rows, done, what)
    unlisten = listen(bar.hear)
    try:
        yield
    finally:
        unlisten()
        bar.stop()


class _Bar:
    """A progress artifact, brought up to date by a thread so that no answer waits for it."""

    def __init__(self, key: str, rows: int, done: int, what: str) -> None:
        self._rows, self._done, self._shown = rows, done, -1.0
        self._artifact = post("progress", key, self._percent(), what)
        self._stopping = threading.Event()
        # which server is asked may hold for this thread's context alone
        target = partial(copy_context().run, self._keep)
        self._thread = threading.Thread(target=target, name="earwitness-progress", daemon=True)
        self._thread.start()

    def hear(self, event: Event) -> None:
        if isinstance(event, Advanced):
            self._done += event.generated + event.reused + event.rejected

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._show()

    def _percent(self) -> float:
        return min(100.0, round(100.0 * self._done / self._rows, 1)) if self._rows else 100.0

    def _keep(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            self._show()

    def _show(self) -> None:
        percent = self._percent()
        if self._artifact is None or percent == self._shown:
            return
        if update(self._artifact, percent):
            self._shown = percent


class ShardsTable:
    """The table of a build's shards, with links to their runs.

    Args:
        build: The build.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self._lines: dict[int, dict[str, Any]] = {}
        self._changed = False
        self._posted_s = 0.0
        self._artifact: UUID | None = None

    def note(self, shard: int, run: FlowRun) -> None:
        """Take note of a run's state.

        Args:
            shard: The shard's number.
            run: Its run, as it is now.
        """
        state = run.state
        line = {
            "shard": f"[shard-{shard:05d}]({run_link(run.id)})",
            # the UI takes cells for Markdown, and messages quote manifests, clips and engines
            "state": markdown(state.name) if state else "",
            # of a shard that is done the other columns say all
            "message": ""
            if state is None or state.is_completed()
            else markdown_lines(cause(state.message or ""), _MESSAGE_CHARS),
        }
        known = self._lines.setdefault(shard, {})
        if known | line != known:
            known |= line
            self._changed = True

    def done(self, receipt: Receipt) -> None:
        """Take note of a finished shard's ledger.

        Args:
            receipt: The shard's receipt.
        """
        counts = receipt.counts
        self._lines[receipt.shard] |= {
            "worker": markdown(receipt.worker),
            "rows": counts.rows,
            "answered": counts.answered,
            "reused": counts.reused,
            "rejected": counts.rejected,
        }
        self._changed = True

    def show(self, *, now: bool = False) -> None:
        """Post the table if it changed and the last one is not too fresh.

        Args:
            now: However fresh the last one is.
        """
        due = time.monotonic() - self._posted_s > _TABLE_EVERY_S
        if not self._changed or not (due or now):
            return
        # the page cuts what does not fit, so that the message comes first
        names = ("shard", "state", "message", "rows", "answered", "reused", "rejected", "worker")
        # what went wrong first, then what goes on, then what is done
        order = sorted(self._lines, key=lambda one: ("rows" in self._lines[one], one))
        rows = [{name: self._lines[one].get(name, "") for name in names} for one in order]
        total = len(self._build.plan.shards)
        told = f"Shards that this run started: {len(rows)} of {total}"
        if len(rows) < total:
            told += "; the others were done before, or wait"
        # one artifact, brought up to date: a reader never opens a stale one
        if self._artifact is None:
            key = artifact_key("shards", self._build)
            self._artifact = post("table", key, rows[:_TABLE_ROWS], told)
        else:
            update(self._artifact, rows[:_TABLE_ROWS], told)
        self._changed, self._posted_s = False, time.monotonic()


def cause(message: str) -> str:
    """A state's message without what Prefect puts before it.

    Args:
        message: As the state has it.
    """
    return re.sub(r"^Flow run encountered an exception: (\w+: )?", "", message)


def post_summary(build: Build, counts: Counts, account: Json | None = None) -> None:
    """Say what a published build holds, and where.

    Args:
        build: A published build.
        counts: Its ledger.
        account: What it cost, as `build.json` has it.
    """
    cost = [f"| {name.strip()} | {markdown(told)} |" for name, told in account_lines(account)]
    lines = [
        f"# {markdown(build.id)}",
        "",
        f"Published under {markdown_code(build.uri)}.",
        "",
        "| what | value |",
        "| --- | ---: |",
        *_figures(counts),
        *cost,
        *_reasons(counts),
        "",
        f"- data: {markdown_code(build.store.uri('data'))}",
        f"- rejected rows: {markdown_code(build.store.uri('rejected'))}",
        f"- dataset card: {markdown_code(build.store.uri('README.md'))}",
        f"- settings, counts and digests: {markdown_code(build.store.uri('build.json'))}",
    ]
    post(
        "markdown",
        artifact_key("summary", build),
        "\n".join(lines),
        "What the build holds, and where",
    )


def post_failed_summary(build: Build, error: EarwitnessError) -> None:
    """Say why a build is not published, and what there is of it.

    Args:
        build: A planned build.
        error: Why it is not published.
    """
    try:
        status = build_status(build)
    except EarwitnessError as unread:
        _log.warning("the summary of %s cannot be written: %s", build.id, unread)
        return
    lines = [
        f"# {markdown(build.id)}",
        "",
        f"**Not published:** {markdown(str(error))}",
        "",
        "| what | value |",
        "| --- | ---: |",
        f"| shards that are done | {status.done:,} of {status.shards:,} |",
        f"| rows of the manifest | {status.rows:,} |",
        *_figures(status.counts, "answered or rejected so far"),
        *_reasons(status.counts),
        "",
        f"The build is kept under {markdown_code(build.uri)}.",
        "",
        "If the last missing shard is retried by itself, its run publishes the build.",
    ]
    text = "\n".join(lines)
    post("markdown", artifact_key("summary", build), text, "Why the build is not published")


def _figures(counts: Counts, rows: str = "rows") -> list[str]:
    """Rows of a table in Markdown."""
    return [
        f"| {rows} | {counts.rows:,} |",
        f"| answered | {counts.answered:,} |",
        f"| of them reused | {counts.reused:,} |",
        f"| cut by max_tokens | {counts.cut_by_max_tokens:,} |",
        f"| hours of audio | {counts.audio_s / 3600:,.2f} |",
    ]


def _reasons(counts: Counts) -> list[str]:
    """A table in Markdown of why rows are rejected, the most frequent reason first."""
    if not counts.reasons:
        return []
    ordered = sorted(counts.reasons.items(), key=lambda one: (-one[1], one[0]))
    rows = [f"| {markdown(reason)} | {n:,} |" for reason, n in ordered]
    title = f"## Rejected: {counted(counts.rejected, 'row')}"
    return ["", title, "", "| reason | rows |", "| --- | ---: |", *rows]
