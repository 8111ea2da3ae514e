"""Bringing dead lanes back, whoever does it and however long it takes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from earwitness.errors import EarwitnessError, EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from earwitness.engine.lanes import Lane, Lanes


class Revivals:
    """The tasks that bring lanes back, one a lane; if one fails nobody waits for ever.

    Args:
        lanes: Told when a lane will not come back.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._tasks: dict[Lane, asyncio.Task[None]] = {}
        self._closed = False

    def begin(self, lane: Lane, bring_back: Callable[[Lane], Coroutine[None, None, None]]) -> bool:
        """Begins to bring a lane back, unless that is under way or all is over.

        Args:
            lane: The dead lane.
            bring_back: Does it.

        Returns:
            True if it began.
        """
        task = self._tasks.get(lane)
        if self._closed or (task is not None and not task.done()):
            return False
        lane.deaths += 1
        task = asyncio.create_task(bring_back(lane))
        task.add_done_callback(self._on_done)
        self._tasks[lane] = task
        return True

    def _on_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            known = error if isinstance(error, EarwitnessError) else None
            self._lanes.fail(
                known or EngineUnavailableError(f"the engine cannot be restarted: {error!r}")
            )

    async def close(self) -> None:
        """Ends them all; whoever still waits is told."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        self._lanes.fail(EngineUnavailableError("the connection to the engine was closed"))
