"""What one process shares while it works on a build: scratch, loop, decoders, engine.

Flows open a runtime, tasks use the current one. The outermost flow in a process owns it, so that
an engine started for one shard serves the next.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import threading
from collections import defaultdict
from concurrent.futures import wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from earwitness.audio.fetch import ClipFetcher
from earwitness.audio.pool import DecodePool
from earwitness.cpus import cpu_share
from earwitness.engine.client import Engine
from earwitness.engine.shared import shared_engine
from earwitness.engine.usage import EngineTime, Usage
from earwitness.errors import FatalError
from earwitness.heap import bound_heap, settle_heap
from earwitness.progress import Advanced, Closed, tell
from earwitness.scratch import engine_log, make_scratch, remove_scratch

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from earwitness.audio.fetch import FetchedClip
    from earwitness.records import Json, Outcome
    from earwitness.settings import BuildSettings

T = TypeVar("T")

Asked = asyncio.Future[tuple["Outcome", bool]]
"""A question under way: its outcome, and whether the cache held that before this build."""

_LOOK_S = 0.5


class ShardMemory:
    """What the batches of one shard in this process know of each other.

    Attributes:
        fetches: Clips being fetched, or lying in the scratch of a batch still in flight, by URI.
        questions: Questions asked, by cache key, until the segment of a batch holds the outcome.
        answered: Where the outcomes of finished batches are: cache key → path of a segment.
        strikes: See `Rejection.strikes`: those of an earlier attempt at the shard, by cache key.
        failed_clips: Why clips could not be fetched for transient reasons, by URI.
        missing_clips: Clips that were not there when they were fetched, by URI.
        clips: Distinct clips of the shard.
        most_missing: How many of them may be missing; None: any number.
    """

    def __init__(self) -> None:
        self.fetches: dict[str, asyncio.Future[FetchedClip]] = {}
        self.questions: dict[str, Asked] = {}
        self.answered: dict[bytes, str] = {}
        self.strikes: dict[str, int] = {}
        self.failed_clips: dict[str, str] = {}
        self.missing_clips: set[str] = set()
        self.clips = 0
        self.most_missing: int | None = None
        self._told: set[int] = set()

    def question(self, cache_key: str, asked: Asked) -> None:
        """Note that a question is asked; one that fails is forgotten, and asked again.

        Args:
            cache_key: The question.
            asked: Ends with its outcome.
        """

        def ended(_: Asked) -> None:
            failed = asked.cancelled() or asked.exception() is not None
            if failed and self.questions.get(cache_key) is asked:
                del self.questions[cache_key]

        self.questions[cache_key] = asked
        asked.add_done_callback(ended)

    def advance(self, row: int, outcome: Outcome, *, generated: bool) -> None:
        """Tell the progress of a row; a batch that is tried again tells nothing twice.

        Args:
            row: The row.
            outcome: What became of it.
            generated: The engine was asked for this very row.
        """
        if row in self._told:
            return
        self._told.add(row)
        if outcome.answer is None:
            tell(Advanced(rejected=1))
        else:
            tell(Advanced(generated=int(generated), reused=int(not generated)))


class Runtime:
    """Everything a build's tasks share inside one process.

    Args:
        settings: The build's settings, resolved.
        model: The name requests are sent under; None: whatever given engines serve. A worker's
            engine is asked under its own name for the model.

    Attributes:
        downloads: Clips fetched so far.
        access: Where clips may come from.
    """

    def __init__(self, settings: BuildSettings, model: str | None) -> None:
        bound_heap()
        settle_heap()
        self.settings = settings
        # who names engines in the settings means those
        self._shared = None if settings.engine.url else shared_engine()
        self.scratch, self._scratch_lock = make_scratch()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="earwitness-io")
        self._thread.daemon = True
        self._thread.start()
        self._memory: dict[tuple[str, int], ShardMemory] = defaultdict(ShardMemory)
        self._pool: DecodePool | None = None
        self._pool_lock = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self.downloads = 0
        self._attempt = secrets.token_hex(4)
        self._counted = EngineTime()
        self._booking = threading.Lock()
        self.access = settings.access()
        timeout_s = settings.input.clip_timeout_s
        self.fetcher: ClipFetcher = self.run(
            _in_loop(ClipFetcher, access=self.access, timeout_s=timeout_s)
        )
        self.engine: Engine = self.run(
            _in_loop(
                Engine,
                settings.engine,
                model if self._shared is None else None,
                scratch=self.scratch,
                clips_per_prompt=settings.input.max_clips,
                log_path=engine_log(),
                shared=self._shared,
            )
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the runtime's loop and wait for it, from any thread.

        Raises:
            FatalError: The loop has ended under it.
        """
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while self._thread.is_alive() and not future.done():
                wait([future], timeout=_LOOK_S)
            if future.done():
                return future.result()
        except BaseException:
            future.cancel()
            raise
        raise FatalError("the event loop of this process ended unexpectedly: run the command again")

    def check_model(self, planned: Json) -> None:
        """Make sure that a worker's engine serves the model a build was planned for.

        Raises:
            ModelIdentityError: It serves another one.
        """
        if self._shared is not None:
            self._shared.check_model(planned)

    def start_engine(self) -> None:
        """Begin starting the engine in the background; asking waits for it."""
        asyncio.run_coroutine_threadsafe(self.engine.start(), self._loop)

    def engine_version(self) -> str:
        """What answered, for the record; empty when nothing was asked in this process."""
        return self.run(self.engine.version()) if self.engine.requests_sent else ""

    @contextmanager
    def usage(self) -> Iterator[Usage]:
        """The engine time since the last checkpoint, for this one; kept if that fails."""
        spent = self.run(self._book())
        try:
            yield Usage(self._attempt, spent)
        except BaseException:
            with self._booking:
                self._counted -= spent
            raise

    async def _book(self) -> EngineTime:
        total = await self.engine.account.spent()
        with self._booking:
            spent = total - self._counted
            self._counted += spent
        return spent

    @property
    def pool(self) -> DecodePool:
        """The worker processes that probe and decode, started when first needed."""
        with self._pool_lock:
            if self._pool is None:
                self._pool = DecodePool(cpu_share())
            return self._pool

    def memory(self, build: str, shard: int) -> ShardMemory:
        """What is known of a shard in this process."""
        return self._memory[build, shard]

    def batch_folder(self, build: str, shard: int, batch: int) -> Path:
        """The scratch folder of a batch."""
        name = build.rstrip("/").rpartition("/")[2]
        return self.scratch / name / f"shard-{shard:05d}" / f"batch-{batch:05d}"

    def forget_shard(self, build: str, shard: int) -> None:
        """Remove a shard's scratch and memory."""
        self._memory.pop((build, shard), None)
        shutil.rmtree(self.batch_folder(build, shard, 0).parent, ignore_errors=True)

    async def _close_inside(self) -> None:
        """What has to end in the loop it lives in; whoever still waits there is let go."""
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        await self.engine.close()
        await self.fetcher.close()
        for task in waiting:
            task.cancel()
        if waiting:  # who waits for them in other threads is told before the loop stops
            await asyncio.wait(waiting, timeout=_LOOK_S)

    def close(self) -> None:
        """Stop the engine and the workers, remove scratch. Safe to call twice, from any thread."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        tell(Closed(self.engine.requests_sent, self.downloads))
        try:
            self.run(self._close_inside())
        finally:
            if self._pool is not None:
                self._pool.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            remove_scratch(self.scratch)
            self._scratch_lock.close()


_current: Runtime | None = None


def current() -> Runtime:
    """The runtime of this process.

    Raises:
        FatalError: No flow has opened one.
    """
    if _current is None:
        raise FatalError("no runtime is open: run this task inside build_dataset or build_shard")
    return _current


def is_running() -> bool:
    """True when a flow of this process has opened a runtime."""
    return _current is not None


@contextmanager
def running(settings: BuildSettings, model: str | None) -> Iterator[Runtime]:
    """Open this process's runtime, or join the one that is open."""
    global _current  # noqa: PLW0603 - one runtime a process is the point
    if _current is not None:
        yield _current
        return
    runtime = Runtime(settings, model)
    _current = runtime
    try:
        yield runtime
    finally:
        _current = None
        runtime.close()


async def _in_loop(make: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a constructor inside the loop its object will live in."""
    return make(*args, **kwargs)
