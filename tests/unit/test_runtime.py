"""One process's runtime: what ends under somebody who waits is said, never waited for for ever."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING

import pytest

from earwitness.errors import FatalError, ModelIdentityError
from earwitness.runtime import Runtime, current, running
from earwitness.settings import BuildSettings, EngineSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildSettings:
    monkeypatch.setenv("EARWITNESS_SCRATCH", str(tmp_path))
    nowhere = EngineSettings(url=("http://127.0.0.1:9/v1",))
    return BuildSettings(manifest="m", output="o", engine=nowhere)


@pytest.fixture
def runtime(settings: BuildSettings) -> Iterator[Runtime]:
    made = Runtime(settings, "model")
    yield made
    made.close()


def test_work_runs_in_the_loop_and_its_result_comes_back(runtime: Runtime):
    assert runtime.run(asyncio.sleep(0, "done")) == "done"


def test_who_waits_when_the_runtime_closes_is_let_go(runtime: Runtime):
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            runtime.run(asyncio.Event().wait())
        except BaseException as error:  # noqa: BLE001 - a cancellation is what is hoped for
            ended.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    runtime.run(asyncio.sleep(0.05))
    runtime.close()
    waiter.join(timeout=10)
    assert len(ended) == 1


def test_a_loop_that_ends_is_an_error_not_a_silence(settings: BuildSettings):
    runtime = Runtime(settings, "model")

    async def end() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()

    with pytest.raises(FatalError, match="event loop"):
        runtime.run(end())


def test_scratch_is_gone_after_closing(runtime: Runtime, tmp_path: Path):
    assert list(tmp_path.iterdir()) != []
    runtime.close()
    assert list(tmp_path.iterdir()) == []


def test_the_outermost_block_owns_the_runtime(settings: BuildSettings):
    with running(settings, "model") as outer:
        with running(settings, "model") as inner:
            assert inner is outer
        assert current() is outer
    with pytest.raises(FatalError, match="no runtime is open"):
        current()


IDENTITY = {"kind": "local", "name": "m", "version": "d", "arguments": []}


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch, settings: BuildSettings) -> BuildSettings:
    """What a worker puts into a flow run's environment; settings that name no engine."""
    monkeypatch.setenv("EARWITNESS_ENGINE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("EARWITNESS_ENGINE_MODEL", json.dumps(IDENTITY))
    monkeypatch.setenv("EARWITNESS_ENGINE_SLOTS", "20")
    return settings.model_copy(update={"engine": EngineSettings()})


def test_a_flow_run_asks_its_workers_engine_and_starts_none(lent: BuildSettings):
    with running(lent, "model") as runtime:
        assert runtime.engine.server is None
        assert runtime.engine.room == 22
        runtime.check_model(IDENTITY)
        with pytest.raises(ModelIdentityError):
            runtime.check_model({**IDENTITY, "version": "another"})


def test_an_engine_named_in_the_settings_wins(lent: BuildSettings, settings: BuildSettings):
    assert lent.engine.url == ()
    with running(settings, "model") as runtime:
        runtime.check_model({**IDENTITY, "version": "another"})
        assert runtime.engine.room == 141


def test_without_a_worker_a_flow_run_has_an_engine_of_its_own(settings: BuildSettings):
    with running(settings.model_copy(update={"engine": EngineSettings()}), "model") as runtime:
        assert runtime.engine.server is not None
