"""Plans manifests in a process of its own: `python -m tests.chaos.plan_one FOLDER MANIFEST…`.

Prints a line of JSON for each: its rows by what became of them, or the error a person would read,
and the process's peak memory so far.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from earwitness.builds.layout import Build
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.resolve import read_shard
from earwitness.errors import FatalError
from earwitness.identity import ModelIdentity
from earwitness.settings import BuildSettings
from tests.chaos.memory import memory_mib


def plan(folder: str, manifest: str, number: int) -> dict[str, Any]:
    """Plan one manifest and read the plan back."""
    settings = resolve_settings(BuildSettings(manifest=manifest, output=folder))
    build = Build(folder, f"chaos-{number}")
    found: dict[str, Any] = {"manifest": manifest}
    try:
        frozen = plan_build(build, settings, ModelIdentity("declared", "x", ""), datetime.now(UTC))
    except FatalError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    else:
        became: Counter[str] = Counter()
        in_order = True
        for shard in range(len(frozen.shards)):
            for row in read_shard(build, shard):
                in_order &= row.row == became.total()
                became[row.rejection.reason.value if row.rejection else "planned"] += 1
        found |= {"rows": frozen.rows, "in_order": in_order, "became": became}
    found["peak_mib"] = memory_mib(os.getpid(), "VmHWM")
    return found


if __name__ == "__main__":
    for position, path in enumerate(sys.argv[2:]):
        print(json.dumps(plan(sys.argv[1], path, position)), flush=True)
