"""Counts right answers on fresh clips, in torch alone: `python -m demo_model.evaluate FOLDER`.

An answer counts when greedy decoding would give exactly the right text: every token, the end
included, is the most probable one after the right tokens before it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from demo_model.architecture import read_checkpoint, train_tokenizer
from demo_model.batches import NONE, Batch, SampleMaker, collate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import Qwen2AudioForConditionalGeneration

_BATCH = 24


def answers_right(
    model: Qwen2AudioForConditionalGeneration, batches: Iterable[Batch]
) -> dict[str, list[bool]]:
    """Which answers are right.

    Args:
        model: The model.
        batches: What is asked.

    Returns:
        For each type of question, an entry a question.
    """
    from demo_model.train import forward

    right: dict[str, list[bool]] = defaultdict(list)
    with torch.no_grad():
        for batch in batches:
            logits, _, _ = forward(model, batch)
            answered = batch.targets != NONE
            wrong = logits.argmax(-1) != batch.targets[answered]
            bad = set(batch.question_of[answered][wrong].tolist())
            asked = [question for sample in batch.samples for question in sample.asked]
            for number, question in enumerate(asked):
                right[question.type].append(number not in bad)
    return dict(right)


def report(right: dict[str, list[bool]]) -> str:
    """A line with each type's share of right answers."""
    every = [entry for entries in right.values() for entry in entries]
    parts = [f"{name} {100 * np.mean(entries):.1f}" for name, entries in sorted(right.items())]
    return f"right: all {100 * np.mean(every):.2f} % of {len(every)} | " + " | ".join(parts)


def main() -> None:
    """Read the command line, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=480)
    arguments = parser.parse_args()
    model = read_checkpoint(arguments.folder)
    for name, rough, long_clips in (("clean", 0, False), ("rough", 1, False), ("long", 0, True)):
        maker = SampleMaker(train_tokenizer(), rough=rough)
        rng = np.random.default_rng(arguments.seed)
        count = arguments.samples // 8 if long_clips else arguments.samples
        samples = [maker.draw(rng, long_clips=long_clips) for _ in range(count)]
        samples.sort(key=lambda sample: len(sample.ids))
        batches = (
            collate(samples[first : first + _BATCH], maker.audio_token)
            for first in range(0, len(samples), _BATCH)
        )
        print(name, report(answers_right(model, batches)))


if __name__ == "__main__":
    main()
