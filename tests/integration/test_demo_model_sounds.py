"""The demo model's sounds: what is said of a clip must be true of its samples."""

from __future__ import annotations

import numpy as np
import pytest

from demo_model.questions import GENERAL, SHARES, WORDINGS, ask, right_answers
from demo_model.sounds import KINDS, PITCH_RANGES_HZ, RATE_HZ, draw_clip, roughen


def beeps_heard(samples):
    """Counts stretches of sound by their envelope alone."""
    window = round(0.01 * RATE_HZ)
    power = np.convolve(samples.astype(float) ** 2, np.ones(window) / window, "same")
    loud = power > power.max() / 20
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int)])) == 1)
    ends = np.flatnonzero(np.diff(np.concatenate([loud.astype(int), [0]])) == -1)
    # ripples at an edge are no beep of their own
    pauses = edges[1:] - ends[:-1]
    return 1 + int((pauses > 0.04 * RATE_HZ).sum())


def strongest_hz(samples):
    spectrum = np.abs(np.fft.rfft(samples))
    return spectrum.argmax() * RATE_HZ / len(samples)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_there_are_as_many_beeps_as_said_at_the_pitch_said(count):
    rng = np.random.default_rng(count)
    for _ in range(8):
        clip = draw_clip(rng, beeps=count)
        low, high = PITCH_RANGES_HZ[clip.pitch]
        assert beeps_heard(clip.samples) == count == len(clip.beeps)
        assert low * 0.97 < strongest_hz(clip.samples) < high * 1.03


def test_the_same_seed_draws_the_same_clip():
    first, second = (draw_clip(np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.samples, second.samples)
    assert right_answers(first) == right_answers(second)


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_whole_numbers_of_16_bits_and_within_what_the_model_hears(kind):
    rng = np.random.default_rng(7)
    for number in range(4):
        clip = draw_clip(rng, kind=kind, long_clip=number == 3)
        assert 0.2 < clip.duration_s < 30
        assert clip.samples.dtype == np.float32
        assert np.array_equal(clip.samples * 32768, np.rint(clip.samples * 32768))
        assert np.abs(clip.samples).max(initial=0) <= 1


def test_roughening_keeps_length_and_beeps():
    rng = np.random.default_rng(8)
    clip = draw_clip(rng, beeps=3)
    rough = roughen(rng, clip.samples)
    assert len(rough) == len(clip.samples)
    assert not np.array_equal(rough, clip.samples)


def test_a_question_is_only_asked_where_it_has_a_right_answer():
    rng = np.random.default_rng(9)
    for kind in KINDS:
        clips = (draw_clip(rng, kind=kind),)
        for _ in range(20):
            question = ask(rng, clips)
            known = right_answers(*clips) | {"no audio needed": GENERAL.get(question.text)}
            assert question.answer == known[question.type]


def test_the_first_or_the_second_is_said_of_the_clip_with_more_beeps():
    rng = np.random.default_rng(10)
    few, many = draw_clip(rng, beeps=2), draw_clip(rng, beeps=4)
    assert right_answers(few, many)["more beeps"] == "the second"
    assert right_answers(many, few)["more beeps"] == "the first"


def test_no_wording_has_two_meanings():
    texts = [text for wordings in WORDINGS.values() for text in wordings] + list(GENERAL)
    assert len(texts) == len(set(texts))
    assert set(WORDINGS) | {"no audio needed"} == set(SHARES)
