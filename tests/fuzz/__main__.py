"""Coverage-guided fuzzing: `python -m tests.fuzz manifest|headers [--seconds N] [--corpus DIR]`.

Atheris (libFuzzer) instruments our Python modules as they are imported; the decoders' native
libraries are not instrumented, so that the fuzzer follows what our own code makes of them.
Ends with libFuzzer's statistics; a finding ends it at once, with the input in the corpus folder.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import random
import sys
import tempfile
from pathlib import Path

import atheris

TARGETS = {"manifest": "tests.fuzz.manifest", "headers": "tests.fuzz.headers"}
_RSS_LIMIT_MB = 2048
_INPUT_TIMEOUT_S = 60


def main() -> None:
    """Fuzz one target for so long; exits with libFuzzer's own status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="kept and grown; default: a temporary folder")
    chosen = parser.parse_args()
    with atheris.instrument_imports(include=["earwitness"]):
        target = importlib.import_module(TARGETS[chosen.target])
        # all of them now: what a function imports later would not be instrumented
        for name in ("earwitness.manifest", "earwitness.audio"):
            package = importlib.import_module(name)
            for module in pkgutil.iter_modules(package.__path__, f"{name}."):
                importlib.import_module(module.name)
    corpus = chosen.corpus or Path(tempfile.mkdtemp(prefix="earwitness-corpus-"))
    dictionary = _prepare(chosen.target, corpus)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-dict={dictionary}",
            f"-max_total_time={chosen.seconds}",
            f"-seed={chosen.seed}",
            f"-artifact_prefix={corpus.parent}/finding-{chosen.target}-",
            f"-rss_limit_mb={_RSS_LIMIT_MB}",
            f"-timeout={_INPUT_TIMEOUT_S}",
            f"-max_len={8_192 if chosen.target == 'manifest' else 65_536}",
            "-print_final_stats=1",
        ],
        target.check,
        custom_mutator=_mutate_manifest if chosen.target == "manifest" else _mutate_clip,
    )
    atheris.Fuzz()


def _mutate_manifest(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time JSON as JSON, else libFuzzer's own way with bytes."""
    dice = random.Random(seed)  # noqa: S311 - the same mutation for the same seed
    if dice.random() < 0.5:
        changed = importlib.import_module("tests.fuzz.mutate").mutate_json(data, dice)
        if len(changed) <= max_size:
            return changed
    return atheris.Mutate(data, max_size)


def _mutate_clip(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time a whole clip, damaged anew, else libFuzzer's own way with what it has.

    What it keeps shrinks to the little that our own code tells apart.
    """
    dice = random.Random(seed)  # noqa: S311 - the same mutation for the same seed
    if dice.random() < 0.5:
        clips = importlib.import_module("tests.chaos.containers").whole_clips(0.06)
        damage = importlib.import_module("tests.chaos.damage")
        return damage.damaged(clips, dice.choice(list(clips)), dice)[1][:max_size]
    return atheris.Mutate(data, max_size)


def _prepare(target: str, corpus: Path) -> Path:
    """Fill the corpus with its seeds and write the dictionary of words worth inserting."""
    seeds = importlib.import_module("tests.fuzz.seeds")
    made, tokens = {
        "manifest": (seeds.manifest_seeds, seeds.TOKENS),
        "headers": (seeds.header_seeds, seeds.HEADER_TOKENS),
    }[target]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(made()):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    dictionary = corpus.parent / f"{target}.dict"
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in token) + '"' for token in tokens]
    dictionary.write_text("\n".join(lines) + "\n")
    return dictionary


main()
