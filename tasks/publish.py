"""Check that a build is whole and adds up, and point at it."""

from __future__ import annotations

from typing import Any

from prefect import task

from earwitness.build.layout import Build
from earwitness.build.publish import publish_build
from earwitness.runtime import current
from tasks.retrying import retrying
from tasks.telling import told


@task(name="publish", **retrying)
def publish(build: str) -> dict[str, Any]:
    """Verify receipts, digests and ledger; write build.json and card; move latest.json."""
    facts = publish_build(Build.at(build), current().engine_version())
    counts: dict[str, Any] = facts["counts"]
    message = f"{counts['answered']:,} answers, {counts['rejected']:,} rejections published"
    return told(counts, message)
