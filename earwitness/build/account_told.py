"""A build's account in words: for the closing table, the card and the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from earwitness.records import Json

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
