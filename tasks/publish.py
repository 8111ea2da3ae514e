"""Check that a build is whole and adds up, and point at it."""

from __future__ import annotations

from typing import Any

from prefect import task

from earwitness.builds.layout import Build, Counts
from earwitness.builds.publish import publish_build
from tasks.artifacts import post_summary
from tasks.retrying import retrying
from tasks.telling import plainly, told


@task(name="publish", task_run_name="publish", **retrying)
@plainly
def publish(build: str) -> dict[str, Any]:
    """Verify receipts, digests and ledger; write build.json and card; move latest.json."""
    whole = Build.at(build)
    facts = publish_build(whole)
    counts: dict[str, Any] = facts["counts"]
    post_summary(whole, Counts.model_validate(counts), facts.get("account"))
    return told(counts, build_message(counts))


def build_message(counts: dict[str, Any]) -> str:
    """What a published build holds: `19,993 answers, 7 rejections published`."""
    return f"{counts['answered']:,} answers, {counts['rejected']:,} rejections published"
