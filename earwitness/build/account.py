"""A build's account: what its answers cost of its engines' time, what reuse saved, in money too.

What is measured, and what the words mean, is said in `earwitness.engine.account`. A shard's account
is in its receipt, a build's in `build.json`; data files and rejections hold nothing of it.

A reused answer has saved the busy seconds that a generated one cost: an engine that is kept full
takes no less for it, and what a few answers cost at the tail of a small build does not come in. So
that a build which generated hardly anything can tell, each account names the one it goes by
(`Basis`): its own, or that of an earlier published build with the same model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from earwitness.engine.account import EngineTime

if TYPE_CHECKING:
    from collections.abc import Iterable

    from earwitness.engine.account import Booking
    from earwitness.records import Json, Outcome

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


def booked(bookings: Iterable[Booking]) -> Account:
    """The engine time of a shard, from its checkpoints.

    Args:
        bookings: As they were kept.
    """
    found = list(bookings)
    time = sum((booking.time for booking in found), EngineTime())
    attempts = {booking.attempt for booking in found if booking.attempt}
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
