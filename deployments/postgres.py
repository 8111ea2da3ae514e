"""A PostgreSQL cluster of our own, in a folder, for a Prefect server on the same machine."""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

from earwitness.errors import FatalError

_DEBIAN = Path("/usr/lib/postgresql")
"""Debian keeps the server's programs here, a folder a version, and off the PATH."""
_SYSTEM_USER = "postgres"
"""PostgreSQL refuses to run as root; its package makes this user."""
_ROLE = "prefect"
_EXTENSION = "pg_trgm"
"""Prefect's migrations create it; some distributions pack it apart from the server."""
_CONNECT_S = 5.0
_PRIVATE = 0o700


def find_programs(versions: Path = _DEBIAN) -> Path | None:
    """The folder with the programs of the newest PostgreSQL server on this machine.

    Args:
        versions: A folder with a folder a version; the PATH comes after it.

    Returns:
        None: there is none, or this process is root's and there is no user to run it as.
    """
    if os.geteuid() == 0 and _system_user() is None:
        return None
    folders = [path for path in versions.glob("*/bin") if (path / "initdb").exists()]
    if folders:
        return max(folders, key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _system_user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        return None


class Cluster:
    """A database cluster that only this machine reaches, and only with a random password.

    Args:
        folder: Where it is kept. If this process is root's, the user `postgres` must be able to
            reach the folder's parent.
        programs: The folder of PostgreSQL's programs.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder = folder
        self._programs = programs
        # another version cannot read it
        self._data = folder / f"data-{_version(programs)}"
        self._password_path = folder / "password"
        # root's process becomes the other user before it starts anything
        words = [f"--reuid={_SYSTEM_USER}", f"--regid={_SYSTEM_USER}", "--init-groups", "--"]
        self._as_user = ["setpriv", *words] if os.geteuid() == 0 else []

    def make(self) -> None:
        """Make the cluster, unless it is there.

        Raises:
            FatalError: Its folder is somebody else's, or PostgreSQL could not make it.
        """
        self._make_folder()
        if self._data.exists():
            return
        self._write_password()
        unfinished = self._folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [str(self._programs / "initdb"), "-D", str(unfinished), "-U", _ROLE]
        command += ["-A", "scram-sha-256", f"--pwfile={self._password_path}"]
        # a locale that is not installed would end it
        command += ["--encoding=UTF8", "--locale=C"]
        done = subprocess.run(
            [*self._as_user, *command], cwd="/", capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise FatalError(f"PostgreSQL's initdb failed: {_last_line(done.stderr)}")
        unfinished.rename(self._data)

    def _make_folder(self) -> None:
        user = _system_user() if self._as_user else None
        owner = user.pw_uid if user else os.geteuid()
        try:
            self._folder.mkdir(mode=_PRIVATE)
            if user:
                os.chown(self._folder, user.pw_uid, user.pw_gid)
        except FileExistsError:
            found = self._folder.lstat()
            mine = stat.S_ISDIR(found.st_mode) and found.st_uid == owner
            if not mine or stat.S_IMODE(found.st_mode) & ~_PRIVATE:
                raise FatalError(
                    f"PostgreSQL's folder {self._folder} has to be private to its owner: remove it"
                ) from None

    def _write_password(self) -> None:
        self._password_path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(self._password_path, flags, 0o600), "w") as file:  # noqa: PTH123 - a descriptor
            file.write(secrets.token_urlsafe(24))
        found = self._folder.stat()
        os.chown(self._password_path, found.st_uid, found.st_gid)

    def command(self, port: int) -> list[str]:
        """The command that runs it; SIGINT ends it at once and in order.

        Args:
            port: Port on the loopback.
        """
        words = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(port)]
        # compiling the query behind a run's graph takes longer than running it, up to its time-out
        words += ["-c", "jit=off"]
        # no socket in the file system: its path has a limit of 107 bytes
        return [*self._as_user, *words, "-c", "listen_addresses=127.0.0.1", "-k", ""]

    def url(self, port: int) -> str:
        """The connection URL for Prefect's server; it holds the password.

        Args:
            port: The port that `command` was given.
        """
        return f"postgresql+asyncpg://{_ROLE}:{self._password}@127.0.0.1:{port}/postgres"

    @property
    def _password(self) -> str:
        return self._password_path.read_text()

    def answers(self, port: int) -> bool:
        """True when it takes connections.

        Args:
            port: The port that `command` was given.

        Raises:
            FatalError: It lacks what Prefect needs of it.
        """
        return asyncio.run(self._ask(port))

    async def _ask(self, port: int) -> bool:
        import asyncpg  # type: ignore[import-untyped]

        given: dict[str, Any] = {"host": "127.0.0.1", "port": port, "user": _ROLE}
        given |= {"password": self._password, "database": "postgres", "timeout": _CONNECT_S}
        try:
            connection = await asyncpg.connect(**given)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError):
            return False
        try:
            query = "SELECT 1 FROM pg_available_extensions WHERE name = $1"
            if await connection.fetchval(query, _EXTENSION) is None:
                raise FatalError(
                    f"PostgreSQL has no extension {_EXTENSION}: install postgresql-contrib"
                )
        finally:
            await connection.close()
        return True

    def remove(self) -> None:
        """Delete the cluster with all it holds; it must not be running."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _version(programs: Path) -> str:
    """The major version: `15`."""
    command = [str(programs / "postgres"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return words[2].split(".")[0] if len(words) > 2 else "unknown"  # noqa: PLR2004 - `postgres (PostgreSQL) 15.1`


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
