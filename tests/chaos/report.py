"""What a campaign tried, and how often the promise held."""

from __future__ import annotations

from typing import NamedTuple


class Held(NamedTuple):
    """One line of the campaign's table.

    Attributes:
        what: The fault or attack, and what was promised.
        tried: How often it was tried.
        held: How often the promise held.
        detail: Figures worth reading; for a failure the seed and command that reproduce it.
    """

    what: str
    tried: int
    held: int
    detail: str = ""

    @property
    def failed(self) -> bool:
        """True when the promise was broken at least once."""
        return self.held < self.tried
