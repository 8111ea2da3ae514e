"""All of a clip's sound is heard, whatever its header says of its length, or it is rejected."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
import soundfile
from odd_clips import by_ffmpeg, by_libsndfile, heard_s, look, mp3, rejection, wav

from earwitness.audio.ogg import pages as ogg_pages
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Stage
from earwitness.settings import AudioSettings, TooLong
from tests.chaos.damage import with_checksums
from tests.chaos.outcome import probe

if TYPE_CHECKING:
    from collections.abc import Callable

PIPED = {"write_xing": "0"}


def xing(data: bytes, *, frames: int | None = None, flags: int | None = None) -> bytes:
    """The same MP3 with another count, or other flags, in its Xing or Info header."""
    at = max(data.find(b"Xing"), data.find(b"Info"))
    changed = bytearray(data)
    if flags is not None:
        changed[at + 4 : at + 8] = struct.pack(">I", flags)
    if frames is not None:
        changed[at + 8 : at + 12] = struct.pack(">I", frames)
    return bytes(changed)


def holed(data: bytes, at: int, length: int) -> bytes:
    return data[:at] + bytes(length) + data[at + length :]


MP3_CASES = {
    "louder at its start, piped": (
        lambda: mp3(1, kbps=256, **PIPED) + mp3(9, kbps=32, **PIPED),
        10,
    ),
    "quieter at its start, piped": (
        lambda: mp3(1, kbps=32, **PIPED) + mp3(9, kbps=256, **PIPED),
        10,
    ),
    "with a Xing header": (lambda: mp3(10), 10),
    "joined, piped": (lambda: mp3(2, **PIPED) + mp3(3, **PIPED), 5),
    "joined, with Xing headers": (lambda: mp3(2) + mp3(3), 5),
    "joined, the first with a Xing header": (lambda: mp3(2) + mp3(3, **PIPED), 5),
    "joined, tags between": (lambda: mp3(2) + b"TAG" + bytes(125) + mp3(3, id3v2_version="4"), 5),
    "rate changes, piped": (lambda: mp3(2, **PIPED) + mp3(3, 22_050, **PIPED), 5),
    "rate rises, piped": (lambda: mp3(2, 16_000, **PIPED) + mp3(3, 48_000, **PIPED), 5),
    "rate changes, with Xing headers": (lambda: mp3(2) + mp3(3, 22_050), 5),
    "becomes stereo": (
        lambda: (
            mp3(2, **PIPED)
            + by_ffmpeg(
                "libmp3lame", "mp3", 3, 44_100, channels=2, kbps=128, id3v2_version="0", **PIPED
            )
        ),
        5,
    ),
    "Xing header of 0 frames": (lambda: xing(mp3(3), frames=0), 3),
    "Xing header of a third of the frames": (lambda: xing(mp3(3), frames=38), 3),
    "Xing header without flags": (lambda: xing(mp3(3), flags=0), 3),
    "Xing header of absurdly many frames, all bytes there": (lambda: xing(mp3(3), frames=2**31), 3),
    "zeros behind it": (lambda: mp3(3, **PIPED) + bytes(50_000), 3),
    "zeros before it": (lambda: bytes(3_000) + mp3(3, **PIPED), 3),
    "a hole of zeros": (lambda: holed(mp3(3, **PIPED), 12_120, 2_000), 3),
    "a hole of zeros, with a Xing header": (lambda: holed(mp3(3), 12_120, 2_000), 3),
}


@pytest.mark.parametrize("case", MP3_CASES)
def test_an_mp3_is_heard_to_its_last_frame(tmp_path, case):
    build, seconds = MP3_CASES[case]
    data = build()
    # an encoder that says nothing of its delay and padding adds up to two frames a piece
    assert heard_s(tmp_path, data) == pytest.approx(seconds, abs=0.15)
    assert look(tmp_path, data)[0].duration_s == pytest.approx(seconds, abs=0.15)


@pytest.mark.parametrize("case", ["with a Xing header", "joined, with Xing headers"])
def test_an_encoders_delay_and_padding_are_not_heard(tmp_path, case):
    build, seconds = MP3_CASES[case]
    assert heard_s(tmp_path, build()) == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize("rates", [(44_100, 22_050), (16_000, 48_000)])
def test_each_part_of_an_mp3_that_changes_its_rate_keeps_its_pitch(tmp_path, rates):
    look(tmp_path, mp3(2, rates[0], **PIPED) + mp3(3, rates[1], **PIPED))
    samples, rate_hz = soundfile.read(str(tmp_path / "heard.wav"))
    for start in (0.5, 2.5):
        part = samples[round(start * rate_hz) :][:rate_hz]
        assert np.argmax(np.abs(np.fft.rfft(part))) == pytest.approx(440, abs=2)


def test_a_cut_mp3_with_a_xing_header_is_truncated(tmp_path):
    data = mp3(3)
    found = rejection(tmp_path, data[: len(data) // 2])
    assert found.reason is Reason.TRUNCATED
    assert found.detail.startswith("the clip is cut off: its header announces 3.0")


@pytest.mark.parametrize("tag", [b"", b"TAG" + bytes(125)])
@pytest.mark.parametrize("options", [{}, PIPED])
def test_an_mp3_that_lacks_a_part_of_its_last_frame_is_heard(tmp_path, tag, options):
    data = mp3(3, **options)[:-100] + tag
    assert heard_s(tmp_path, data) == pytest.approx(3, abs=0.06)


@pytest.mark.parametrize("lacking", [280, 300, 320])
def test_what_an_mp3_lacks_of_its_last_frame_is_heard_like_zeros(tmp_path, lacking):
    data = by_libsndfile(1.1, 16_000, "MP3", "MPEG_LAYER_III")
    look(tmp_path, data[:-lacking] + bytes(lacking))
    filled = (tmp_path / "heard.wav").read_bytes()
    look(tmp_path, data[:-lacking])
    assert (tmp_path / "heard.wav").read_bytes() == filled


def test_a_tag_whose_size_is_wrong_hides_no_frames(tmp_path):
    tag = b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f"
    data = mp3(2, **PIPED) + tag + mp3(3, **PIPED)
    assert heard_s(tmp_path, data) == pytest.approx(5, abs=0.15)


def test_an_mp3_with_more_than_a_second_missing_amid_it_is_rejected(tmp_path):
    found = rejection(tmp_path, holed(mp3(5, **PIPED), 8_000, 16_000))
    assert (found.reason, "in the middle of the clip" in found.detail) == (
        Reason.DECODE_FAILED,
        True,
    )


@pytest.mark.parametrize("body", ["aac", "ac3", "wav"])
def test_what_only_begins_like_an_mp3_is_rejected(tmp_path, body):
    bodies = {
        "aac": lambda: by_ffmpeg("aac", "adts", 2, 44_100),
        "ac3": lambda: by_ffmpeg("ac3", "ac3", 2, 44_100),
        "wav": lambda: wav(64_000),
    }
    data = mp3(0.3, write_xing="0") + bodies[body]()[50:]
    assert rejection(tmp_path, data).reason is Reason.DECODE_FAILED


@pytest.mark.parametrize("rest", [bytes(60_000), b"\xa5" * 900, b"TAG" + bytes(125)])
def test_what_stands_behind_an_mp3_and_is_small_or_silent_takes_nothing_away(tmp_path, rest):
    assert heard_s(tmp_path, mp3(1) + rest) == pytest.approx(1, abs=0.03)


def test_two_minutes_that_announce_seventeen_seconds_meet_the_limit_at_the_probe(tmp_path):
    data = mp3(1, kbps=256, **PIPED) + mp3(119, kbps=32, **PIPED)
    (tmp_path / "clip").write_bytes(data)
    with pytest.raises(BadRecordError) as caught:
        probe(tmp_path / "clip", AudioSettings(max_duration_s=30))
    assert caught.value.rejection.reason is Reason.CLIP_TOO_LONG
    assert caught.value.rejection.stage is Stage.VALIDATE


def test_two_minutes_that_announce_seventeen_seconds_are_cut_with_that_recorded(tmp_path):
    data = mp3(1, kbps=256, **PIPED) + mp3(119, kbps=32, **PIPED)
    clip = look(tmp_path, data, AudioSettings(max_duration_s=30, too_long=TooLong.CUT))[1]
    assert clip.heard_s == 30
    assert clip.duration_s == pytest.approx(120, abs=0.1)


def ogg(seconds: float, rate_hz: int, subtype: str, channels: int = 1) -> bytes:
    return by_libsndfile(seconds, rate_hz, "OGG", subtype, channels)


CHAINS = {
    "vorbis": lambda: ogg(2, 44_100, "VORBIS") + ogg(3, 44_100, "VORBIS"),
    "opus": lambda: ogg(2, 48_000, "OPUS") + ogg(3, 48_000, "OPUS"),
    "vorbis, the rate falls": lambda: ogg(2, 44_100, "VORBIS") + ogg(3, 22_050, "VORBIS"),
    "vorbis, the rate rises": lambda: ogg(2, 16_000, "VORBIS") + ogg(3, 48_000, "VORBIS"),
    "vorbis becomes stereo": lambda: ogg(2, 44_100, "VORBIS") + ogg(3, 44_100, "VORBIS", 2),
    "opus becomes mono": lambda: ogg(2, 48_000, "OPUS", 2) + ogg(3, 48_000, "OPUS"),
    "vorbis, then opus": lambda: ogg(2, 44_100, "VORBIS") + ogg(3, 48_000, "OPUS"),
    "the same link twice": lambda: ogg(2.5, 44_100, "VORBIS") * 2,
    "noise between": lambda: (
        ogg(2, 44_100, "VORBIS") + b"\x01\x02" * 300 + ogg(3, 44_100, "VORBIS")
    ),
    "zeros behind": lambda: ogg(2, 44_100, "VORBIS") + ogg(3, 44_100, "VORBIS") + bytes(9_000),
    "five links": lambda: ogg(1, 44_100, "VORBIS") * 5,
}


@pytest.mark.parametrize("case", CHAINS)
def test_every_link_of_a_chained_ogg_is_heard(tmp_path, case):
    data = CHAINS[case]()
    assert heard_s(tmp_path, data) == pytest.approx(5, abs=0.02)
    assert look(tmp_path, data)[0].duration_s == pytest.approx(5, abs=0.02)


def test_a_chained_ogg_cut_in_its_second_link_is_truncated(tmp_path):
    data = ogg(2, 44_100, "VORBIS") + ogg(3, 44_100, "VORBIS")
    assert rejection(tmp_path, data[:-2_000]).reason is Reason.TRUNCATED


def test_a_link_whose_headers_are_damaged_is_not_left_out(tmp_path):
    first, second = ogg(2, 44_100, "VORBIS"), ogg(3, 44_100, "VORBIS")
    damaged = with_checksums(first + second[:4_200] + second[4_201:] + first)
    assert rejection(tmp_path, damaged).reason in {Reason.TRUNCATED, Reason.DECODE_FAILED}


@pytest.mark.parametrize("size", [4, 20, 26])
def test_an_ogg_cut_within_its_first_pages_head_is_truncated(tmp_path, size):
    assert rejection(tmp_path, ogg(1, 44_100, "VORBIS")[:size]).reason is Reason.TRUNCATED


def test_an_ogg_without_a_page_is_told_to_begin_like_one(tmp_path):
    found = rejection(tmp_path, b"OggS\xff" + bytes(400))
    assert (found.reason, found.detail) == (
        Reason.DECODE_FAILED,
        "the clip starts like an Ogg file, but no decoder can open it",
    )


def repaged(data: bytes, change: Callable[[int, bytearray], object]) -> bytes:
    """An Ogg file with its pages changed, and their checksums right."""
    found = []
    for number, page in enumerate(ogg_pages(data)):
        one = bytearray(data[page.offset : page.end])
        if change(number, one) is not None:
            found.append(bytes(one))
    return with_checksums(b"".join(found))


def test_an_ogg_whose_last_position_is_too_small_is_heard_whole(tmp_path):
    data = ogg(0.9, 44_100, "VORBIS")
    last = len(list(ogg_pages(data))) - 1

    def change(number: int, page: bytearray) -> bytearray:
        if number == last:
            page[6:14] = struct.pack("<q", 15_000)
        return page

    assert heard_s(tmp_path, repaged(data, change)) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("position", [-1, 0, 1_000])
@pytest.mark.parametrize("writer", ["libsndfile", "ffmpeg"])
def test_an_opus_with_a_wrong_last_position_is_truncated_if_more_than_a_packet_is_lost(
    tmp_path, writer, position
):
    data = (
        ogg(6, 48_000, "OPUS") if writer == "libsndfile" else by_ffmpeg("libopus", "ogg", 6, 48_000)
    )
    last = len(list(ogg_pages(data))) - 1

    def change(number: int, page: bytearray) -> bytearray:
        if number == last:
            page[6:14] = struct.pack("<q", position)
        return page

    if writer == "libsndfile":
        assert rejection(tmp_path, repaged(data, change)).reason is Reason.TRUNCATED
    else:
        assert heard_s(tmp_path, repaged(data, change)) == pytest.approx(6, abs=0.05)


@pytest.mark.parametrize("writer", ["libsndfile", "ffmpeg"])
@pytest.mark.parametrize(("seconds", "late"), [(0.9, 0), (6, 0), (6, 10**7)])
def test_an_opus_whose_last_position_leaves_out_several_packets_is_heard_whole_or_truncated(
    tmp_path, writer, seconds, late
):
    data = (
        ogg(seconds, 48_000, "OPUS")
        if writer == "libsndfile"
        else by_ffmpeg("libopus", "ogg", seconds, 48_000)
    )
    positions = [page.position for page in ogg_pages(data)]

    def change(number: int, page: bytearray) -> bytearray:
        if number > 1:
            position = positions[number] if number < len(positions) - 1 else positions[-2] + 1_500
            page[6:14] = struct.pack("<q", position + late)
        return page

    changed = repaged(data, change)
    found = rejection(tmp_path, changed)
    assert found is None or found.reason is Reason.TRUNCATED
    assert found is not None or heard_s(tmp_path, changed) == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize("seconds", [0.9, 6])
def test_an_opus_whose_last_page_is_there_twice_is_heard(tmp_path, seconds):
    data = ogg(seconds, 48_000, "OPUS")
    last = list(ogg_pages(data))[-1]
    assert heard_s(tmp_path, data + data[last.offset :]) == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_lost_a_page_is_truncated(tmp_path, subtype):
    data = ogg(6, 48_000, subtype)
    lost = len(list(ogg_pages(data))) - 2
    found = rejection(
        tmp_path, repaged(data, lambda number, page: page if number != lost else None)
    )
    assert found.reason is Reason.TRUNCATED


@pytest.mark.parametrize("before", [b"", b"ID3\x04\0\0\0\0\0\x40" + bytes(64)])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_whose_lost_bytes_hide_its_last_pages_head_is_truncated(tmp_path, subtype, before):
    data = ogg(6, 48_000, subtype)
    last = list(ogg_pages(data))[-1]
    torn = before + data[: last.offset - 1_000] + data[last.offset - 500 :]
    assert rejection(tmp_path, torn).reason is Reason.TRUNCATED


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_lost_its_last_pages_head_is_truncated(tmp_path, subtype):
    data = ogg(6, 48_000, subtype)
    last = list(ogg_pages(data))[-1]
    torn = data[: last.offset] + data[last.offset + 40 :]
    assert rejection(tmp_path, torn).reason is Reason.TRUNCATED


def test_an_ogg_without_a_last_page_and_with_a_tag_behind_it_is_heard(tmp_path):
    data = ogg(6, 48_000, "VORBIS")
    last = list(ogg_pages(data))[-1]
    live = data[: last.offset] + bytes(5_000) + b"TAG" + bytes(125)
    assert heard_s(tmp_path, live) > 4


def flac(seconds: float) -> bytes:
    return by_libsndfile(seconds, 16_000, "FLAC", "PCM_16")


def flac_total(data: bytes, samples: int) -> bytes:
    high = data[21] & 0xF0 | samples >> 32
    return data[:21] + bytes([high]) + struct.pack(">I", samples & 0xFFFFFFFF) + data[26:]


FLACS = {
    "joined": lambda: flac(2) + flac(3),
    "joined, of one length": lambda: flac(2.5) * 2,
    "announces a third": lambda: flac_total(flac(5), 26_000),
    "announces nothing": lambda: flac_total(flac(5), 0),
    "announces days": lambda: flac_total(flac(5), 2**36 - 1),
}


@pytest.mark.parametrize("case", FLACS)
def test_a_flac_is_heard_to_its_last_frame(tmp_path, case):
    assert heard_s(tmp_path, FLACS[case]()) == pytest.approx(5, abs=0.001)


def flac_frames(data: bytes) -> list[bytes]:
    """What stands before the first frame, and each frame."""
    with av.open(io.BytesIO(data)) as container:
        frames = [bytes(packet) for packet in container.demux() if packet.size]
    return [data[: len(data) - len(b"".join(frames))], *frames]


def flac_without(data: bytes, first: int, behind: int) -> bytes:
    """The same FLAC without some of its frames."""
    head, *frames = flac_frames(data)
    return head + b"".join(frames[:first] + frames[behind:])


FLACS_WITH_A_LOSS = {
    "joined": lambda: flac_without(flac(5), 5, 6) + flac(1),
    "joined, the last": lambda: flac(1) + flac_without(flac(5), 5, 6),
    "announces nothing": lambda: flac_total(flac_without(flac(5), 5, 6), 0),
    "announces a third": lambda: flac_total(flac_without(flac(5), 5, 6), 26_000),
}


@pytest.mark.parametrize("case", FLACS_WITH_A_LOSS)
def test_a_flac_that_lost_a_frame_on_the_way_is_truncated(tmp_path, case):
    assert rejection(tmp_path, FLACS_WITH_A_LOSS[case]()).reason is Reason.TRUNCATED


LATE_FLACS = {
    "alone": lambda: flac_without(flac(5), 0, 5),
    "joined": lambda: flac_without(flac(4), 0, 5) + flac(1),
    "announces nothing": lambda: flac_total(flac_without(flac(5), 0, 5), 0),
}


@pytest.mark.parametrize("case", LATE_FLACS)
def test_a_flac_that_was_cut_out_of_another_is_whole(tmp_path, case):
    assert heard_s(tmp_path, LATE_FLACS[case]()) == pytest.approx(5 - 5 * 0.256, abs=0.001)


@pytest.mark.parametrize("smallest", [16, 65_535])
def test_a_flac_that_names_another_size_than_its_frames_have_is_whole(tmp_path, smallest):
    data = flac(5)
    changed = data[:8] + struct.pack(">HH", smallest, 65_535) + data[12:]
    assert heard_s(tmp_path, changed + flac(1)) == pytest.approx(6, abs=0.001)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.98])
def test_a_cut_flac_is_truncated(tmp_path, share):
    data = flac(5)
    assert rejection(tmp_path, data[: round(len(data) * share)]).reason is Reason.TRUNCATED


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("webm", "libopus"),
        ("matroska", "libopus"),
        ("matroska", "aac"),
        ("mp4", "aac"),
        ("avi", "mp2"),
    ],
)
@pytest.mark.parametrize(("begin_s", "video_s"), [(0.0, 5.0), (3.0, 6.0)])
def test_sound_shorter_than_its_video_is_whole(tmp_path, container, codec, begin_s, video_s):
    if container == "webm":
        video_s = 0.0  # with no video in a codec that this build writes; late is long enough
    data = by_ffmpeg(codec, container, 2, 48_000, begin_s=begin_s, video_s=video_s)
    assert heard_s(tmp_path, data) == pytest.approx(2, abs=0.07)


@pytest.mark.parametrize("codec", ["libopus", "flac", "pcm_s16le"])
def test_a_late_start_is_no_missing_sound(tmp_path, codec):
    data = by_ffmpeg(codec, "matroska", 2, 48_000, begin_s=3)
    assert heard_s(tmp_path, data) == pytest.approx(2, abs=0.02)


def test_a_live_recording_without_a_duration_is_heard(tmp_path):
    data = by_ffmpeg("libopus", "webm", 2, 48_000, live="1")
    assert heard_s(tmp_path, data) == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_a_video_without_sound_is_told_to_have_no_audio_track(tmp_path, container):
    found = rejection(tmp_path, by_ffmpeg("", container, 0, 0, video_s=1))
    assert (found.stage, found.reason) == (Stage.VALIDATE, Reason.NOT_AUDIO)
    assert "no audio track" in found.detail


NO_SIZES = [0, 2**28, 2**30, 2_000_000_000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 36]


@pytest.mark.parametrize("announced", NO_SIZES)
def test_a_size_that_a_wav_cannot_have_says_nothing(tmp_path, announced):
    assert heard_s(tmp_path, wav(announced)) == pytest.approx(2, abs=0.001)


@pytest.mark.parametrize("announced", [1_000_000, 100_000_000])
def test_a_wav_that_is_whole_by_its_riff_size_is_whole(tmp_path, announced):
    assert heard_s(tmp_path, wav(announced, riff=64_036)) == pytest.approx(2, abs=0.001)


@pytest.mark.parametrize("more", [1, 60, 1_500])
def test_a_wav_that_lacks_a_twentieth_of_a_second_is_heard(tmp_path, more):
    assert heard_s(tmp_path, wav(64_000 + more)) == pytest.approx(2, abs=0.001)


@pytest.mark.parametrize("more", [1_700, 64_000, 10_000_000])
def test_a_wav_that_lacks_more_is_truncated(tmp_path, more):
    assert rejection(tmp_path, wav(64_000 + more)).reason is Reason.TRUNCATED


def test_a_large_chunk_before_the_samples_makes_no_loss_smaller(tmp_path):
    data = wav(64_000)
    chunk = b"junk" + struct.pack("<I", 5_000_000) + bytes(5_000_000)
    cut = (data[:36] + chunk + data[36:])[:-5_000]
    cut = cut[:4] + struct.pack("<I", 5_064_044) + cut[8:]
    assert rejection(tmp_path, cut).reason is Reason.TRUNCATED


def test_what_follows_the_announced_end_of_a_wav_is_no_sound(tmp_path):
    assert heard_s(tmp_path, wav(32_000, riff=64_036)) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "GSM610"])
def test_a_size_of_0_says_nothing_in_any_codec(tmp_path, subtype):
    data = by_libsndfile(2, 8_000, "WAV", subtype)
    at = data.find(b"data") + 4
    assert heard_s(tmp_path, data[:at] + bytes(4) + data[at + 4 :]) == pytest.approx(2, abs=0.02)


def size_of_0(kind: str, subtype: str, mark: bytes, at: int, width: int) -> bytes:
    data = by_libsndfile(2, 16_000, kind, subtype)
    place = data.find(mark) + at
    return data[:place] + bytes(width) + data[place + width :]


SIZES_OF_0 = {
    "au": lambda: size_of_0("AU", "PCM_16", b".snd", 8, 4),
    "au a-law": lambda: size_of_0("AU", "ALAW", b".snd", 8, 4),
    "rf64": lambda: size_of_0("RF64", "PCM_16", b"ds64", 16, 8),
    "rf64, nothing in ds64": lambda: size_of_0("RF64", "PCM_24", b"ds64", 8, 24),
    "w64": lambda: size_of_0("W64", "PCM_16", b"data\xf3\xac", 16, 8),
    "aiff": lambda: size_of_0("AIFF", "PCM_16", b"SSND", 4, 4),
    "caf": lambda: size_of_0("CAF", "PCM_16", b"data", 4, 8),
}


@pytest.mark.parametrize("case", SIZES_OF_0)
def test_a_size_of_0_says_nothing_in_any_container(tmp_path, case):
    assert heard_s(tmp_path, SIZES_OF_0[case]()) == pytest.approx(2, abs=0.01)


FORM = {"count": (2, "<H"), "bytes_s": (8, "<I"), "block": (12, "<H"), "bits": (14, "<H")}
FORM["valid"] = (18, "<H")


def with_form(kind: str, subtype: str, channels: int = 1, **fields: int) -> bytes:
    """Two seconds in a WAV, RF64 or W64 file whose header says something else of its samples."""
    data = bytearray(by_libsndfile(2, 16_000, kind, subtype, channels))
    begin = data.find(b"fmt ") + (24 if kind == "W64" else 8)
    for name, value in fields.items():
        place, code = FORM[name]
        struct.pack_into(code, data, begin + place, value)
    return bytes(data)


CONTRADICTIONS = {
    "wav": lambda: with_form("WAV", "PCM_16", bits=24),
    "wav, 24 bits in 4 bytes": lambda: with_form("WAV", "PCM_32", bits=24),
    "wav, stereo": lambda: with_form("WAV", "PCM_16", 2, bits=24),
    "wav, one channel of two": lambda: with_form("WAV", "PCM_16", 2, count=1),
    "wav of floats": lambda: with_form("WAV", "FLOAT", bits=64),
    "wavex": lambda: with_form("WAVEX", "PCM_16", bits=17),
    "wavex, nothing of the bytes is true": lambda: with_form(
        "WAVEX", "PCM_24", bits=17, valid=16, block=9, bytes_s=1
    ),
    "rf64": lambda: with_form("RF64", "PCM_16", bits=32),
    "w64": lambda: with_form("W64", "PCM_16", bits=24),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_wav_whose_header_contradicts_itself_is_rejected(tmp_path, case):
    found = rejection(tmp_path, CONTRADICTIONS[case]())
    assert (found.stage, found.reason) == (Stage.VALIDATE, Reason.DECODE_FAILED)
    assert "contradicts itself" in found.detail


SLOPPY_HEADERS = {
    "bytes in a second": lambda: with_form("WAV", "PCM_16", bytes_s=1),
    "bytes in a block": lambda: with_form("WAV", "PCM_16", block=1),
    "neither": lambda: with_form("WAV", "PCM_16", block=0, bytes_s=0),
    "no channels in them": lambda: with_form("WAV", "PCM_16", 2, block=2, bytes_s=32_000),
    "bits that fill no byte": lambda: with_form("WAV", "PCM_24", bits=20),
    "more valid bits than there are": lambda: with_form("WAVEX", "PCM_16", valid=24),
    "fewer valid bits": lambda: with_form("WAVEX", "PCM_32", valid=16),
    "one valid bit": lambda: with_form("RF64", "PCM_24", valid=1),
}


def test_a_fragment_of_more_packets_than_the_file_has_bytes_is_rejected(tmp_path):
    data = by_ffmpeg("aac", "mp4", 2, 16_000, movflags="frag_keyframe+empty_moov")
    at = data.rfind(b"trun") + 4
    found = rejection(tmp_path, data[:at] + struct.pack(">II", 0, 1_000_000) + data[at + 8 :])
    assert (found.stage, found.reason) == (Stage.VALIDATE, Reason.DECODE_FAILED)
    assert "contradicts itself: 1,000,000 packets in a fragment" in found.detail


@pytest.mark.parametrize("case", SLOPPY_HEADERS)
def test_a_wav_is_heard_by_the_bits_of_its_samples(tmp_path, case):
    assert heard_s(tmp_path, SLOPPY_HEADERS[case]()) == pytest.approx(2, abs=0.001)


def test_a_piped_wav_with_fewer_valid_bits_is_heard_as_it_is_otherwise(tmp_path):
    data = with_form("WAVEX", "PCM_32", valid=24)
    heard = []
    at = data.find(b"data") + 4
    for one in (data, data[:at] + bytes(4) + data[at + 4 :]):
        look(tmp_path, one)
        heard.append((tmp_path / "heard.wav").read_bytes())
    assert heard[0] == heard[1]


def test_an_au_file_of_a_header_alone_is_too_short(tmp_path):
    assert rejection(tmp_path, SIZES_OF_0["au"]()[:24]).reason is Reason.CLIP_TOO_SHORT


def test_a_wav_that_ends_within_an_adpcm_block_is_heard_to_its_end(tmp_path):
    data = by_libsndfile(2, 16_000, "WAV", "MS_ADPCM")
    at, block = data.find(b"data"), int.from_bytes(data[32:34], "little")
    kept = block * 3 + block // 2
    cut = data[:4] + struct.pack("<I", at + kept) + data[8 : at + 4]
    cut += struct.pack("<I", kept) + data[at + 8 :][:kept]
    whole_blocks = int.from_bytes(data[38:40], "little") * 3 / 16_000
    assert heard_s(tmp_path, cut) > whole_blocks + 0.01


@pytest.mark.parametrize("tag", [b"TAG" + bytes(125), b"APETAGEX" + bytes(100), b"\x99" * 333])
def test_what_stands_behind_an_mp4_is_no_box(tmp_path, tag):
    data = by_ffmpeg("aac", "ipod", 2, 44_100) + tag
    assert heard_s(tmp_path, data) == pytest.approx(2, abs=0.03)


CUT = {
    **{
        kind: lambda kind=kind: by_libsndfile(2, 16_000, kind, "PCM_16")
        for kind in ("NIST", "VOC", "MAT4", "MAT5", "W64", "RF64", "AU", "CAF", "AIFF", "WAV")
    },
    **{
        kind: lambda kind=kind: by_libsndfile(2, 16_000, kind, "PCM_16")
        for kind in ("SVX", "AVR", "SDS", "MPC2K")
    },
    "WVE": lambda: by_libsndfile(2, 8_000, "WVE", "ALAW"),
    "IMA ADPCM": lambda: by_libsndfile(2, 16_000, "WAV", "IMA_ADPCM"),
    "AAC": lambda: by_ffmpeg("aac", "adts", 2, 44_100),
    "LOAS": lambda: by_ffmpeg("aac", "latm", 2, 44_100),
    "AC-3": lambda: by_ffmpeg("ac3", "ac3", 2, 48_000),
    "E-AC-3": lambda: by_ffmpeg("eac3", "eac3", 2, 48_000),
    "AMR": lambda: by_ffmpeg("libopencore_amrnb", "amr", 2, 8_000),
    "MPEG-TS": lambda: by_ffmpeg("mp2", "mpegts", 2, 48_000),
    "MPEG program stream": lambda: by_ffmpeg("mp2", "mpeg", 2, 48_000),
    "Matroska": lambda: by_ffmpeg("libopus", "matroska", 2, 48_000),
    "live WebM": lambda: by_ffmpeg("libopus", "webm", 2, 48_000, live="1"),
    "MP4": lambda: by_ffmpeg("aac", "mp4", 2, 44_100),
    "FLV": lambda: by_ffmpeg("aac", "flv", 2, 44_100),
    "AVI": lambda: by_ffmpeg("mp2", "avi", 2, 44_100),
    "RealMedia": lambda: by_ffmpeg("ac3", "rm", 2, 44_100),
    "WavPack": lambda: by_ffmpeg("wavpack", "wv", 2, 44_100),
    "True Audio": lambda: by_ffmpeg("tta", "tta", 2, 44_100),
    "Ogg": lambda: ogg(2, 44_100, "VORBIS"),
    "FLAC": lambda: flac(2),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_cut_clip_is_truncated_in_every_container_that_shows_it(tmp_path, kind):
    data = CUT[kind]()
    assert rejection(tmp_path, data) is None
    # at odd places, not between two frames
    for share in (0.3, 0.6, 0.95):
        found = rejection(tmp_path, data[: round(len(data) * share) | 5])
        assert found is not None, share
        assert found.reason is Reason.TRUNCATED, (share, found)


@pytest.mark.parametrize(("magic", "types"), [(b"#!AMR\n", (8, 15)), (b"#!AMR-WB\n", (9, 14, 15))])
def test_pauses_in_an_amr_file_are_heard_as_silence(tmp_path, magic, types):
    kind = {b"#!AMR\n": (7, 32), b"#!AMR-WB\n": (0, 18)}[magic]
    sizes = {8: 6, 9: 6, 14: 1, 15: 1}
    dice = np.random.default_rng(0)
    frames = [bytes([kind[0] << 3 | 4]) + dice.bytes(kind[1] - 1) for _ in range(50)]
    pauses = [bytes([one << 3 | 4]) + dice.bytes(sizes[one] - 1) for one in types]
    data = magic + b"".join(frames) + b"".join(pauses * (50 // len(pauses))) + b"".join(frames)
    seconds = 2 + 0.02 * len(pauses) * (50 // len(pauses))
    assert heard_s(tmp_path, data) == pytest.approx(seconds, abs=0.001)


def test_pauses_in_amr_within_a_3gp_file_are_heard_as_silence(tmp_path):
    path = tmp_path / "made.3gp"
    path.write_bytes(by_ffmpeg("libopencore_amrnb", "3gp", 4, 8_000))
    with av.open(str(path)) as source, av.open(str(tmp_path / "paused"), "w", format="3gp") as made:
        stream = made.add_stream_from_template(source.streams.audio[0])
        packets = [packet for packet in source.demux() if packet.size]
        for number, old in enumerate(packets):
            paused = 50 <= number < 150
            new = av.Packet(bytes([8 << 3 | 4, 0, 0, 0, 0, 0]) if paused else bytes(old))
            new.pts, new.dts, new.duration = old.pts, old.dts, old.duration
            new.time_base, new.stream = old.time_base, stream
            made.mux(new)
    heard = heard_s(tmp_path, (tmp_path / "paused").read_bytes())
    assert heard == pytest.approx(len(packets) * 0.02, abs=0.03)


def antiphase(share: float) -> bytes:
    """Two seconds of which the right channel is the left one's opposite, all but a share."""
    left = 0.5 * np.sin(2 * np.pi * 440 * np.arange(88_200) / 44_100)
    stereo = np.stack([left, -left * (1 - share)], axis=1)
    path = io.BytesIO()
    soundfile.write(path, stereo, 44_100, format="WAV", subtype="PCM_16")
    return path.getvalue()


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.003, 0.015])
def test_of_channels_that_cancel_each_other_the_loudest_is_heard(tmp_path, share):
    look(tmp_path, antiphase(share))
    assert np.abs(soundfile.read(str(tmp_path / "heard.wav"))[0]).max() == pytest.approx(
        0.5, abs=0.01
    )


def test_channels_that_do_not_cancel_are_averaged_as_ever(tmp_path):
    look(tmp_path, antiphase(0.2))
    assert np.abs(soundfile.read(str(tmp_path / "heard.wav"))[0]).max() == pytest.approx(
        0.05, abs=0.01
    )


def test_64_bit_integers_are_heard(tmp_path):
    pcm = (np.sin(np.arange(32_000) / 6) * 2**62).astype("<i8").tobytes()
    fmt = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 128_000, 8, 64)
    data = b"RIFF" + struct.pack("<I", 36 + len(pcm)) + b"WAVEfmt " + fmt
    data += b"data" + struct.pack("<I", len(pcm)) + pcm
    assert heard_s(tmp_path, data) == pytest.approx(2, abs=0.001)


def test_what_libsndfile_opens_and_then_fails_on_is_heard_through_ffmpeg(tmp_path):
    data = bytearray(flac(2))
    # the checksum of a frame amid the file: libsndfile gives up, FFmpeg does not look at it
    second = data.find(b"\xff\xf8", 20_000)
    data[second - 1] ^= 1
    assert heard_s(tmp_path, bytes(data)) == pytest.approx(2, abs=0.001)
