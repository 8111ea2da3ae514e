"""Prefect's server as this house starts it: on SQLite without "database is locked".

Prefect opens nearly all its transactions on SQLite as DEFERRED: a transaction that reads first and
writes later fails at once where another one has written in between. The cursor that such a failure
leaves behind is collected in the event loop's thread. If its connection is then waiting for the
write lock, the event loop stands still for SQLite's time-out (a minute), and with it the
transaction that holds the lock. Here transactions take turns before they ask for a connection, and
take the write lock at their start: nothing fails and nothing waits inside SQLite. On PostgreSQL
nothing is changed.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prefect.server.api.server import create_app as prefect_app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


_LONGEST_TURN_S = 10.0
"""Whoever waits longer goes on without a turn, and leaves it to SQLite."""


class OneWriterSqlite(AioSqliteConfiguration):
    """SQLite whose transactions come one after the other, and take the write lock at their start.

    Args:
        connection_url: The database, as in Prefect's setting.
    """

    def __init__(self, connection_url: str) -> None:
        super().__init__(connection_url)
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = True,  # noqa: FBT001, FBT002, ARG002 - Prefect's signature
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin a transaction in its turn, as IMMEDIATE, whatever the caller asked for."""
        async with (
            self._turn(),
            super().begin_transaction(session, with_for_update=True) as transaction,
        ):
            yield transaction

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None, None]:
        turn = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        mine = False
        with suppress(TimeoutError):
            mine = await asyncio.wait_for(turn.acquire(), _LONGEST_TURN_S)
        try:
            yield
        finally:
            if mine:
                turn.release()


def create_app() -> FastAPI:
    """Prefect's server; `uvicorn --factory` calls this."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if url.startswith("sqlite"):
        MODELS_DEPENDENCIES["database_config"] = OneWriterSqlite(url)
    return prefect_app()
