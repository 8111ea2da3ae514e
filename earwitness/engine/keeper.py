"""Who brings a dead lane back: `own_keeper` restarts ours, `given_keeper` waits for others'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from earwitness.engine.lanes import Lane
    from earwitness.engine.pulse import Pulse


class Keeper(Protocol):
    """Starts lanes, says whether one died, and brings it back.

    Attributes:
        kills_to_convict: How often a request must kill an engine while alone with it.
        shared: Others ask the same engines. A death may be their doing: the request is asked again
            by the next build, and its deaths are counted over builds.
    """

    kills_to_convict: int
    shared: bool

    async def start(self) -> None:
        """Brings the first lane up, or raises."""

    async def died(self, lane: Lane) -> bool:
        """Whether a lane that gave trouble is dead.

        Args:
            lane: The lane.
        """

    async def pulse(self, lane: Lane) -> Pulse:
        """Whether a lane's engine answers a question of our own.

        Args:
            lane: The lane.
        """

    def revive(self, lane: Lane, why: str = "") -> None:
        """Begins to bring a dead lane back; does nothing if that is under way.

        Args:
            lane: The lane.
            why: What is wrong with an engine that runs but does not answer.
        """

    def explain(self, deaths: set[int]) -> None:
        """Takes note that records are known to have caused these deaths.

        Args:
            deaths: Numbers of deaths (`Lane.deaths` as each left it).
        """

    async def close(self) -> None:
        """Ends what it started."""
