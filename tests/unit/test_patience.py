"""A call that fails is made again for a while; storage that is down costs that while once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from earwitness.patience import FIRST_PAUSE_S, VARIABLE, Attempts, Patience

if TYPE_CHECKING:
    import pytest


def failures(patience: Patience) -> int:
    """How often a call that always fails is made."""
    attempts, made = Attempts(patience, first_pause_s=0.01), 1
    while (pause_s := attempts.failed()) is not None:
        time.sleep(pause_s)
        made += 1
    return made


def test_a_call_is_made_again_until_the_time_is_over():
    began = time.monotonic()
    assert failures(Patience(0.05)) > 2
    assert time.monotonic() - began < 1


def test_once_nothing_has_worked_for_that_long_each_call_is_made_once():
    patience = Patience(0.02)
    failures(patience)
    time.sleep(0.02)
    assert failures(patience) == 1
    patience.worked()
    assert failures(patience) > 1


def test_pauses_grow_and_do_not_fall_in_step():
    attempts = [Attempts(Patience(60)) for _ in range(20)]
    first = [one.failed() or 0 for one in attempts]
    later = [one.failed() or 0 for one in attempts]
    assert len(set(first)) > 1
    assert max(first) <= 0.2 <= max(later) <= 0.4


def test_one_attempt_that_took_all_the_time_is_made_again():
    patience = Patience(0.01)
    attempts = Attempts(patience)
    time.sleep(0.02)
    assert attempts.failed() is not None


def test_the_environment_says_for_how_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "7.5")
    assert Patience().limit_s == 7.5


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def failing_s(
    attempts: Attempts, patience: Patience, clock: Clock, *, others_from_s: float
) -> float:
    """How long a call that always fails at once is made again while others work from then on."""
    began_s, made = clock.now_s, 1
    while (pause_s := attempts.failed()) is not None:
        clock.now_s += pause_s
        made += 1
        if clock.now_s - began_s >= others_from_s:
            patience.worked()
        assert made < 100
    return clock.now_s - began_s


def test_a_call_that_fails_alone_is_given_up_within_twenty_seconds():
    clock = Clock()
    patience = Patience(60, clock=clock)
    took_s = failing_s(Attempts(patience), patience, clock, others_from_s=0.0)
    # they count from the first failure at which others are known to work: the second one
    assert 10 < took_s <= 20 + FIRST_PAUSE_S


def test_a_call_that_fails_alone_is_made_ten_times_at_least():
    clock = Clock()
    patience = Patience(60, clock=clock)
    attempts = Attempts(patience)
    failing_s(attempts, patience, clock, others_from_s=0.0)
    assert attempts.failures >= 9


def test_a_call_that_failed_with_all_others_has_its_time_when_they_work_again():
    clock = Clock()
    patience = Patience(60, clock=clock)
    took_s = failing_s(Attempts(patience), patience, clock, others_from_s=40.0)
    assert 50 < took_s <= 80


def test_storage_works_once_a_call_did_and_no_longer_when_none_has_for_two_minutes():
    clock = Clock()
    patience = Patience(60, clock=clock)
    assert not patience.works
    patience.worked()
    assert patience.works
    clock.now_s += 121
    assert not patience.works
