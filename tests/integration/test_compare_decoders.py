"""Our decoder against FFmpeg: whole clips are heard alike, and differences have their reasons."""

from __future__ import annotations

import pytest

from tests.chaos.compare_decoders import compare
from tests.chaos.containers import whole_clips
from tests.chaos.explained import why
from tests.chaos.second_decoder import listen


def test_whole_clips_of_every_container_are_heard_as_long_as_by_ffmpeg(tmp_path):
    for name, data in whole_clips().items():
        tmp_path.joinpath(name).write_bytes(data)
    # FFmpeg does not open MATLAB files
    different = [one for one in compare(tmp_path) if not one.same and one.path.name != "mat5"]
    assert different == []


def test_the_second_decoder_hears_every_link_of_a_chained_ogg_at_its_own_rate(tmp_path):
    clips = whole_clips()
    path = tmp_path / "chained.ogg"
    path.write_bytes(clips["ogg-vorbis"] + clips["ogg-vorbis-stereo"])
    heard = listen(path)
    assert heard.seconds == pytest.approx(0.6, abs=0.01)
    assert heard.shapes == ((16_000, 1), (44_100, 2))


def test_a_cut_file_is_rejected_for_bytes_that_its_header_announces(tmp_path):
    for name in ("wav-pcm16", "aiff", "au", "caf", "w64", "rf64", "ogg-opus", "mp3-stereo"):
        tmp_path.joinpath(name).write_bytes(whole_clips()[name][:-2_500])
    for one in compare(tmp_path):
        assert one.ours.word == "truncated"
        assert "more than there are" in why(one.path.read_bytes(), one.ours, one.heard)
