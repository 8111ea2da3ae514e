"""Every file of a folder through earwitness and through FFmpeg, packet by packet.

    python -m tests.chaos.compare_decoders DIR
    python -m tests.chaos.compare_decoders      the odd files of other projects, fetched by pip

Prints each file whose lengths differ by more than 20 ms, and each that one of the two rejects,
with a reason that follows from the file's bytes. Ends with 1 where there is none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from earwitness.audio.pool import DecodePool
from earwitness.errors import BadRecordError
from earwitness.records import Reason
from earwitness.settings import AudioSettings, Silence
from tests.chaos.explained import why
from tests.chaos.outcome import Outcome, try_clip
from tests.chaos.second_decoder import Heard, listen

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = AudioSettings(max_duration_s=24 * 3600, min_duration_s=0, silence=Silence.KEEP)
TOLERANCE_S = 0.02
FETCHED = Path("out/foreign-audio")
SDISTS = (
    "mutagen==1.48.1",
    "beets==2.14.1",
    "mediafile==0.13.0",  # the last to bring audio
    "tinytag==2.3.2",
    "soundfile==0.14.0",
    "pytaglib==3.2.0",
    "audiofile==1.6.1",
)


class Compared(NamedTuple):
    """One file and what both make of it."""

    path: Path
    ours: Outcome
    heard: Heard

    @property
    def same(self) -> bool:
        """Whether both hear as much, the padding of a last frame apart; or nothing."""
        if self.ours.word == Reason.CLIP_TOO_SHORT:
            return self.heard.seconds <= TOLERANCE_S + self.heard.padding_s
        if self.ours.word != "decoded":
            return self.heard.seconds == 0
        beyond_s = self.ours.duration_s - self.heard.seconds
        return -TOLERANCE_S - self.heard.padding_s <= beyond_s <= TOLERANCE_S

    @property
    def is_audio(self) -> bool:
        """Whether one of them hears something, or calls it audio."""
        return bool(self.heard.seconds) or self.ours.word != Reason.NOT_AUDIO


def compare(folder: Path) -> Iterator[Compared]:
    """Every file below a folder, through both."""
    with DecodePool() as pool, tempfile.TemporaryDirectory(prefix="compare-") as scratch:
        for number, path in enumerate(sorted(folder.rglob("*"))):
            if not path.is_file():
                continue
            # ours writes beside what it reads
            copy = Path(scratch) / f"clip-{number}"
            copy.write_bytes(path.read_bytes())
            ours = try_clip(pool, copy, POLICY)
            try:
                heard: Heard = pool.submit(listen, copy).result()
            except BadRecordError:
                heard = Heard("crashed")
            copy.unlink()
            yield Compared(path, ours, heard)


def fetch(folder: Path) -> None:
    """Bring the source distributions that hold odd audio files, and unpack them.

    Args:
        folder: Where they go; what lies there already is not fetched again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for wanted in SDISTS:
        name = wanted.replace("==", "-")
        if folder.joinpath(name).is_dir():
            continue
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command = [*pip, "--no-binary", ":all:", "--dest", str(folder), wanted]
        subprocess.run(command, check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")


def main() -> int:
    """Read the command line, compare, print.

    Returns:
        The exit status: 1 where a difference has no reason.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="default: fetched source packages")
    folder = parser.parse_args().folder
    if folder is None:
        folder = FETCHED
        fetch(folder)
    table = Table("file", "earwitness", "FFmpeg", "why")
    counts: Counter[str] = Counter()
    unexplained = 0
    for one in compare(folder):
        counts["audio" if one.is_audio else "no audio to either"] += 1
        if one.same:
            counts["the same"] += one.is_audio
            continue
        reason = why(one.path.read_bytes(), one.ours, one.heard)
        unexplained += not reason
        table.add_row(
            str(one.path.relative_to(folder)),
            f"{one.ours.duration_s:.3f} s" if one.ours.word == "decoded" else one.ours.detail,
            f"{one.heard.seconds:.3f} s, {one.heard.container} {one.heard.codec}",
            reason or "[red]NOT EXPLAINED[/red]",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    told = ", ".join(f"{what}: {count:,}" for what, count in counts.items())
    print(f"{folder}: {told}; different: {len(table.rows)}, {unexplained} not explained")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
