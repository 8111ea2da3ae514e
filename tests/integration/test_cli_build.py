"""`earwitness build` and `retry` as a person runs them: processes, terminals' signals, output."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workbench import Published, record, tone, write_clip, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from workbench import StandIn

ROOT = Path(__file__).parents[2]
LIMIT_S = 180


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for number in range(6):
        write_clip(tmp_path / "clips" / f"{number}.wav", tone(300 + 50 * number))
    write_clip(tmp_path / "clips" / "silent.wav", tone(300) * 0)
    records = [record(f"clips/{number}.wav", id=number) for number in range(6)]
    return write_manifest(tmp_path / "m.jsonl", [*records, record("clips/silent.wav", id=6)])


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """An environment without a Prefect server."""
    home = str(tmp_path / "prefect")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": home}


def start(*words: Any, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
    )


def run(*words: Any, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    process = start(*words, env=env)
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def wait_until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def processes_of(home: str) -> list[int]:
    """Processes that were started with this Prefect home in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and home.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture
def slow(start_stand_in: Callable[..., StandIn]) -> Iterator[StandIn]:
    """An engine that is still answering when the build is stopped."""
    return start_stand_in("--latency-s", "60")


def test_a_build_without_a_prefect_server_brings_its_own(
    manifest: Path, tmp_path: Path, alone: dict[str, str], stand_in: StandIn
):
    words = ("build", manifest, tmp_path / "out", "--engine", stand_in.url)
    status, out, err = run(*words, env=alone)
    assert status == 0, err
    answers = Published(tmp_path / "out").by_id()
    lines = out.splitlines()
    for row in range(6):
        assert lines[row].split()[0] == str(row)
        assert lines[row].endswith(" ".join(answers[row].split()))
    assert "rejected: silent" in lines[6]
    assert "Traceback" not in err
    assert processes_of(alone["PREFECT_HOME"]) == []
    with sqlite3.connect(Path(alone["PREFECT_HOME"]) / "prefect.db") as database:
        flows = database.execute("select state_type from flow_run").fetchall()
        tasks = database.execute("select distinct state_type from task_run").fetchall()
    assert flows == [("COMPLETED",)] * 2
    assert tasks == [("COMPLETED",)]


def test_a_second_build_reuses_everything(
    manifest: Path,
    tmp_path: Path,
    prefect_server: str,  # noqa: ARG001 - the command finds its address in the environment
    stand_in: StandIn,
):
    words = ("build", manifest, tmp_path / "out", "--engine", stand_in.url)
    assert run(*words)[0] == 0
    asked = stand_in.asked()
    status, out, _ = run(*words, "--no-print")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (status, lines["generated"], lines["reused"], lines["silent"]) == (0, "0", "6", "1")
    assert stand_in.asked() == asked


def test_ctrl_c_stops_soon_and_the_same_command_continues(
    manifest: Path,
    tmp_path: Path,
    prefect_server: str,  # noqa: ARG001 - the command finds its address in the environment
    slow: StandIn,
    stand_in: StandIn,
):
    process = start("build", manifest, tmp_path / "out", "--engine", slow.url)
    wait_until(lambda: slow.asked() == 6, "the engine was never asked")
    process.send_signal(signal.SIGINT)
    pressed = time.monotonic()
    _, err = process.communicate(timeout=LIMIT_S)
    assert time.monotonic() - pressed < 15
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("run the same command again to continue")
    assert "Traceback" not in err
    (build,) = [path.name for path in (tmp_path / "out" / "builds").iterdir()]
    assert not (tmp_path / "out" / "builds" / build / "lease.json").exists()

    status, _, err = run("build", manifest, tmp_path / "out", "--engine", stand_in.url)
    assert status == 0, err
    assert f"build {build} (continued)" in err
    assert Published(tmp_path / "out").folder.name == build


def test_a_killed_build_leaves_no_process_behind(
    manifest: Path, tmp_path: Path, alone: dict[str, str], slow: StandIn
):
    process = start("build", manifest, tmp_path / "out", "--engine", slow.url, env=alone)
    wait_until(lambda: slow.asked() == 6, "the engine was never asked")
    assert len(processes_of(alone["PREFECT_HOME"])) > 1
    process.kill()
    process.wait()
    wait_until(lambda: processes_of(alone["PREFECT_HOME"]) == [], "a process is left")


@pytest.mark.usefixtures("manifest")  # for its clips
def test_a_rejection_is_asked_again_by_its_reason(
    tmp_path: Path,
    prefect_server: str,  # noqa: ARG001 - the command finds its address in the environment
    start_stand_in: Callable[..., StandIn],
    stand_in: StandIn,
):
    picky = start_stand_in("--refuse-on", "What is odd?")
    odd = record("clips/0.wav", "What is odd?", id=7)
    write_manifest(tmp_path / "odd.jsonl", [odd, record("clips/1.wav", id=1)])
    out = tmp_path / "out"
    status, _, err = run("build", tmp_path / "odd.jsonl", out, "--engine", picky.url)
    assert status == 0, err
    assert list(Published(out).by_id()) == [1]

    asked = stand_in.asked()
    reason = ("--reason", "engine_refused")
    status, _, err = run("retry", out, *reason, "--engine", stand_in.url)
    assert status == 0, err
    assert list(Published(out).by_id()) == [7, 1]
    assert stand_in.asked() == asked + 1

    # and from now on the answer counts, in builds of their own, too
    status, _, err = run("build", tmp_path / "odd.jsonl", out, "--engine", stand_in.url)
    assert status == 0, err
    assert list(Published(out).by_id()) == [7, 1]
    assert stand_in.asked() == asked + 1


def test_what_the_engine_says_when_it_does_not_start_is_told_in_a_line_or_two(
    manifest: Path,
    tmp_path: Path,
    prefect_server: str,  # noqa: ARG001 - the command finds its address in the environment
):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    command = f"{sys.executable} -m tests.support.standin --fail-start 'no weights here'"
    words = ("build", manifest, tmp_path / "out", "--model", model, "--command", command)
    status, _, err = run(*words)
    assert status == 1
    told = err.splitlines()
    assert any("no weights here" in line for line in told[-3:]), err
    assert "Traceback" not in err


def test_a_check_hears_the_clips_and_needs_neither_engine_nor_server(
    manifest: Path, alone: dict[str, str]
):
    status, out, err = run("check", manifest, env=alone)
    assert status == 1, err
    assert "silent  1" in out
    assert "row 6, line 7: " in out
    status, out, _ = run("check", manifest, "--silence", "keep", "--sample", "3", env=alone)
    assert status == 0
    assert "3 of 7 that passed the line check" in out
    assert processes_of(alone["PREFECT_HOME"]) == []


def test_a_prefect_server_that_is_not_there_is_told(
    manifest: Path, tmp_path: Path, alone: dict[str, str], stand_in: StandIn
):
    env = {**alone, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    status, _, err = run("build", manifest, tmp_path / "out", "--engine", stand_in.url, env=env)
    assert status == 1
    assert "the Prefect API at http://127.0.0.1:9/api does not answer" in err.splitlines()[-1]
