"""Calculates builds of 10 and 100 million clips on 1 to 64 GPU machines: docs/scale.md.

    python -m tests.bench.scale                          the tables
    python -m tests.bench.scale --write docs/scale.md    put them into the page
    python -m tests.bench.scale --engine-rate 20         with another figure

Storage calls are counted from the code (`tests.bench.scale_calls`; an integration test counts those
of a small build); times come from the costs below, each of which names the row of
docs/performance.md it is from. The same figures give the same page.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from tests.bench.page import put_between
from tests.bench.scale_calls import OPERATIONS, Build, Kind, calls
from tests.bench.table import Row, print_rows

SCRIPT = "python -m tests.bench.scale"
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
PART = "scale"
SIZES = (10_000_000, 100_000_000)
BUILDS = tuple(Build(rows, kind) for rows in SIZES for kind in Kind)
MACHINES = (1, 4, 16, 64)
SHARDS_IN_FLIGHT = 32
"""`layout.shards_in_flight`; the hours take it to be raised with the machines (see the page)."""
CALLS_AT_ONCE = 8
CALLS_A_FLOW_RUN = 12
"""Of the API: made, taken, its states, its artifact, its parent's and deployment's look-ups."""
PROGRESS_S, POLL_S = 5.0, 10.0
_HOUR_S = 3600.0


def _cost(value: float, where: str) -> float:
    """A cost's default, and where it was measured."""
    return field(default=value, metadata={"where": where})  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Costs:
    """What things cost. Each can be set by a flag of its name."""

    engine_rate: float = _cost(
        40.0, "assumed, because no GPU was available: clips per second and machine"
    )
    clip_kb: float = _cost(320.0, "assumed: ten seconds of 16 kHz wav")
    plan_us: float = _cost(17.0, "row `planning`, rows of 15 kinds: CPU per row, one core")
    reuse_rate: float = _cost(9_600.0, "row `no-op rebuild`: records per second and process")
    run_s: float = _cost(14.2, "row `Prefect: empty run of a shard`, with the worker's polling")
    task_run_ms: float = _cost(48.0, "row `Prefect: server CPU per record`: per task run")
    batch_rows: float = _cost(512.0, "`layout.batch_rows`")
    run_database_kb: float = _cost(37.0, "row `Prefect: database per record`: per task run")
    index_bytes: float = _cost(8.2, "row `cache growth`: the index file, per key")
    index_memory_bytes: float = _cost(16.0, "the index in memory, per key (8 + 4 + 4 bytes)")
    index_s: float = _cost(
        2.4, "row `cache growth`: extra time of S3 to read the index of 10 million keys"
    )
    sort_s: float = _cost(2.4, "sorting 10 million keys and writing their index, one core")
    store_mb_s: float = _cost(200.0, "assumed: from object storage to one machine")
    call_ms: float = _cost(30.0, "assumed: one storage call")
    plan_bytes: float = _cost(360.0, "counted: one planned row")
    data_bytes: float = _cost(650.0, "counted: one answered row, as JSON lines and Parquet")
    cache_bytes: float = _cost(200.0, "counted: one outcome and one clip entry in their segments")


@dataclass(frozen=True, slots=True)
class Hours:
    """How long the parts of a build take; those of the middle run side by side."""

    planning: float
    engine: float
    server: float
    storage: float
    publishing: float

    @property
    def total(self) -> float:
        """From start to end."""
        return self.planning + max(self.engine, self.server, self.storage) + self.publishing

    @property
    def limit(self) -> str:
        """The part that is longest."""
        parts = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        return max(parts, key=lambda name: parts[name])


def hours(build: Build, machines: int, cost: Costs) -> Hours:
    """How long a build takes.

    Args:
        build: Its size and what changed.
        machines: GPU machines; each does two shards at once.
        cost: What things cost.
    """
    called = calls(build)
    shard_s = (
        cost.run_s
        + build.shard_rows / cost.reuse_rate
        + index_read_s(build, cost)
        + called.shards / build.shards * cost.call_ms / 1000 / CALLS_AT_ONCE
    )
    verified_s = build.rows * cost.data_bytes / 1e6 / cost.store_mb_s
    merged_s = build.keys_after / 1e7 * (cost.sort_s + cost.index_s) if build.asked else 0.0
    publish_s = called.publish * cost.call_ms / 1000 / CALLS_AT_ONCE + verified_s + merged_s
    parts_s = (
        build.rows * cost.plan_us / 1e6,
        build.asked / cost.engine_rate / machines,
        server_s(build, cost),
        shard_s * ceil(build.shards / (2 * machines)),
        publish_s,
    )
    return Hours(*(seconds / _HOUR_S for seconds in parts_s))


def server_s(build: Build, cost: Costs) -> float:
    """CPU seconds of Prefect's server."""
    return build.task_runs * cost.task_run_ms / 1000


def index_read_s(build: Build, cost: Costs) -> float:
    """Reading the outcome index: once a shard where something is asked that is not near."""
    if not build.asked:
        return 0.0
    return build.keys_before * cost.index_bytes / 1e6 / cost.store_mb_s + (
        build.keys_before / 1e7 * cost.index_s
    )


def hours_table(cost: Costs) -> list[str]:
    """Hours a build, and what takes longest."""
    lines = _head("build", *(f"{machines} machine{'s' * (machines > 1)}" for machines in MACHINES))
    for build in BUILDS:
        found = [hours(build, machines, cost) for machines in MACHINES]
        lines.append(_line(build.name, *(f"{one.total:,.1f} h ({one.limit})" for one in found)))
    return lines


