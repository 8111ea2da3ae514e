"""Limits are held against a clip's facts; only what is not known of it yet is decoded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from earwitness.audio.facts import are_current, facts_version, faulty, judge, sound_of
from earwitness.audio.facts import with_earlier_sounds as joined
from earwitness.audio.wav import pcm_digest
from earwitness.records import ClipFacts, HeardSound, Reason, Rejection, Stage
from earwitness.settings import AudioSettings, Silence, TooLong

WHOLE = HeardSound(16_000, None, 10.0, 0.002, "a" * 64)
CUT = HeardSound(16_000, 5.0, 5.0, 0.002, "b" * 64)
FACTS = ClipFacts("wav", facts_version("wav"), 10.0, sounds=(WHOLE, CUT))


def policy(**changes: object) -> AudioSettings:
    return AudioSettings.model_validate(changes)


def reason(facts: ClipFacts, **changes: object) -> Reason | None:
    rejection = judge(facts, policy(**changes))
    return rejection.reason if rejection else None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"max_duration_s": 10}, None),
        ({"max_duration_s": 9.9}, Reason.CLIP_TOO_LONG),
        ({"max_duration_s": 5, "too_long": TooLong.CUT}, None),
        ({"min_duration_s": 11}, Reason.CLIP_TOO_SHORT),
        ({"silence_dbfs": -50}, Reason.SILENT),
        ({"silence_dbfs": -50, "silence": Silence.KEEP}, None),
    ],
)
def test_a_changed_limit_is_judged_from_what_is_known(
    changes: dict[str, object], expected: Reason | None
):
    assert reason(FACTS, **changes) is expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, WHOLE),
        ({"max_duration_s": 29}, WHOLE),
        ({"max_duration_s": 5, "too_long": TooLong.CUT}, CUT),
        ({"max_duration_s": 6, "too_long": TooLong.CUT}, None),
        ({"sample_rate_hz": 8_000}, None),
    ],
)
def test_a_sound_is_known_if_it_was_made_for_the_same_rate_and_cut(
    changes: dict[str, object], expected: HeardSound | None
):
    assert sound_of(FACTS, policy(**changes)) is expected


def test_a_clip_that_nobody_decoded_to_its_end_is_too_long_up_to_where_it_was_decoded():
    facts = ClipFacts("webm", 1, None, longer_than_s=30.0)
    assert reason(facts, max_duration_s=20) is Reason.CLIP_TOO_LONG
    assert reason(facts, max_duration_s=30) is Reason.CLIP_TOO_LONG
    assert reason(facts, max_duration_s=40) is None
    assert sound_of(facts, policy(max_duration_s=40)) is None


def test_a_fault_holds_under_any_limits():
    rejection = Rejection(Stage.DECODE, Reason.TRUNCATED, "it is cut off")
    assert judge(faulty(rejection), policy(min_duration_s=0, max_duration_s=999)) == rejection


def test_digital_silence_is_told_as_such():
    sound = dataclasses.replace(WHOLE, peak=0.0)
    rejection = judge(dataclasses.replace(FACTS, sounds=(sound,)), policy())
    assert rejection is not None
    assert "its peak is digital silence, below the threshold of -60 dBFS" in rejection.detail


def test_sounds_that_earlier_builds_made_are_kept():
    now = dataclasses.replace(FACTS, sounds=(dataclasses.replace(WHOLE, peak=0.5),))
    assert joined(now, FACTS).sounds == (*now.sounds, CUT)


def test_sounds_of_an_older_decoder_are_not_kept():
    old = dataclasses.replace(FACTS, version=FACTS.version - 1)
    now = dataclasses.replace(FACTS, sounds=(WHOLE,))
    assert not are_current(old)
    assert joined(now, old) == now


def test_equal_samples_at_another_rate_are_another_sound():
    samples = np.zeros(100, np.int16)
    assert pcm_digest(samples, 16_000) == pcm_digest(samples.copy(), 16_000)
    assert pcm_digest(samples, 16_000) != pcm_digest(samples, 8_000)
