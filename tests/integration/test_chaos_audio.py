"""The campaign's damaged clips in short: sane and whole audio or a typed rejection."""

from __future__ import annotations

import random
import struct

import pytest
import soundfile

from earwitness.errors import BadRecordError
from earwitness.records import Reason
from tests.chaos import audio
from tests.chaos.containers import tone, whole_clips
from tests.chaos.damage import damaged
from tests.chaos.mutations import mutations
from tests.chaos.outcome import decode, probe


def test_damaged_and_odd_clips_end_as_sane_and_whole_audio_or_as_a_typed_rejection(tmp_path):
    held = mutations(tmp_path, seed=1, count=500)
    assert [one for one in held if one.failed] == []


def test_a_native_crash_costs_its_own_clip_alone_among_many_in_flight(tmp_path):
    held = audio.native_crashes(tmp_path, seed=1, clips=60, crashes=4)
    assert not held.failed, held


def test_hours_in_a_small_file_are_refused_or_cut_in_bounded_memory(tmp_path):
    held = audio.try_bombs(tmp_path, hours=2)
    assert [one for one in held if one.failed] == []


@pytest.mark.parametrize("name", sorted(whole_clips()))
def test_whole_clips_of_every_container_are_heard(tmp_path, name):
    path = tmp_path / "clip"
    path.write_bytes(whole_clips()[name])
    assert probe(path, audio.POLICY).channels in {1, 2}
    assert decode(path, tmp_path / "heard.wav", audio.POLICY).heard_s == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("name", ["flac-16", "flac-24"])
def test_a_flac_whose_length_was_not_known_when_it_was_written_is_heard_whole(tmp_path, name):
    data = bytearray(whole_clips()[name])
    data[21] &= 0xF0
    data[22:26] = struct.pack(">I", 0)
    path = tmp_path / "clip"
    path.write_bytes(data)
    assert probe(path, audio.POLICY).duration_s == pytest.approx(0.3, abs=0.001)
    decode(path, tmp_path / "piped.wav", audio.POLICY)
    path.write_bytes(whole_clips()[name])
    decode(path, tmp_path / "announced.wav", audio.POLICY)
    assert (tmp_path / "piped.wav").read_bytes() == (tmp_path / "announced.wav").read_bytes()


def test_a_header_that_sends_ffmpeg_before_the_file_is_a_rejection(tmp_path):
    # a damaged index: FFmpeg seeks to where no file can be
    clips = {"wma": whole_clips()["wma"]}
    path = tmp_path / "clip"
    for number in (19, 198):
        path.write_bytes(damaged(clips, "wma", random.Random(number))[1])  # noqa: S311 - seeded dice
        with pytest.raises(BadRecordError) as caught:
            probe(path, audio.POLICY)
        assert caught.value.rejection.reason is Reason.DECODE_FAILED


@pytest.mark.parametrize("kind", ["AU", "CAF", "W64", "RF64"])
def test_a_clip_cut_in_the_middle_is_truncated_in_rarer_containers_too(tmp_path, kind):
    path = tmp_path / "clip"
    soundfile.write(str(path), tone(1.0, 16_000), 16_000, format=kind)
    assert probe(path, audio.POLICY).duration_s == 1.0
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadRecordError) as caught:
        probe(path, audio.POLICY)
    assert caught.value.rejection.reason is Reason.TRUNCATED
