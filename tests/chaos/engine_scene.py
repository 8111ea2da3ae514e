"""What an engine's fault is played with: stand-ins, engines over them, and the right answers."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earwitness.engine.client import AskRequest, Engine
from earwitness.engine.guardian import Guarded, start_guarded
from earwitness.records import Answer, Reason, Rejection
from earwitness.settings import EngineSettings, SamplingSettings
from tests.integration.workbench import free_port, wait_for
from tests.support.standin_answers import Asked, natural_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

STANDIN = (sys.executable, "-m", "tests.support.standin")
ROOT = Path(__file__).parents[2]
LOGS = ROOT / "tests" / "unit" / "engine_logs"
MODEL = "demo"
MAX_TOKENS = 64


class BrokenPromiseError(Exception):
    """Something that was promised did not hold."""


def hold(what: object, told: object) -> None:
    """Fail with words where a promise is broken."""
    if not what:
        raise BrokenPromiseError(str(told))


def question(text: str) -> AskRequest:
    content: Any = [{"type": "text", "text": text}]
    messages: Any = ({"role": "user", "content": content},)
    return AskRequest(messages, (), SamplingSettings(), max_tokens=MAX_TOKENS, seed=1)


def right_answer(text: str) -> str:
    return " ".join(natural_words(Asked([("user", [("text", text)])], [], 1)))


@dataclass
class Running:
    """A stand-in that others run."""

    log_path: Path
    flags: tuple[str, ...]
    port: int = field(default_factory=free_port)
    model: str = MODEL
    _process: Guarded | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [*STANDIN, "--port", str(self.port), "--model", self.model, *self.flags]
        self._process = start_guarded(command, log_path=self.log_path)
        wait_for(f"{self.url}/version", self._process, self.log_path)

    @contextmanager
    def kept_running(self) -> Iterator[None]:
        """Somebody starts it again each time it dies."""
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(0.1):
                if self._process is not None and not self._process.alive():
                    self.stop()
                    self.start()

        self.start()
        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self.stop()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


@dataclass
class Scene:
    """One fault's stage: a folder, and the dice."""

    folder: Path
    seed: str
    started: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.starts_path = self.folder / "starts"

    @asynccontextmanager
    async def own(self, *flags: str, **settings: Any) -> AsyncIterator[Engine]:
        """An engine that starts and restarts its own stand-in."""
        command = (*STANDIN, "--starts-file", str(self.starts_path), *flags)
        defaults = {"command": command, "max_num_seqs": self.dice.choice((4, 8, 16))}
        async with self._engine(EngineSettings(**{**defaults, **settings}), MODEL) as engine:
            yield engine

    @asynccontextmanager
    async def over(self, *stand_ins: Running, **settings: Any) -> AsyncIterator[Engine]:
        """An engine over stand-ins that others run."""
        timeout_s = settings.pop("timeout_s", 60.0)
        urls = tuple(one.url for one in stand_ins)
        given = EngineSettings(url=urls, **{"max_num_seqs": 8, **settings})
        async with self._engine(given, MODEL, timeout_s) as engine:
            await engine.start()
            yield engine

    def _engine(self, settings: EngineSettings, model: str, timeout_s: float = 60.0) -> Engine:
        return Engine(
            settings,
            model,
            scratch=self.folder / "scratch",
            clips_per_prompt=1,
            log_path=self.folder / "engine.log",
            unavailable_timeout_s=timeout_s,
        )

    async def run(self, *flags: str) -> Running:
        """A stand-in that others run, once it answers."""
        log_path = self.folder / f"stand-in-{len(self.started)}.log"
        self.started.append(Running(log_path, flags))
        await asyncio.to_thread(self.started[-1].start)
        return self.started[-1]

    def texts(self, count: int) -> list[str]:
        return [f"question {number} {self.dice.random()}" for number in range(count)]

    def put(self, texts: list[str], *others: str) -> list[str]:
        """The texts with others among them, anywhere."""
        texts = list(texts)
        for other in others:
            texts.insert(self.dice.randrange(len(texts) + 1), other)
        return texts

    @property
    def starts(self) -> int:
        return self.starts_path.stat().st_size if self.starts_path.exists() else 0

    def close(self) -> None:
        for one in self.started:
            one.stop()


async def ask(engine: Engine, texts: Iterable[str]) -> dict[str, Answer | Rejection]:
    texts = list(texts)
    said = await asyncio.gather(*(engine.ask(question(text)) for text in texts))
    return dict(zip(texts, said, strict=True))


def check(said: dict[str, Answer | Rejection], **rejected: Reason) -> None:
    """Every answer is the right one; exactly these texts (by their first word) have none."""
    for text, result in said.items():
        reason = rejected.get(text.split()[0])
        if isinstance(result, Answer):
            hold(reason is None, f"{text!r} was answered")
            hold(result.text == right_answer(text), f"a wrong answer to {text!r}: {result}")
        else:
            hold(result.reason is reason, f"{text!r}: {result}")


async def stopwatch(limit_s: float, what: Any) -> tuple[Any, float]:
    """What comes of something, and how long it took; an error counts as its result."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            result = await what
    except TimeoutError as error:
        raise BrokenPromiseError(f"nothing within {limit_s:g} s") from error
    return result, time.monotonic() - began
