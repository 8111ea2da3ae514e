"""A build's account: engine time, reuse and money; in words, and as an estimate of the next build.

What is measured, and what the words mean, is said in `earwitness.engine.usage`. A shard's account
is in its receipt, a build's in `build.json`; data files and rejections hold nothing of it.

A reused answer has saved the busy seconds that a generated one cost: an engine that is kept full
takes no less for it, and what a few answers cost at the tail of a small build does not come in. So
that a build which generated hardly anything can tell, each account names the one it goes by
(`Basis`): its own, or that of an earlier published build with the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from earwitness.engine.usage import EngineTime
from earwitness.escaping import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from earwitness.engine.usage import Usage
    from earwitness.records import Json, Outcome


_HOUR_S = 3600
_MINUTE_S = 60
_CENT = 0.01
_WORTH_TELLING = 1.01


def account_lines(account: Json | None) -> list[tuple[str, str]]:
    """What there is to say of an account, as names and values; details are indented.

    Args:
        account: As `build.json` holds it; None: the build is older than accounts.
    """
    if not account:
        return []
    return [*_engine_lines(account), *_reuse_lines(account), *_cost_lines(account)]


def _engine_lines(account: Json) -> list[tuple[str, str]]:
    engine_s = account["engine_s"]
    if not engine_s:
        return []
    least = "at least " if account["interrupted"] else ""
    busy = account["busy_s"] / engine_s
    lines = [
        ("engine", f"{least}{span(engine_s)}, {busy:.0%} busy, {1 - busy:.0%} waiting for work")
    ]
    if account["start_s"]:
        lines.append(("  started in", span(account["start_s"])))
    if account["gpu_s"]:
        lines.append(("  GPU hours", f"{account['gpu_s'] / _HOUR_S:,.2f}"))
    lines.append(("  tokens per second", _tokens(account)))
    heard = account["audio_hours_per_engine_hour"]
    lines.append(("  hours of audio per engine hour", f"{heard:,.1f}"))
    return lines


def _tokens(account: Json) -> str:
    asked, answered = account["prompt_tokens_per_s"], account["completion_tokens_per_s"]
    words = f"{asked:,.0f} in prompts, {answered:,.0f} in answers"
    ours = account["prompt_tokens"] + account["completion_tokens"]
    theirs = account["engine_prompt_tokens"] + account["engine_completion_tokens"]
    if theirs <= _WORTH_TELLING * ours:
        return words
    # others asked it, too, or what it answered was lost in a kill
    return f"{words} (all requests to this engine: {theirs / account['engine_s']:,.0f})"


def _reuse_lines(account: Json) -> list[tuple[str, str]]:
    if not account["reused"] or account["saved_s"] is None:
        return []
    return [("saved by reuse", f"{span(account['saved_s'])} of engine time")]


def _cost_lines(account: Json) -> list[tuple[str, str]]:
    if account["cost"] is None:
        return []
    least = "at least " if account["interrupted"] and account["engine_s"] else ""
    words = f"{least}{amount(account['cost'])} at {account['price_per_hour']:g} per hour"
    if account["reused"] and account["saved_cost"] is not None:
        words += f"; reuse saved {amount(account['saved_cost'])}"
    return [("cost", words)]


def span(seconds: float) -> str:
    """A length of time, in the unit that fits."""
    if seconds >= _HOUR_S:
        return f"{seconds / _HOUR_S:,.2f} h"
    if seconds >= _MINUTE_S:
        return f"{seconds / _MINUTE_S:.1f} min"
    return f"{seconds:.1f} s"


def amount(money: float) -> str:
    """An amount of money; what is less than a cent to two digits that say something."""
    return f"{money:,.2f}" if money >= _CENT or not money else f"{money:.2g}"


_ENOUGH_ANSWERS = 100
"""From so many answers on a build goes by its own account, however many an earlier one had."""
_HOUR_S = 3600


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Account(_Kept):
    """What generated answers cost. The first six are `EngineTime`'s.

    Attributes:
        answers: Answers that were generated.
        audio_s: Audio that was heard for them.
        prompt_tokens: Tokens they were asked with, by the engine's reply to each.
        completion_tokens: Tokens they have.
        interrupted: Shards that took more than one process: what those had since their last
            checkpoint is missing.
    """

    start_s: float = 0.0
    engine_s: float = 0.0
    busy_s: float = 0.0
    gpu_s: float = 0.0
    engine_prompt_tokens: int = 0
    engine_completion_tokens: int = 0
    answers: int = 0
    audio_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    interrupted: int = 0

    def __add__(self, other: Account) -> Account:
        names = type(self).model_fields
        return Account(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def starved_s(self) -> float:
        """Engine seconds without a request in the slots."""
        return max(0.0, self.engine_s - self.busy_s)


class Basis(_Kept):
    """Whose account says what an answer costs.

    Attributes:
        build: The build's id.
        model: Its model's identity.
        account: Its account.
        price_per_hour: What an hour of its engine cost.
    """

    build: str
    model: dict[str, Any]
    account: Account
    price_per_hour: float | None = None


def total_usage(usages: Iterable[Usage]) -> Account:
    """The engine time of a shard, from its checkpoints.

    Args:
        usages: As they were kept.
    """
    found = list(usages)
    time = sum((usage.time for usage in found), EngineTime())
    attempts = {usage.attempt for usage in found if usage.attempt}
    return Account(
        start_s=round(time.start_s, 3),
        engine_s=round(time.engine_s, 3),
        busy_s=round(time.busy_s, 3),
        gpu_s=round(time.gpu_s, 3),
        engine_prompt_tokens=round(time.prompt_tokens),
        engine_completion_tokens=round(time.completion_tokens),
        interrupted=len(attempts) > 1,
    )


def generated(outcomes: Iterable[Outcome]) -> Account:
    """What generated answers say of themselves.

    Args:
        outcomes: Each with an answer.
    """
    found = list(outcomes)
    said = [outcome.answer for outcome in found if outcome.answer is not None]
    return Account(
        answers=len(said),
        audio_s=sum(clip.heard_s for outcome in found for clip in outcome.clips),
        prompt_tokens=sum(answer.prompt_tokens for answer in said),
        completion_tokens=sum(answer.completion_tokens for answer in said),
    )


def basis_of(facts: Json) -> Basis | None:
    """The basis that a published build's `build.json` names.

    Args:
        facts: The file's content.

    Returns:
        None where it has none (it knew none, or is of another version).
    """
    try:
        return Basis.model_validate(facts["account"]["basis"])
    except (KeyError, TypeError, ValidationError):
        return None


def choose_basis(mine: Basis, earlier: Basis | None) -> Basis | None:
    """Whose account a build goes by.

    Args:
        mine: Its own.
        earlier: What the newest published build goes by.

    Returns:
        Its own if it has enough answers or there is nothing better; None where nothing is known.
    """
    answers = mine.account.answers if mine.account.engine_s else 0
    if earlier is None or earlier.model != mine.model or not earlier.account.answers:
        return mine if answers else None
    return mine if answers >= min(_ENOUGH_ANSWERS, earlier.account.answers) else earlier


def account_facts(mine: Basis, basis: Basis | None, *, reused: int) -> Json:
    """A build's account as `build.json` holds it.

    Args:
        mine: The build's own account, and its price.
        basis: Whose account says what a reused answer would have cost.
        reused: Answers that were reused.

    Returns:
        The sums, with rates, savings and money; what is not known is null.
    """
    account, price = mine.account, mine.price_per_hour
    saved_s = None if basis is None else reused * busy_s_an_answer(basis.account)
    return {
        **account.model_dump(mode="json"),
        "starved_s": round(account.starved_s, 3),
        "prompt_tokens_per_s": _rate(account.prompt_tokens, account.engine_s),
        "completion_tokens_per_s": _rate(account.completion_tokens, account.engine_s),
        "audio_hours_per_engine_hour": _rate(account.audio_s, account.engine_s),
        "reused": reused,
        "saved_s": None if saved_s is None else round(saved_s, 3),
        "price_per_hour": price,
        "cost": money(account.start_s + account.engine_s, price),
        "saved_cost": None if saved_s is None else money(saved_s, price),
        "basis": None if basis is None else basis.model_dump(mode="json"),
    }


def busy_s_an_answer(account: Account) -> float:
    """Busy seconds that an answer cost; the account has answers."""
    return account.busy_s / account.answers


def engine_s_an_answer(account: Account) -> float:
    """Engine seconds an answer, with those of waiting for work; the account has answers."""
    return account.engine_s / account.answers


def money(seconds: float, price_per_hour: float | None) -> float | None:
    """What an engine costs for so long; None without a price."""
    return None if price_per_hour is None else round(seconds * price_per_hour / _HOUR_S, 6)


def _rate(amount: float, seconds: float) -> float | None:
    return round(amount / seconds, 3) if seconds else None


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
