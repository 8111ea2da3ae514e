"""What runs on a machine that does work: Prefect's process worker, and the machine's engine.

Two processes. The one that is started (by systemd, by a person) only watches; all the rest, the
worker proper, the engine, the flow runs, descends from a guardian below it, so that nothing
stays behind however any of them ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from earwitness.credentials import check_engine
from earwitness.engine.guardian import start_guarded
from earwitness.settings import EngineSettings

if TYPE_CHECKING:
    from types import FrameType

LIMIT = 2
"""Flow runs at once: with two, one can start while the other ends, and the engine stays busy."""
GRACE_S = 600.0
"""How long runs may continue after a stop signal."""


class WorkerOptions(BaseModel):
    """What one worker does."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pool: str
    """Work pool whose flow runs it takes."""
    name: str | None = None
    """Its name in the UI. Default: the machine's, with the GPUs it was given."""
    limit: Annotated[int, Field(ge=1)] = LIMIT
    """How many flow runs run at the same time."""
    grace_s: Annotated[float, Field(ge=0)] = GRACE_S
    """How many seconds running flow runs may continue after a stop signal."""
    model: str | None = None
    """Local folder or hub id of the model served here."""
    engine: EngineSettings = EngineSettings()
    """How the engine is started, or where it runs already."""
    max_clips: Annotated[int, Field(ge=1)] = 16
    """Most clips in one record: the engine's limit per prompt."""

    @property
    def has_engine(self) -> bool:
        """True when its flow runs find an engine."""
        return self.model is not None or bool(self.engine.url)

    def named(self) -> str:
        """The worker's name; the same on every start."""
        if self.name:
            return self.name
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return f"{socket.gethostname()}-gpu-{gpus}" if gpus else socket.gethostname()


def run_worker(options: WorkerOptions) -> int:
    """Run a worker until it is told to stop.

    SIGTERM or Ctrl-C: it takes no new runs and lets those it has finish; a second one, or the end
    of the grace time, hands them back to the pool.

    Args:
        options: What it does.

    Returns:
        0 after a stop that was asked for; otherwise what the process may exit with.

    Raises:
        SettingsError: The engine's settings hold a credential.
    """
    check_engine(options.engine)
    command = [sys.executable, "-m", "deployments.worker_process", options.model_dump_json()]
    guarded = start_guarded(command, log_path=None)

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        guarded.ask_to_end()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    return guarded.wait()
