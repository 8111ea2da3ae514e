"""An engine of our own: `vllm serve` under a guardian, on the loopback, behind a random key."""

from __future__ import annotations

import asyncio
import getpass
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from earwitness.credentials import without_known_secrets
from earwitness.engine.address import EngineAddress
from earwitness.engine.command import HOST, serve_command
from earwitness.engine.failure import start_failure_advice, start_failure_reason
from earwitness.engine.guardian import descendants, start_guarded
from earwitness.errors import (
    CredentialsError,
    EngineStartError,
    EngineUnavailableError,
    SettingsError,
)
from earwitness.scratch import (
    engine_log,
    make_scratch,
    remove_scratch,
    takes_sockets,
    temporary_root,
)
from earwitness.shared_memory import MemoryRecord

if TYPE_CHECKING:
    from typing import IO

    from earwitness.engine.guardian import Guarded
    from earwitness.settings import EngineSettings

_POLL_S = 0.25
_DYING_S = 3.0
_LOG_TAIL_BYTES = 4 * 2**20
_PORT_TAKEN = "address already in use"
_PORT_TRIES = 3
_SIGKILLED = 128 + 9


def free_port() -> int:
    """A port of the loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _temporary(home: Path) -> dict[str, str]:
    """Environment by which an engine makes sockets and temporary files in a folder of ours."""
    if not takes_sockets(home):
        return {}
    defaults = {"VLLM_RPC_BASE_PATH": str(home)}
    # what is worth keeping over restarts stays where it would be without us
    with suppress(KeyError, OSError):  # a user without a name
        kept = temporary_root() / f"torchinductor_{getpass.getuser()}"
        defaults["TORCHINDUCTOR_CACHE_DIR"] = str(kept)
    given = {name: value for name, value in defaults.items() if name not in os.environ}
    return {"TMPDIR": str(home), **given}


def _end(guarded: Guarded, home: tuple[Path, IO[str]] | None, memory: MemoryRecord | None) -> None:
    """End an engine and remove what its processes could not."""
    if memory is not None:
        memory.note(descendants(guarded.pid))
    guarded.stop()
    if home is not None:
        remove_scratch(home[0])
        home[1].close()


class EngineServer:
    """Starts, watches and stops one engine.

    Args:
        settings: The engine's settings.
        model: Local folder or hub id; also the name it is served under.
        scratch: The only folder the engine may read clips from; made if missing.
        clips_per_prompt: Most clips in one record.
        log_path: Where its output goes. Default: a new file among engines' logs.

    Attributes:
        address: How to speak to it, once started.
        log_path: Where its output is.
    """

    def __init__(
        self,
        settings: EngineSettings,
        model: str,
        *,
        scratch: Path,
        clips_per_prompt: int,
        log_path: Path | None = None,
    ) -> None:
        self.address: EngineAddress | None = None
        self.log_path = log_path or engine_log()
        self._settings = settings
        self.model = model
        self._scratch = scratch
        self._clips_per_prompt = clips_per_prompt
        self._api_key = secrets.token_urlsafe(24)
        self._guarded: Guarded | None = None
        self._home: tuple[Path, IO[str]] | None = None
        self._memory: MemoryRecord | None = None
        self._log_start = 0

    async def start(self) -> EngineAddress:
        """Starts the engine and waits until it answers.

        Returns:
            How to speak to it.

        Raises:
            EngineStartError: It died, or did not answer within `start_timeout_s`.
        """
        self._check_folder()
        self._scratch.mkdir(parents=True, exist_ok=True)
        tries = 0
        while True:
            await self.stop()
            tries += 1
            try:
                return await self._start_at(free_port())
            except EngineStartError:
                # between our look and its start someone else may have taken the port
                taken = _PORT_TAKEN in self._log_since_start().lower()
                if not taken or tries == _PORT_TRIES:
                    raise
            except BaseException:
                await self.stop()
                raise

    def alive(self) -> bool:
        """True while the engine's processes run."""
        return self._guarded is not None and self._guarded.alive()

    @property
    def pid(self) -> int | None:
        """The guardian's process id while there is one: all of the engine descends from it."""
        return None if self._guarded is None else self._guarded.pid

    def last_words(self) -> str:
        """Why it died, as far as its output tells."""
        code = None if self._guarded is None else self._guarded.returncode
        if code == _SIGKILLED:
            return "it was killed (by the system because memory ran out, or by a person)"
        # it was given our environment, and may have printed any of it
        secret = {**os.environ, "VLLM_API_KEY": self._api_key}
        reason = without_known_secrets(start_failure_reason(self._log_since_start()), secret)
        advice = start_failure_advice(reason)
        return f"{reason} To fix this, {advice}." if advice else reason

    async def let_die(self) -> None:
        """Gives an engine that is dying a moment to say why and be gone."""
        for _ in range(round(_DYING_S / _POLL_S)):
            if not self.alive():
                return
            await asyncio.sleep(_POLL_S)

    def note_memory(self) -> None:
        """Writes down what shared memory the engine has, for when it is killed."""
        if self._guarded is not None and self._memory is not None:
            self._memory.note(descendants(self._guarded.pid))

    async def stop(self) -> None:
        """Ends the engine; returns when nothing of it is left."""
        guarded, self._guarded = self._guarded, None
        address, self.address = self.address, None
        if address is not None:
            await address.close()
        home, self._home = self._home, None
        memory, self._memory = self._memory, None
        if guarded is not None:
            # a cancelled caller must not leave an engine half stopped
            await asyncio.shield(asyncio.to_thread(_end, guarded, home, memory))

    def _check_folder(self) -> None:
        is_path = self.model.startswith(("/", "./", "../", "~"))
        if is_path and not self._settings.command and not Path(self.model).is_dir():
            raise EngineStartError(f"there is no model folder {self.model}")

    async def _start_at(self, port: int) -> EngineAddress:
        command, env = serve_command(
            self._settings,
            self.model,
            scratch=self._scratch,
            port=port,
            api_key=self._api_key,
            clips_per_prompt=self._clips_per_prompt,
        )
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._home = await asyncio.to_thread(make_scratch, temporary_root())
        self._memory = MemoryRecord(self._home[0])
        env |= _temporary(self._home[0])
        self._guarded = start_guarded(command, log_path=self.log_path, env=env, private=True)
        self.address = EngineAddress(
            f"http://{HOST}:{port}",
            api_key=self._api_key,
            inline=False,
            request_timeout_s=self._settings.request_timeout_s,
        )
        await self._wait_until_it_answers(self._guarded, self.address)
        return self.address

    async def _wait_until_it_answers(self, guarded: Guarded, address: EngineAddress) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._settings.start_timeout_s
        while not await self._answers_noted(address):
            if not guarded.alive():
                raise EngineStartError(self.last_words(), str(self.log_path))
            if loop.time() > limit:
                await self.stop()
                waited = f"it did not answer within {self._settings.start_timeout_s:g} s"
                raise EngineStartError(waited, str(self.log_path))
            await asyncio.sleep(_POLL_S)

    async def _answers_noted(self, address: EngineAddress) -> bool:
        answers = await self._answers(address)
        await asyncio.to_thread(self.note_memory)
        return answers

    async def _answers(self, address: EngineAddress) -> bool:
        if not await address.healthy():
            return False
        try:
            return bool(await address.served_models())
        except (EngineUnavailableError, CredentialsError, SettingsError):
            # another program's server on our port refuses our key; ours will fail to bind
            return False

    def _log_since_start(self) -> str:
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _LOG_TAIL_BYTES))
                return log.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