def calls_table() -> list[str]:
    """Storage calls by kind."""
    lines = _head(
        "build", "shards", *OPERATIONS, "of these, for unindexed segments", "calls per record"
    )
    for build in BUILDS:
        called = calls(build)
        counts = [f"{called.of[name]:,.0f}" for name in OPERATIONS]
        own = f"{called.unindexed:,.0f}"
        a_record = f"{sum(called.of.values()) / build.rows:.3f}"
        lines.append(_line(build.name, f"{build.shards:,}", *counts, own, a_record))
    return lines


def bytes_table(cost: Costs) -> list[str]:
    """What lies in object storage, in GB."""
    lines = _head(
        "build", "clips read", "plan", "data", "new in the cache", "cache indexes", "looked up"
    )
    for build in BUILDS:
        moved = build.shards * build.keys_before * cost.index_bytes * bool(build.asked)
        sizes = (
            build.asked * cost.clip_kb * 1e3,
            build.rows * cost.plan_bytes,
            build.rows * cost.data_bytes,
            build.asked * cost.cache_bytes,
            2 * build.keys_after * cost.index_bytes,
            moved + calls(build).unindexed / 3 * build.asked / build.shards * 32,
        )
        lines.append(_line(build.name, *(f"{size / 1e9:,.1f}" for size in sizes)))
    return lines


def prefect_table(cost: Costs) -> list[str]:
    """What Prefect's server is given to do."""
    names = ("flow runs", "task runs", "database", "server CPU", "API calls/s at 64 machines")
    lines = _head("build", *names)
    for build in BUILDS:
        longest_s = max(1.0, hours(build, 64, cost).total * _HOUR_S)
        running = min(build.shards, 2 * 64)
        api = (build.shards * CALLS_A_FLOW_RUN / longest_s) + running / PROGRESS_S + 64 / POLL_S + 1
        lines.append(
            _line(
                build.name,
                f"{build.shards + 1:,}",
                f"{build.task_runs:,}",
                f"{build.task_runs * cost.run_database_kb / 1e6:,.2f} GB",
                f"{server_s(build, cost) / _HOUR_S:,.2f} h",
                f"{api:,.0f}",
            )
        )
    return lines


def limits_table(cost: Costs) -> list[str]:
    """Where each part ends, in records, machines or nights."""
    lines = _head("limit", "now", "at 10 million", "at 100 million")
    small, large = (Build(rows, Kind.COLD) for rows in SIZES)
    memory = [build.keys_after * cost.index_memory_bytes / 1e9 for build in (small, large)]
    per_machine = cost.engine_rate * 4 / cost.batch_rows * cost.task_run_ms / 1000
    unindexed = [
        calls(build).unindexed / build.shards * cost.call_ms / 1000 / CALLS_AT_ONCE
        for build in (small, large)
    ]
    listed_s = [build.shards * 31 / 1000 * cost.call_ms / 1000 for build in (small, large)]
    server = f"{1 / per_machine:,.0f} (batches of 512), {4 / per_machine:,.0f} (of 2,048)"
    rows = (
        ("machines for which one fully busy server process is enough", server, "", ""),
        (
            "machines that the default of `layout.shards_in_flight` keeps busy",
            f"{SHARDS_IN_FLIGHT // 2}",
            "",
            "",
        ),
        (
            "memory of the index, in each flow run and in publish",
            "",
            *(f"{one:.2f} GB" for one in memory),
        ),
        (
            "first build: reading unindexed segments, per shard",
            "",
            *(f"{s:,.0f} s" for s in unindexed),
        ),
        (
            "after 30 nights with changes: listing the segments once",
            "",
            *(f"{s:,.1f} s" for s in listed_s),
        ),
    )
    return [*lines, *(_line(*row) for row in rows)]


def costs_table(cost: Costs) -> list[str]:
    """The costs, and where they were measured."""
    told = [
        _line(_flag(one.name), f"{getattr(cost, one.name):,g}", one.metadata["where"])
        for one in dataclasses.fields(cost)
    ]
    return [*_head("option", "value", "source"), *told]


def page_part(cost: Costs) -> str:
    """All tables, as they stand on the page."""
    parts = {
        "Hours per build": hours_table(cost),
        "Storage calls": calls_table(),
        "Bytes in storage, GB": bytes_table(cost),
        "Prefect": prefect_table(cost),
        "Limits": limits_table(cost),
        "Costs": costs_table(cost),
    }
    return "\n\n".join(f"### {name}\n\n" + "\n".join(lines) for name, lines in parts.items())


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _head(*names: str) -> list[str]:
    return [_line(*names), _line("---", *("---:" for _ in names[1:]))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def measure(cost: Costs | None = None) -> list[Row]:
    """The model's main figures."""
    rows = []
    for build in BUILDS:
        found = hours(build, 64, cost or Costs())
        note = f"slowest part: {found.limit}; docs/scale.md"
        rows.append(
            Row(
                f"calculated: {build.name}, 64 machines",
                f"{found.total:,.1f} h",
                "",
                None,
                SCRIPT,
                note,
            )
        )
    return rows


def main() -> None:
    """Read the costs from the command line; print, or write the page."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(SCRIPT, description=__doc__, formatter_class=form)
    parser.add_argument("--write", type=Path, help="the page to put the tables into")
    for one in dataclasses.fields(Costs):
        told = one.metadata["where"]
        parser.add_argument(f"--{_flag(one.name)}", type=float, default=one.default, help=told)
    given = vars(parser.parse_args())
    page: Path | None = given.pop("write")
    cost = Costs(**given)
    if page is None:
        print(page_part(cost))
        print_rows(measure(cost))
    else:
        text = put_between(page.read_text(encoding="utf-8"), PART, page_part(cost))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
