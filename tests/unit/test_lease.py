"""One process at a time works on a build; a dead one's lease holds nobody up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from earwitness.builds.layout import Build
from earwitness.builds.lease import STALE_S, lease
from earwitness.errors import BuildBusyError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(str(tmp_path), "b")


def write(build: Build, **holder: object) -> None:
    known = {"token": "x", "host": "far", "pid": 1, "started": "1", "renewed": time.time()}
    build.store.write_bytes("lease.json", json.dumps({**known, **holder}).encode())


def test_the_second_process_is_refused_by_name(build: Build):
    with lease(build), pytest.raises(BuildBusyError, match=str(os.getpid())), lease(build):
        pass


def test_the_lease_is_given_back(build: Build):
    with lease(build):
        pass
    assert not build.store.exists("lease.json")


def test_it_is_given_back_after_a_failure_too(build: Build):
    with pytest.raises(KeyError), lease(build):
        raise KeyError
    assert not build.store.exists("lease.json")


def test_a_dead_process_on_this_machine_holds_nothing(build: Build):
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    write(build, host=socket.gethostname(), pid=int(child.stdout), started="1")
    with lease(build):
        pass


def test_a_lease_from_a_clock_that_was_ahead_holds_nothing(build: Build):
    write(build, renewed=time.time() + 365 * 86_400)
    with lease(build):
        pass


def test_another_machines_living_lease_is_respected(build: Build):
    write(build)
    with pytest.raises(BuildBusyError, match="far"), lease(build):
        pass


def test_a_run_that_comes_back_takes_its_own_lease_over_from_any_machine(build: Build):
    write(build, owner="flow run nightly-1")
    with lease(build, "flow run nightly-1"):
        assert json.loads(build.store.read_bytes("lease.json"))["host"] == socket.gethostname()


def test_another_run_is_refused_with_the_name_of_the_one_that_holds_it(build: Build):
    write(build, owner="flow run nightly-1")
    with pytest.raises(BuildBusyError, match="nightly-1"), lease(build, "flow run nightly-2"):
        pass


def test_two_holders_without_a_name_are_never_the_same(build: Build):
    write(build, owner="")
    with pytest.raises(BuildBusyError), lease(build, ""):
        pass


def test_another_machines_lease_goes_stale(build: Build):
    write(build, renewed=time.time() - STALE_S - 1)
    with lease(build):
        pass


def test_a_lease_taken_over_is_not_removed_by_its_old_holder(build: Build):
    with lease(build):
        write(build)
    assert build.store.exists("lease.json")
