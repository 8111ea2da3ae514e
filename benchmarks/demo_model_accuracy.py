"""How often the demo model is right, through the whole of earwitness: a table.

`python -m benchmarks.demo_model_accuracy [--seed 1] [--clips 500] [--pairs 100]`

Fresh clips of known sounds are drawn and written six ways; a manifest asks about each; the command
line builds the dataset with real vLLM; the table counts the answers that are exactly right, by
type of question, and for each format those equal to the 16 kHz wav's. Since it is known what every
clip says, a wrong sample rate, a swapped clip, a lost channel or a cut stream shows here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import soundfile
import soxr

import earwitness
from demo_model.questions import SHARES, WORDINGS, ask, right_answers
from demo_model.sounds import RATE_HZ, Clip, draw_clip

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.random import Generator
    from numpy.typing import NDArray

    from demo_model.questions import Question

MODEL = Path("demo_model/weights")
REFERENCE = "16 kHz wav"
TWO_CLIPS = ("more beeps", "higher", "louder")
LONG_SHARE = 0.05
DECOY = 0.15


def main() -> int:
    """Draw, build, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of the clips and questions")
    parser.add_argument("--clips", type=int, default=500, help="asked about alone")
    parser.add_argument("--pairs", type=int, default=120, help="pairs that are compared")
    parser.add_argument("--questions", type=int, default=3, help="about each clip")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", type=Path, help="keep clips and dataset here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        manifest = write_manifest(folder, arguments)
        started = time.monotonic()
        build(manifest, folder / "out", arguments)
        print(f"the build took {time.monotonic() - started:.0f} s\n")
        answers = earwitness.load(str(folder / "out"))
        rejected = earwitness.load_rejected(str(folder / "out"))
    print_tables(answers)
    print_wrong(answers)
    for _, row in rejected.iterrows():
        print(f"rejected: {row['audio']} {row['earwitness.reason']} {row['earwitness.detail']}")
    return 0


def write_manifest(folder: Path, arguments: argparse.Namespace) -> Path:
    """Draw the clips, write each in every format, and ask the same of each."""
    rng = np.random.default_rng([arguments.seed, 20_260_101])
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.jsonl"
    with manifest.open("w", encoding="utf-8") as lines:
        for number, (clips, questions) in enumerate(draw(rng, arguments)):
            paths: dict[str, list[str]] = {name: [] for name in WRITERS}
            for place, clip in enumerate(clips):
                for name, path in write_all(rng, folder / "clips" / f"{number:05}-{place}", clip):
                    paths[name].append(str(path.relative_to(folder)))
            for name, audio in paths.items():
                for asked, question in enumerate(questions):
                    record = {
                        "audio": audio,
                        "conversation": conversation(question, first=(number + asked) % 8 == 0),
                        "question": f"{number}-{asked}",
                        "type": question.type,
                        "right": question.answer,
                        "format": name,
                        "sound": " / ".join(right_answers(clip)["description"] for clip in clips),
                    }
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    return manifest


def conversation(question: Question, *, first: bool) -> list[dict[str, str]]:
    """One turn; in some, the question's text stands before its clip."""
    before = first and question.type not in TWO_CLIPS
    return [{"from": "human", "value": f"{question.text}\n<audio>" if before else question.text}]


def draw(
    rng: Generator, arguments: argparse.Namespace
) -> Iterator[tuple[tuple[Clip, ...], list[Question]]]:
    """Clips alone and pairs, with what is asked of each."""
    for _ in range(arguments.clips):
        clip = draw_clip(rng, long_clip=rng.random() < LONG_SHARE)
        types = list(right_answers(clip))
        # the count of beeps where there are any, then others, each type as often as it applies
        chosen = ["count"] if clip.beeps else []
        others = [name for name in types if name not in chosen]
        wanted = min(arguments.questions, len(types)) - len(chosen)
        chosen += map(str, rng.choice(others, wanted, replace=False))
        questions = [ask(rng, (clip,), type_=name) for name in chosen]
        if rng.random() < 0.1:
            questions[-1] = ask(rng, (clip,), type_="no audio needed")
        yield (clip,), questions
    for number in range(arguments.pairs):
        yield draw_pair(rng, "more beeps" if number % 2 else None)


def draw_pair(rng: Generator, type_: str | None) -> tuple[tuple[Clip, ...], list[Question]]:
    """Two clips that can be compared, and all comparisons that hold of them."""
    while True:
        kinds = ("beeps", "beeps") if type_ else rng.choice(("beeps", "tone"), size=2)
        pair = tuple(draw_clip(rng, kind=str(kind)) for kind in kinds)
        right = right_answers(*pair)
        if right and (type_ is None or type_ in right):
            return pair, [ask(rng, pair, type_=name) for name in right]


def write_all(rng: Generator, stem: Path, clip: Clip) -> Iterator[tuple[str, Path]]:
    """Write a clip in every format; gives the names of formats and the files."""
    for name, writer in WRITERS.items():
        yield name, writer(rng, stem, clip.samples.astype(np.float64))


