"""The servers builds are disturbed in front of: Prefect's, an S3 endpoint, a stand-in engine."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from earwitness.engine.guardian import start_guarded
from tests.chaos.builds import (
    LIMIT_S,
    Layout,
    Reference,
    Run,
    write_dataset,
)
from tests.integration.workbench import S3Server, StandIn, free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from earwitness.engine.guardian import Guarded


@dataclass
class Bench:
    """The servers builds are run against, and a folder for each build."""

    folder: Path
    layout: Layout
    env: dict[str, str]
    s3: S3Server
    engine: StandIn
    engine_flags: tuple[str, ...]
    references: dict[tuple[str, str], Reference] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)


PREFECT_ENV = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def undisturbed(work: Bench) -> Reference:
    """The build of the local dataset that nothing happens to; made once."""
    known = work.references.get(("plain", ""))
    if known is None:
        home = work.folder / "undisturbed"
        scratch, output = home / "scratch", home / "out"
        scratch.mkdir(parents=True)
        start_plain(work, output, scratch).finish()
        known = Reference.of(output)
        work.references["plain", ""] = known
    return known


def start_plain(
    work: Bench,
    output: Path,
    scratch: Path,
    *more: str,
    before: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> Run:
    """Start a build of the local dataset on the engine that is there."""
    given = {**work.env, "EARWITNESS_SCRATCH": str(scratch), **(env or {})}
    manifest = work.folder / "local" / "m.jsonl"
    words = (manifest, output, "--engine", work.engine.url, *work.layout.words(), *more)
    return Run(*words, env=given, before=before)


@dataclass
class PrefectServer:
    """A Prefect server with a home of its own, on a port that stays over its restarts."""

    home: Path
    port: int = field(default_factory=free_port)
    _process: Guarded | None = None

    @property
    def env(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.port}/api"
        return {"PREFECT_HOME": str(self.home), "PREFECT_API_URL": url, **PREFECT_ENV}

    def start(self, *, wait: bool = True) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--no-services"]
        log = self.home / "server.log"
        self._process = start_guarded(
            [*command, "--port", str(self.port)], log_path=log, env=self.env
        )
        if wait:
            self.ready()

    def ready(self) -> None:
        """Wait until it answers."""
        if self._process is not None:
            url = f"{self.env['PREFECT_API_URL']}/health"
            wait_for(url, self._process, self.home / "server.log", LIMIT_S)

    def kill(self) -> None:
        """As a power cut would: the guardian dies, and takes the server with it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


@contextmanager
def bench(
    folder: Path, layout: Layout, *engine_flags: str, prefect: str | None = None
) -> Iterator[Bench]:
    """Start a Prefect server (unless one is given), an S3 endpoint and a stand-in engine."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT_")}
    with ExitStack() as stack:
        if prefect is None:
            server = PrefectServer(folder / "prefect")
            stack.callback(server.stop)
            server.start()
            env = {**clean, **server.env}
        else:
            env = dict(os.environ)
        s3 = S3Server(folder / "buckets", folder / "s3.log")
        s3.folder.mkdir(parents=True)
        stack.callback(s3.start().stop)
        engine = StandIn(folder / "engine.log", *engine_flags)
        stack.callback(engine.stop)
        write_dataset(folder / "local", layout)
        write_dataset(s3.folder / "lake", layout)
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        yield Bench(
            folder, layout, {**env, **s3.environment}, s3, engine, engine_flags, stack=stack
        )
