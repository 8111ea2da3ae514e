"""How many CPUs count: those of the affinity, no more than the quota, a worker's share of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from deployments.worker import WorkerOptions
from deployments.worker_process import run_environment
from earwitness.cpus import CPUS_VARIABLE, cpu_share, usable_cpus
from earwitness.errors import SettingsError
from earwitness.runtime import Runtime
from earwitness.settings import BuildSettings, EngineSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = len(os.sched_getaffinity(0))


def counted(folder: Path, membership: str, files: dict[str, str], affinity: int = 64) -> int:
    """Usable CPUs with these cgroups."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return usable_cpus(affinity=affinity, proc=folder / "proc", cgroups=folder / "cgroup")


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 100000"}, 1),
        # a container without a cgroup namespace: the path is the host's, the root is its own
        ("0::/docker/abc\n", {"cpu.max": "400000 100000"}, 4),
        (
            "4:cpu,cpuacct:/docker/abc\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("9:memory:/\n0::/\n", {"unified/cpu.max": "500000 100000"}, 5),
        ("0::/\n", {}, 64),
        ("", {}, 64),
        ("0::/\n", {"cpu.max": "nonsense"}, 64),
    ],
)
def test_a_containers_quota_limits_the_cpus(
    tmp_path: Path, membership: str, files: dict[str, str], expected: int
):
    assert counted(tmp_path, membership, files) == expected


def test_a_quota_of_more_than_the_affinity_changes_nothing(tmp_path: Path):
    assert counted(tmp_path, "0::/\n", {"cpu.max": "800000 100000"}, affinity=3) == 3


@pytest.fixture
def one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv("EARWITNESS_SCRATCH", str(tmp_path))
    nowhere = EngineSettings(url=("http://127.0.0.1:9/v1",))
    made = Runtime(BuildSettings(manifest="m", output="o", engine=nowhere), "model")
    yield made
    made.close()


@pytest.mark.usefixtures("one_cpu")
def test_a_build_that_may_use_one_cpu_has_one_decoder(runtime: Runtime):
    assert runtime.pool.processes == 1


def test_a_flow_run_has_its_share_of_decoders(runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CPUS_VARIABLE, "1")
    assert runtime.pool.processes == 1


@pytest.mark.parametrize(("limit", "share"), [(1, HERE), (2, max(1, HERE // 2)), (99, 1)])
def test_a_worker_divides_its_cpus_among_its_flow_runs(tmp_path: Path, limit: int, share: int):
    environment = run_environment(WorkerOptions(pool="gpu", limit=limit), tmp_path)
    assert environment[CPUS_VARIABLE] == str(share)


@pytest.mark.parametrize("text", ["0", "-2", "many"])
def test_a_share_that_is_no_number_of_cpus_is_refused(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CPUS_VARIABLE, text)
    with pytest.raises(SettingsError, match=CPUS_VARIABLE):
        cpu_share()
