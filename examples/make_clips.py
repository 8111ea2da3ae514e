"""Makes the sample clips in `clips/`: tones, beeps, noise and speech, in many containers and rates.

`python examples/make_clips.py [DIR]`. The clips are committed, so nobody needs to run this; it is
here to show where they come from and to change them. Speech is by espeak-ng, which must be
installed. The sounds are the same each time; the bytes of mp3, ogg, opus and m4a are not, they
depend on the encoders' versions.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

Samples = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

NOT_AUDIO = """\
<!DOCTYPE html>
<html>
<head><title>404 Not Found</title></head>
<body><h1>Not Found</h1><p>What a download script saves when nobody looks at the status.</p></body>
</html>
"""


def tone(frequency_hz: float, duration_s: float, rate_hz: int, level: float = 0.4) -> Samples:
    """A sine with soft ends.

    Args:
        frequency_hz: Its pitch.
        duration_s: Its length.
        rate_hz: Samples a second.
        level: Its peak, of full scale.

    Returns:
        Mono samples.
    """
    return sweep(frequency_hz, frequency_hz, duration_s, rate_hz, level)


def sweep(
    start_hz: float, end_hz: float, duration_s: float, rate_hz: int, level: float = 0.4
) -> Samples:
    """A sine whose pitch moves evenly from one frequency to another, with soft ends."""
    count = round(duration_s * rate_hz)
    frequency_hz = np.linspace(start_hz, end_hz, count)
    phase = 2 * np.pi * np.cumsum(frequency_hz) / rate_hz
    fade = np.minimum(1.0, np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.01 * rate_hz))
    return np.asarray(level * np.sin(phase) * fade)


def silence(duration_s: float, rate_hz: int) -> Samples:
    """Nothing, for a while."""
    return np.zeros(round(duration_s * rate_hz))


def noise(duration_s: float, rate_hz: int, level: float = 0.1) -> Samples:
    """White noise, the same each time."""
    samples = np.random.default_rng(7).standard_normal(round(duration_s * rate_hz))
    return np.clip(level * samples, -1.0, 1.0)


def speech(text: str, voice: str, rate_hz: int, words_per_minute: int = 150) -> Samples:
    """Text spoken by espeak-ng.

    Args:
        text: What is said.
        voice: espeak-ng's name of the voice ("en-us", "cmn").
        rate_hz: Rate to resample to.
        words_per_minute: How fast.

    Returns:
        Mono samples.
    """
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        pace = str(words_per_minute)
        subprocess.run(["espeak-ng", "-v", voice, "-s", pace, "-w", file.name, text], check=True)
        samples, spoken_rate_hz = soundfile.read(file.name, dtype="float64")
    return np.asarray(soxr.resample(samples, spoken_rate_hz, rate_hz, quality="VHQ"))


def write_m4a(path: Path, samples: Samples, rate_hz: int) -> None:
    """Write mono AAC in an MP4 container, which libsndfile can neither write nor read."""
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            samples.astype(np.float32)[None, :], format="fltp", layout="mono"
        )
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler("fltp", "mono", rate_hz, frame_size=stream.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def beeps(
    count: int, frequency_hz: float, beep_s: float, rate_hz: int, level: float = 0.4
) -> Samples:
    """So many equal beeps, a fifth of a second apart, with a moment of quiet around them."""
    beep = np.concatenate([tone(frequency_hz, beep_s, rate_hz, level), silence(0.2, rate_hz)])
    return np.concatenate([silence(0.15, rate_hz), np.tile(beep, count)])


def clicks(count: int, rate_hz: int) -> Samples:
    """Short bursts, six a second, the same each time."""
    random = np.random.default_rng(11)
    sound = silence(count / 6, rate_hz)
    for number in range(count):
        burst = random.standard_normal(rate_hz // 400)
        burst *= np.exp(-np.linspace(0, 3, len(burst)))
        start = round((number + 0.2) / 6 * rate_hz)
        sound[start : start + len(burst)] = 0.7 * burst / np.max(np.abs(burst))
    return sound


def make_sounds(folder: Path) -> None:
    """Tones, beeps, noise and clicks, of the kinds the demo model knows."""
    soundfile.write(folder / "tone-low.wav", tone(220, 1.5, 16_000), 16_000)
    soundfile.write(folder / "tone-high.mp3", tone(2400, 1.5, 22_050), 22_050)
    soundfile.write(folder / "beeps-three.wav", beeps(3, 800, 0.12, 16_000), 16_000)
    soundfile.write(folder / "beeps-five.ogg", beeps(5, 2500, 0.1, 44_100), 44_100)
    two = beeps(2, 300, 0.38, 48_000)
    soundfile.write(folder / "beeps-two-long.opus", two, 48_000, format="OGG", subtype="OPUS")
    quiet = beeps(4, 850, 0.12, 48_000, level=0.04)
    soundfile.write(folder / "beeps-four-quiet.wav", quiet, 48_000, subtype="PCM_24")
    rising = sweep(300, 1800, 1.5, 44_100)
    soundfile.write(folder / "rising.flac", np.column_stack([rising, 0.8 * rising]), 44_100)
    write_m4a(folder / "falling.m4a", sweep(2000, 400, 1.5, 44_100), 44_100)
    hiss = noise(1.5, 16_000, level=0.15)
    soundfile.write(folder / "noise.flac", np.column_stack([hiss, hiss]), 16_000)
    soundfile.write(folder / "clicks.wav", clicks(8, 16_000), 16_000)


def make_speech(folder: Path) -> None:
    """Short sentences in English and Chinese."""
    rain = speech("The rain has stopped, and the sun is coming out.", "en-us", 16_000)
    soundfile.write(folder / "speech-rain.wav", rain, 16_000)
    door = speech("Please close the door behind you.", "en-gb", 44_100)
    soundfile.write(folder / "speech-door.mp3", door, 44_100)
    tea = speech("请给我一杯茶。", "cmn", 44_100)
    write_m4a(folder / "speech-tea-zh.m4a", tea, 44_100)


def main() -> None:
    """Make every clip and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent / "clips"
    parser.add_argument("folder", nargs="?", type=Path, default=default, metavar="DIR")
    folder = parser.parse_args().folder
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed (Debian: apt-get install espeak-ng)")
    folder.mkdir(parents=True, exist_ok=True)
    make_sounds(folder)
    make_speech(folder)
    (folder / "not-audio.wav").write_text(NOT_AUDIO)
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size:>9,} bytes  {path}")


if __name__ == "__main__":
    main()
