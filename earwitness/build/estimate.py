"""What a build would take of an engine, told beforehand by what earlier answers cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from earwitness.build.account import busy_s_an_answer, engine_s_an_answer, money
from earwitness.build.account_told import amount, span
from earwitness.escaping import counted

if TYPE_CHECKING:
    from earwitness.build.account import Basis


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a build would take.

    Attributes:
        answers: Answers to be generated.
        reused: Answers that are there already; None: nobody has looked, there may be some.
        busy_s: Engine time if the engine is never kept waiting.
        engine_s: Engine time if it is kept waiting as it was.
        start_s: Time to start it, as it was.
        price_per_hour: What an hour of it costs.
        basis: Whose account says so.
    """

    answers: int
    reused: int | None
    busy_s: float
    engine_s: float
    start_s: float
    price_per_hour: float | None
    basis: Basis

    def lines(self) -> list[tuple[str, str]]:
        """It in words, as names and values."""
        account = self.basis.account
        reused = "reuse not known" if self.reused is None else f"{self.reused:,} reused"
        told = _between(span(self.busy_s), span(self.engine_s))
        least = "at most " if self.reused is None and self.answers else ""
        if self.start_s and self.answers:
            told += f", and {span(self.start_s)} to start the engine"
        mean_s, tokens = account.audio_s / account.answers, self._tokens_an_answer()
        each = f"each with {mean_s:.1f} s of audio and {tokens:,.0f} tokens on average"
        return [
            ("answers to generate", f"about {self.answers:,} ({reused})"),
            ("engine time", f"{least}{told}"),
            *([("cost", f"{least}{self._cost()}")] if self.price_per_hour is not None else []),
            (
                "  estimated from",
                f"{self.basis.build}: {counted(account.answers, 'answer')}, {each}",
            ),
        ]

    def _tokens_an_answer(self) -> float:
        return self.basis.account.completion_tokens / self.basis.account.answers

    def _cost(self) -> str:
        costs = [
            money(seconds + (self.start_s if self.answers else 0.0), self.price_per_hour) or 0.0
            for seconds in (self.busy_s, self.engine_s)
        ]
        return f"{_between(*map(amount, costs))} at {self.price_per_hour:g} per hour"


def estimate(
    basis: Basis, rows: int, *, reused: int | None = None, price_per_hour: float | None = None
) -> Estimate:
    """Estimate what a build takes.

    Args:
        basis: What an answer costs.
        rows: Rows that would be answered, reused ones included.
        reused: Of them, those whose answer is there already; None: not known.
        price_per_hour: What an hour of an engine costs. Default: what it cost then.

    Returns:
        From the engine time of a build whose engine never waits to that of one whose engine waits
        as it did then.
    """
    answers = max(0, rows - (reused or 0))
    account = basis.account
    return Estimate(
        answers,
        reused,
        busy_s=answers * busy_s_an_answer(account),
        engine_s=answers * engine_s_an_answer(account),
        start_s=account.start_s,
        price_per_hour=basis.price_per_hour if price_per_hour is None else price_per_hour,
        basis=basis,
    )


def _between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
