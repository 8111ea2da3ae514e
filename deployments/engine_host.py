"""A worker's engine and its front, in an event loop of their own beside Prefect's."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from earwitness.engine.client import Engine
from earwitness.engine.front import EngineFront, watch
from earwitness.engine.given import slots_of
from earwitness.engine.shared import SharedEngine
from earwitness.errors import SettingsError
from earwitness.identity import identify_model
from earwitness.scratch import engine_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from earwitness.errors import EarwitnessError
    from earwitness.identity import ModelIdentity
    from earwitness.settings import EngineSettings

HAND_BACK_S = 15.0
"""How long requests to a failed engine wait, so that the worker can return their runs first."""
_PATIENCE_S = 600.0


class EngineHost:
    """Runs one engine for all flow runs of a worker.

    Args:
        settings: How it is started, or where it runs already.
        model: Local folder, hub id, or the name given engines serve.
        scratch: The folder its flow runs keep their clips in.
        clips_per_prompt: Most clips in one record.
    """

    def __init__(
        self, settings: EngineSettings, model: str | None, *, scratch: Path, clips_per_prompt: int
    ) -> None:
        if model is None and not settings.url:
            raise SettingsError(
                "no model is given: add --model, or --engine with the address of a running engine"
            )
        local = model is not None and Path(model).is_dir()
        self._model = str(Path(model).absolute()) if local and model is not None else model
        self._settings = settings
        self._scratch = scratch
        self._clips_per_prompt = clips_per_prompt
        self._engine: Engine | None = None
        self._front: EngineFront | None = None
        self._watch: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="earwitness-engine")
        self._thread.daemon = True
        self._thread.start()

    def start(self, gave_up: Callable[[EarwitnessError], None]) -> Future[SharedEngine]:
        """Begin starting the engine, and its front once it answers.

        Args:
            gave_up: Told, in another thread, when the engine is given up for good.

        Returns:
            What the flow runs will ask.
        """
        return asyncio.run_coroutine_threadsafe(self._start(gave_up), self._loop)

    async def _start(self, gave_up: Callable[[EarwitnessError], None]) -> SharedEngine:
        settings = self._settings
        # a model that is not there is told before minutes are spent
        identity = await self._identify(self._model) if self._model is not None else None
        self._engine = Engine(
            settings,
            self._model,
            scratch=self._scratch,
            clips_per_prompt=self._clips_per_prompt,
            log_path=engine_log(),
            unavailable_timeout_s=_PATIENCE_S,
        )
        await self._engine.start()
        self._front = EngineFront(self._engine, scratch=self._scratch, hand_back_s=HAND_BACK_S)
        await self._front.start()
        self._watch = asyncio.create_task(watch(self._engine, gave_up))
        identity = identity or await self._identify(await self._engine.model_id())
        slots = slots_of(settings) * max(1, len(settings.url))
        return SharedEngine(self._front.url, self._front.key, identity, slots)

    async def _identify(self, model: str) -> ModelIdentity:
        declared = bool(self._settings.url)
        return await asyncio.to_thread(identify_model, model, self._settings, declared=declared)

    def close(self) -> None:
        """End the front and stop the engine; returns when nothing of them is left."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._front is not None:
            await self._front.close()
        if self._engine is not None:
            await self._engine.close()
