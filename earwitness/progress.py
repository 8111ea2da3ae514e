"""What a running build tells whoever listens: the command line's bars, a flow's artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Planning:
    """Rows of the manifest read so far."""

    rows: int


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan is frozen, or an earlier one is continued."""

    build: str
    rows: int
    shards: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class EngineStarting:
    """An engine is being started; `log` is where its output goes."""

    model: str
    log: str


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine answers."""

    seconds: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How full the engine's slots were since the last event of this kind, from 0 to 1."""

    share: float


@dataclass(frozen=True, slots=True)
class Advanced:
    """Rows that reached their outcome since the last event."""

    generated: int = 0
    reused: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """The build is published."""

    build: str


@dataclass(frozen=True, slots=True)
class Closed:
    """What this process asked of others, told once at its end."""

    engine_requests: int
    downloads: int


Event = (
    Planning | Planned | EngineStarting | EngineReady | EngineLoad | Advanced | Published | Closed
)

_listeners: list[Callable[[Event], None]] = []


def listen(listener: Callable[[Event], None]) -> Callable[[], None]:
    """Have a listener told every event of this process.

    Args:
        listener: Called from any thread; must be quick.

    Returns:
        A function that ends it.
    """
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def tell(event: Event) -> None:
    """Tell all listeners."""
    for listener in _listeners.copy():
        listener(event)
