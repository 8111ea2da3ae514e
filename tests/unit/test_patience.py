"""A call that fails is made again for a while; storage that is down costs that while once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from earwitness.patience import VARIABLE, Attempts, Patience

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