def _wav(_rng: Generator, stem: Path, samples: NDArray[np.float64]) -> Path:
    path = stem.with_suffix(".wav")
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")
    return path


def _stereo_flac(rng: Generator, stem: Path, samples: NDArray[np.float64]) -> Path:
    """A sound on the right that the left takes back: only the mean of both is the clip."""
    path = stem.with_suffix(".flac")
    wide = np.clip(soxr.resample(samples, RATE_HZ, 44_100, quality="VHQ"), -0.84, 0.84)
    time_s = np.arange(len(wide)) / 44_100
    on = np.sin(2 * np.pi * rng.uniform(1.5, 4) * time_s) > 0
    decoy = DECOY * on * np.sin(2 * np.pi * rng.uniform(300, 3000) * time_s)
    soundfile.write(path, np.column_stack([wide - decoy, wide + decoy]), 44_100, subtype="PCM_16")
    return path


def _opus(_rng: Generator, stem: Path, samples: NDArray[np.float64]) -> Path:
    path = stem.with_suffix(".opus")
    wide = soxr.resample(samples, RATE_HZ, 48_000, quality="VHQ")
    soundfile.write(path, wide, 48_000, format="OGG", subtype="OPUS")
    return path


def _mp3(_rng: Generator, stem: Path, samples: NDArray[np.float64]) -> Path:
    path = stem.with_suffix(".mp3")
    soundfile.write(path, soxr.resample(samples, RATE_HZ, 22_050, quality="VHQ"), 22_050)
    return path


def _m4a(_rng: Generator, stem: Path, samples: NDArray[np.float64]) -> Path:
    """AAC in an MP4 container, which libsndfile can neither write nor read."""
    path, rate_hz = stem.with_suffix(".m4a"), 44_100
    wide = soxr.resample(samples, RATE_HZ, rate_hz, quality="VHQ").astype(np.float32)
    with av.open(str(path), "w", format="ipod") as container:
        stream: Any = container.add_stream("aac", rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(wide[None, :], format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler("fltp", "mono", rate_hz, frame_size=stream.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def _telephone_wav(_rng: Generator, stem: Path, samples: NDArray[np.float64]) -> Path:
    path = stem.with_name(f"{stem.name}-8k.wav")
    soundfile.write(path, soxr.resample(samples, RATE_HZ, 8000), 8000, subtype="PCM_16")
    return path


WRITERS = {
    REFERENCE: _wav,
    "44.1 kHz stereo flac": _stereo_flac,
    "48 kHz opus": _opus,
    "22.05 kHz mp3": _mp3,
    "44.1 kHz m4a": _m4a,
    "8 kHz wav": _telephone_wav,
}


def build(manifest: Path, output: Path, arguments: argparse.Namespace) -> None:
    """The command line, as a user runs it; silent clips are asked about too."""
    command = [sys.executable, "-m", "cli.main", "build", str(manifest), str(output)]
    command += ["--model", str(arguments.model.resolve()), "--dtype", arguments.dtype]
    command += ["--max-tokens", "24", "--temperature", "0", "--silence", "keep", "--no-print"]
    command += ["--max-model-len", "2048", "--max-clips", "2", "--", "--enforce-eager"]
    subprocess.run(command, check=True)


def print_tables(answers: pd.DataFrame) -> None:
    """Exact answers by type and format, then answers equal to the reference by format."""
    answers["exact"] = answers["answer"] == answers["right"]
    reference = answers[answers["format"] == REFERENCE].set_index("question")["answer"]
    answers["equal"] = answers["answer"] == answers["question"].map(reference)
    single = ~answers["type"].isin(TWO_CLIPS)
    groups = {name: answers["type"] == name for name in SHARES}
    groups |= {"ALL single-clip": single, "ALL two-clip": ~single}
    formats = list(WRITERS)
    print(f"{'exactly right, %':<22}{'n':>6}" + "".join(f"{name:>22}" for name in formats))
    for name, chosen in groups.items():
        rows = answers[chosen]
        cells = [rows[rows["format"] == form]["exact"] for form in formats]
        shares = (f"{100 * cell.mean():>22.1f}" if len(cell) else f"{'-':>22}" for cell in cells)
        print(f"{name:<22}{len(cells[0]):>6}" + "".join(shares))
    equal = (answers[answers["format"] == form]["equal"].mean() for form in formats)
    print(f"{'equal to ' + REFERENCE:<28}" + "".join(f"{100 * share:>22.2f}" for share in equal))


def print_wrong(answers: pd.DataFrame) -> None:
    """What the model got wrong, for people to listen to."""
    print()
    for _, row in answers[~answers["exact"]].iterrows():
        asked = row["conversation"][0]["value"].replace("\n", " ")
        print(f"{row['format']:<22}{row['sound']:<60} {asked} -> {row['answer']!r}")
        print(f"{'':<22}right: {row['right']!r}  {' '.join(row['audio'])}")


if __name__ == "__main__":
    assert set(WORDINGS) | {"no audio needed"} == set(SHARES)
    sys.exit(main())
