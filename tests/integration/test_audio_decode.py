"""What the model hears: channels, rates, containers, and clips that must be refused."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from earwitness.audio.decode import to_pcm16
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Stage
from earwitness.settings import AudioSettings, Silence, TooLong
from tests.chaos.outcome import decode, probe

POLICY = AudioSettings(max_duration_s=30)
RATE = 44_100


def tone(seconds: float = 0.5, rate: int = RATE, hz: float = 440.0, channels: int = 1):
    wave = 0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def write(path: Path, samples, rate: int = RATE, **kind) -> Path:
    soundfile.write(str(path), samples, rate, **kind)
    return path


def write_av(path: Path, codec: str, container: str, rate: int, **options) -> Path:
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        pcm = (tone(0.5, RATE).T * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = RATE
        context = stream.codec_context
        resampler = av.AudioResampler(
            format=context.format, layout="mono", rate=rate, frame_size=context.frame_size or 1024
        )
        for part in resampler.resample(frame) + resampler.resample(None):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return path


def heard(path: Path, policy: AudioSettings = POLICY):
    destination = path.with_suffix(".heard.wav")
    clip = decode(path, destination, policy)
    samples, rate = soundfile.read(str(destination), dtype="float32")
    assert rate == policy.sample_rate_hz
    assert soundfile.info(str(destination)).subtype == "PCM_16"
    return clip, samples


def pitch_hz(samples, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n=2**17))
    return float(np.argmax(spectrum) * rate / 2**17)


def rejection(call, *arguments):
    with pytest.raises(BadRecordError) as caught:
        call(*arguments)
    return caught.value.rejection


@pytest.mark.parametrize(
    "kind",
    [
        {"format": "WAV", "subtype": "PCM_U8"},
        {"format": "WAV", "subtype": "PCM_16"},
        {"format": "WAV", "subtype": "PCM_24"},
        {"format": "WAV", "subtype": "PCM_32"},
        {"format": "WAV", "subtype": "FLOAT"},
        {"format": "WAV", "subtype": "DOUBLE"},
        {"format": "WAV", "subtype": "ULAW"},
        {"format": "AIFF", "subtype": "PCM_16"},
        {"format": "CAF", "subtype": "PCM_16"},
        {"format": "FLAC", "subtype": "PCM_16"},
        {"format": "FLAC", "subtype": "PCM_24"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "MP3"},
    ],
    ids=lambda kind: " ".join(kind.values()),
)
def test_every_container_libsndfile_writes_is_heard_with_its_length_and_pitch(tmp_path, kind):
    path = write(tmp_path / "clip", tone(), **kind)
    assert probe(path, POLICY).sample_rate_hz == RATE
    clip, samples = heard(path)
    assert clip.duration_s == clip.heard_s == pytest.approx(0.5, abs=0.06)
    assert pitch_hz(samples, 16_000) == pytest.approx(440, abs=2)


def test_opus_is_heard(tmp_path):
    path = write(tmp_path / "clip", tone(rate=48_000), 48_000, format="OGG", subtype="OPUS")
    assert heard(path)[0].duration_s == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("codec", "container", "rate"),
    [("aac", "ipod", RATE), ("libopus", "webm", 48_000), ("aac", "adts", RATE)],
)
def test_what_libsndfile_cannot_open_is_heard_through_ffmpeg(tmp_path, codec, container, rate):
    path = write_av(tmp_path / "clip", codec, container, rate)
    assert probe(path, POLICY).codec == {"libopus": "opus"}.get(codec, codec)
    clip, samples = heard(path)
    assert clip.duration_s == pytest.approx(0.5, abs=0.06)
    assert pitch_hz(samples, 16_000) == pytest.approx(440, abs=2)


def test_mono_16_bit_at_the_models_rate_passes_through_sample_for_sample(tmp_path):
    pcm = np.arange(-32768, 32768, 3, dtype=np.int16)
    path = write(tmp_path / "clip", pcm, 16_000, format="WAV")
    destination = tmp_path / "heard.wav"
    decode(path, destination, POLICY)
    assert np.array_equal(soundfile.read(str(destination), dtype="int16")[0], pcm)


def with_a_note(path: Path) -> Path:
    """The same sound with one more chunk at its end: nothing is handed on as it is."""
    data = path.read_bytes() + b"note\x02\0\0\0hi"
    noted = path.with_suffix(".noted")
    noted.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])
    return noted


def test_what_is_what_the_engine_hears_already_is_not_written_again(tmp_path):
    pcm = np.arange(-32768, 32768, 3, dtype=np.int16)
    path = write(tmp_path / "clip", pcm, 16_000, format="WAV")
    told = decode(path, tmp_path / "heard.wav", POLICY)
    assert (tmp_path / "heard.wav").samefile(path)
    assert decode(with_a_note(path), tmp_path / "written.wav", POLICY) == told
    assert (tmp_path / "written.wav").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("samples", "policy"),
    [
        (tone(0.5, 16_000) * 0, POLICY),
        (tone(0.5, 16_000) / 0.4 * 0.0009, POLICY),
        (tone(0.01, 16_000), POLICY),
        (tone(2.0, 16_000), AudioSettings(max_duration_s=1)),
    ],
    ids=["silent", "nearly silent", "too short", "too long"],
)
def test_what_could_be_handed_on_is_refused_like_any_other_clip(tmp_path, samples, policy):
    path = write(tmp_path / "clip", samples, 16_000, format="WAV", subtype="PCM_16")
    found = rejection(decode, path, tmp_path / "out", policy)
    assert found == rejection(decode, with_a_note(path), tmp_path / "out", policy)
    assert not (tmp_path / "out").exists()


def test_what_could_be_handed_on_is_cut_like_any_other_clip(tmp_path):
    path = write(tmp_path / "clip", tone(2.0, 16_000), 16_000, format="WAV", subtype="PCM_16")
    clip, samples = heard(path, AudioSettings(max_duration_s=0.5, too_long=TooLong.CUT))
    assert (clip.duration_s, clip.heard_s, len(samples)) == (2.0, 0.5, 8_000)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-30, 1e-4, 1.0, 1e6]))
def test_two_channels_are_averaged_in_double_precision(tmp_path_factory, seed, scale):
    stereo = np.random.default_rng(seed).standard_normal((4_000, 2)).astype(np.float32) * scale
    path = tmp_path_factory.mktemp("stereo") / "clip"
    write(path, stereo.astype(np.float32), 16_000, format="WAV", subtype="FLOAT")
    pcm = to_pcm16(stereo.astype(np.float32).mean(axis=1, dtype=np.float64).astype(np.float32))
    decode(path, path.with_suffix(".wav"), AudioSettings(silence=Silence.KEEP))
    assert np.array_equal(soundfile.read(path.with_suffix(".wav"), dtype="int16")[0], pcm)


def test_every_16_bit_value_survives_the_way_to_float_and_back():
    pcm = np.arange(-32768, 32768).astype(np.int16)
    assert np.array_equal(to_pcm16((pcm / 32768).astype(np.float32)), pcm)


def test_channels_are_averaged(tmp_path):
    left, right = tone(rate=16_000)[:, 0], np.zeros(8_000, np.float32)
    stereo = np.stack([left, right], axis=1)
    path = write(tmp_path / "clip", stereo, 16_000, format="WAV", subtype="FLOAT")
    assert np.allclose(heard(path)[1], left / 2, atol=1 / 32768)


def test_five_one_at_96_khz_is_heard(tmp_path):
    samples = tone(rate=96_000, channels=6)
    path = write(tmp_path / "clip", samples, 96_000, format="WAV", subtype="PCM_24")
    assert probe(path, POLICY).channels == 6
    assert pitch_hz(heard(path)[1], 16_000) == pytest.approx(440, abs=2)


@settings(max_examples=15, deadline=None)
@given(
    rate=st.sampled_from([8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000]),
    frames=st.integers(2_000, 40_000),
    hz=st.floats(200, 3_000),
)
def test_resampling_keeps_duration_and_pitch(tmp_path_factory, rate, frames, hz):
    path = tmp_path_factory.mktemp("pitch") / "clip"
    write(path, tone(frames / rate, rate, hz), rate, format="WAV", subtype="FLOAT")
    policy = AudioSettings(min_duration_s=0, max_duration_s=30)
    clip, samples = heard(path, policy)
    assert clip.duration_s == pytest.approx(frames / rate, abs=1e-6)
    assert len(samples) == math.ceil(frames * 16_000 / rate)
    assert pitch_hz(samples, 16_000) == pytest.approx(hz, abs=1 + 0.5 / clip.duration_s)


def test_decoding_twice_gives_the_same_bytes(tmp_path):
    path = write(tmp_path / "clip", tone(channels=2), format="FLAC")
    for name in ("a", "b"):
        decode(path, tmp_path / name, POLICY)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_long_clip_is_cut_where_policy_says_so(tmp_path):
    path = write(tmp_path / "clip", tone(2.0), format="FLAC")
    policy = AudioSettings(max_duration_s=0.5, too_long=TooLong.CUT)
    assert probe(path, policy).duration_s == 2.0
    clip, samples = heard(path, policy)
    assert (clip.duration_s, clip.heard_s, len(samples)) == (2.0, 0.5, 8_000)


def test_a_long_clip_is_cut_although_its_header_does_not_tell_its_length(tmp_path):
    path = write_av(tmp_path / "clip", "aac", "adts", RATE)
    policy = AudioSettings(max_duration_s=0.25, too_long=TooLong.CUT)
    assert probe(path, policy).duration_s is None
    clip = heard(path, policy)[0]
    assert clip.duration_s == pytest.approx(0.5, abs=0.06)
    assert clip.heard_s == 0.25


def test_a_long_clip_is_rejected_by_its_header_alone(tmp_path):
    path = write(tmp_path / "clip", tone(2.0), format="WAV")
    found = rejection(probe, path, AudioSettings(max_duration_s=1))
    assert (found.stage, found.reason) == (Stage.VALIDATE, Reason.CLIP_TOO_LONG)
    assert found.detail == "the clip lasts 2 s, and the model hears at most 1 s"


def test_a_long_clip_is_rejected_while_decoding_where_the_header_does_not_tell(tmp_path):
    path = write_av(tmp_path / "clip", "aac", "adts", RATE)
    found = rejection(decode, path, tmp_path / "out", AudioSettings(max_duration_s=0.25))
    assert (found.stage, found.reason) == (Stage.VALIDATE, Reason.CLIP_TOO_LONG)


def test_a_clip_of_a_hundredth_of_a_second_is_too_short(tmp_path):
    path = write(tmp_path / "clip", tone(0.01), format="WAV")
    assert rejection(probe, path, POLICY).reason is Reason.CLIP_TOO_SHORT


def test_a_clip_without_samples_is_too_short_even_without_a_limit(tmp_path):
    path = write(tmp_path / "clip", tone(0), format="WAV")
    policy = AudioSettings(min_duration_s=0)
    assert rejection(probe, path, policy).reason is Reason.CLIP_TOO_SHORT


@pytest.mark.parametrize("scale", [0.0, 0.0009])
def test_silence_is_rejected(tmp_path, scale):
    samples = tone() / 0.4 * scale
    path = write(tmp_path / "clip", samples, format="WAV", subtype="FLOAT")
    assert rejection(decode, path, tmp_path / "out", POLICY).reason is Reason.SILENT
    assert not (tmp_path / "out").exists()


def test_silence_is_kept_where_policy_says_so(tmp_path):
    path = write(tmp_path / "clip", tone() * 0, format="WAV")
    assert heard(path, AudioSettings(silence=Silence.KEEP))[0].heard_s == 0.5


def test_a_quiet_clip_is_not_silent(tmp_path):
    path = write(tmp_path / "clip", tone() * 0.01, format="WAV")
    assert heard(path)[0].heard_s == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_numbers_are_rejected(tmp_path, value):
    samples = tone()
    samples[1000] = value
    path = write(tmp_path / "clip", samples, format="WAV", subtype="FLOAT")
    assert rejection(decode, path, tmp_path / "out", POLICY).reason is Reason.NOT_FINITE


def test_levels_beyond_full_scale_clip(tmp_path):
    path = write(tmp_path / "clip", tone(rate=16_000) * 5, 16_000, format="WAV", subtype="FLOAT")
    assert np.max(np.abs(heard(path)[1])) == 1.0


def test_a_failed_decode_leaves_no_file(tmp_path):
    path = write(tmp_path / "clip", tone() * 0, format="WAV")
    rejection(decode, path, tmp_path / "out", POLICY)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC", "OGG", "MP3"])
def test_a_clip_cut_in_the_middle_is_truncated(tmp_path, kind):
    path = write(tmp_path / "clip", tone(3.0), format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def look_and_decode():
        probe(path, POLICY)
        decode(path, tmp_path / "out", POLICY)

    assert rejection(look_and_decode).reason is Reason.TRUNCATED


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_an_m4a_cut_in_the_middle_is_truncated(tmp_path, options):
    path = write_av(tmp_path / "clip", "aac", "ipod", RATE, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert rejection(probe, path, POLICY).reason is Reason.TRUNCATED


def test_more_than_eight_channels_are_not_supported(tmp_path):
    path = write(tmp_path / "clip", tone(channels=9), format="WAV")
    assert rejection(probe, path, POLICY).reason is Reason.UNSUPPORTED_AUDIO


@pytest.mark.parametrize("rate", [2_000, 400_000])
def test_odd_sample_rates_are_not_supported(tmp_path, rate):
    path = write(tmp_path / "clip", tone(rate=rate), rate, format="WAV")
    assert rejection(probe, path, POLICY).reason is Reason.UNSUPPORTED_AUDIO
