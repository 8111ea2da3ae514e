"""Trains the demo model from nothing: `python -m demo_model.train OUT`.

Some 25 minutes on two free cores, under 40 on busy ones. Interrupted, it goes on from its last
checkpoint. The same seed, machine and library versions give the same weights.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from demo_model.architecture import (
    WIDTH,
    model_config,
    new_model,
    train_tokenizer,
    write_checkpoint,
)
from demo_model.batches import NONE, Batch, SampleMaker, collate, heard_facts
from demo_model.evaluate import answers_right, report
from demo_model.forward import hear, think, token_count
from demo_model.sounds import KINDS, MOST_BEEPS, PITCHES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import Qwen2AudioForConditionalGeneration

CYCLES = ((2400, 2e-3, 1150), (3300, 1e-3, 800), (4100, 8e-4, 750))
"""Of the learning rate: last step, rate, and in how many last steps it falls evenly to nothing."""
WEIGHT_DECAY = 0.02
WARM_UP_STEPS = 150
GRADIENT_NORM = 1.0
BATCH = 24
LONG_BATCH = 5
LONG_EVERY = (16, 8, 3)
"""One step in so many, in each cycle, is on clips of 10 to 30 s."""
POOL = 8
"""So many batches are drawn at once and sorted by length: less padding."""
THREADS = 1
"""Sums do not depend on how many cores there are, and a busy machine does not stall the run: with
two threads each waits for the other at every step. A second process draws the sounds."""
HELP_WEIGHT = 0.3
HELP_STEPS = 1200
"""The auxiliary heads' weight falls to nothing by this step."""
CHECK_EVERY = 500


class Helpers(nn.Module):
    """Heads that exist in training only: they tell the hearing part early what to listen for."""

    def __init__(self) -> None:
        super().__init__()
        self.beeping = nn.Linear(WIDTH, 2)
        self.kind = nn.Linear(WIDTH, len(KINDS))
        self.pitch = nn.Linear(WIDTH, len(PITCHES))
        self.loud = nn.Linear(WIDTH, 2)
        self.begun = nn.Linear(WIDTH, MOST_BEEPS + 1)

    def loss(self, heard: torch.Tensor, counted: torch.Tensor, batch: Batch) -> torch.Tensor:
        """How far the hearing part is from what is true.

        Args:
            heard: Audio tokens by width: what the projector gives.
            counted: The same tokens after the language model's second layer.
            batch: Where the truth is.

        Returns:
            The mean loss of the five heads.
        """
        facts: list[list[int]] = [[], [], [], [], []]
        for sample in batch.samples:
            for clip, sound in zip(sample.clips, sample.heard, strict=True):
                tokens = token_count(len(sound))
                beeping, kinds, pitches, begun = heard_facts(clip, tokens)
                loud = [NONE if clip.loudness is None else int(clip.loudness == "loud")] * tokens
                for kept, new in zip(facts, (beeping, kinds, pitches, loud, begun), strict=True):
                    kept.extend(new)
        heads = (self.beeping, self.kind, self.pitch, self.loud)
        losses = [
            functional.cross_entropy(head(heard), torch.tensor(truth), ignore_index=NONE)
            for head, truth in zip(heads, facts[:4], strict=True)
        ]
        losses.append(functional.cross_entropy(self.begun(counted), torch.tensor(facts[4])))
        return torch.stack(losses).nan_to_num(0.0).mean()


@dataclass
class Run:
    """A training run's state.

    Attributes:
        model: What is trained.
        helpers: Auxiliary heads.
        optimizer: AdamW.
        steps: How many in all.
        seed: Of everything.
        step: How many are done.
        seconds: Time spent so far.
    """

    model: Qwen2AudioForConditionalGeneration
    helpers: Helpers
    optimizer: torch.optim.Optimizer
    steps: int
    seed: int
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "helpers": self.helpers.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seed": self.seed,
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            SystemExit: It is of another seed.
        """
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.seed:
            raise SystemExit(f"{path} is of another seed: remove it, or give its seed")
        self.model.load_state_dict(state["model"])
        self.helpers.load_state_dict(state["helpers"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def new_run(steps: int, seed: int) -> Run:
    """A run at its first step.

    Args:
        steps: How long it will be.
        seed: Of the weights and of all practice.

    Returns:
        The run.
    """
    torch.manual_seed(seed)
    model = new_model(model_config(train_tokenizer()))
    helpers = Helpers()
    tensors = [p for p in (*model.parameters(), *helpers.parameters()) if p.requires_grad]
    groups = [
        {"params": [p for p in tensors if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in tensors if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    return Run(model, helpers, optimizer, steps, seed)


def practice(maker: SampleMaker, seed: int, first_step: int) -> Iterator[Batch]:
    """Batches without end; the same from the same step on, whenever one begins.

    Args:
        maker: Draws the samples.
        seed: Of the practice.
        first_step: Where to begin.

    Yields:
        A batch for each step.
    """
    pool_number = first_step // POOL
    skipped = first_step % POOL
    while True:
        rng = np.random.default_rng([seed, pool_number])
        samples = [maker.draw(rng) for _ in range(POOL * BATCH)]
        samples.sort(key=lambda sample: len(sample.ids))
        order = rng.permutation(POOL)
        for place in range(skipped, POOL):
            step = pool_number * POOL + place
            chosen = samples[order[place] * BATCH : (order[place] + 1) * BATCH]
            every = LONG_EVERY[sum(step >= last for last, _, _ in CYCLES[:-1])]
            if step % every == every - 1:
                chosen = [maker.draw(rng, long_clips=True) for _ in range(LONG_BATCH)]
            yield collate(chosen, maker.audio_token)
        pool_number, skipped = pool_number + 1, 0


class Practice(IterableDataset[Batch]):
    """`practice` for another process: sounds are drawn while the model learns from others.

    Args:
        maker: Draws the samples.
        seed: Of the practice.
        first_step: Where to begin.
    """

    def __init__(self, maker: SampleMaker, seed: int, first_step: int) -> None:
        self._given = (maker, seed, first_step)

    def __iter__(self) -> Iterator[Batch]:
        return practice(*self._given)


def forward(
    model: Qwen2AudioForConditionalGeneration, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Answer a batch's questions, each token given the right ones before it.

    Args:
        model: The model.
        batch: What is asked.

    Returns:
        Logits at the answers' tokens; the audio tokens, and what became of them on the way.
    """
    embeddings = model.model.language_model.embed_tokens(batch.ids)
    clips = [sound for sample in batch.samples for sound in sample.heard]
    audio = hear(model, clips)
    lengths = torch.tensor([token_count(len(clip)) for clip in clips])
    heard = audio[torch.arange(audio.shape[1]) < lengths[:, None]]
    is_audio = batch.ids == batch.audio_token
    embeddings = embeddings.masked_scatter(is_audio[..., None], heard)
    states = think(model, embeddings, batch.positions, batch.allowed)
    logits = model.lm_head(states[-1][batch.targets != NONE])
    return logits, heard, states[1][is_audio]


def learning_rate(step: int) -> float:
    """The learning rate of a step."""
    first = 0
    for last, peak, falling in CYCLES:
        if step < last:
            return peak * min(1.0, (last - step) / falling, (step - first + 1) / WARM_UP_STEPS)
        first = last
    return 0.0


def train_step(run: Run, batch: Batch) -> float:
    """Learn from one batch.

    Args:
        run: The run; its step moves on.
        batch: What to learn.

    Returns:
        The answers' mean loss.
    """
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step)
    logits, heard, counted = forward(run.model, batch)
    loss = functional.cross_entropy(logits, batch.targets[batch.targets != NONE])
    weight = HELP_WEIGHT * max(0.0, 1 - run.step / HELP_STEPS)
    total = loss + 5 * weight * run.helpers.loss(heard, counted, batch) if weight else loss
    run.optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]  # torch's own
    nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_NORM)
    run.optimizer.step()
    run.step += 1
    return loss.item()


def train(run: Run, folder: Path) -> None:
    """Train to the end, saving on the way.

    Args:
        run: The run, new or loaded.
        folder: Where the checkpoint and, in the end, the model go.
    """
    maker = SampleMaker(train_tokenizer())
    unseen = list(_unseen(maker))
    started, losses = time.monotonic() - run.seconds, []
    drawn = DataLoader(Practice(maker, run.seed, run.step), batch_size=None, num_workers=1)
    batches = iter(drawn)
    while run.step < run.steps:
        losses.append(train_step(run, next(batches)))
        if run.step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"step {run.step:>5}  loss {np.mean(losses):.4f}  {seconds:.0f} s", flush=True)
            losses = []
        if run.step % CHECK_EVERY == 0 or run.step == run.steps:
            run.seconds = time.monotonic() - started
            run.save(folder / "run.pt")
            print(report(answers_right(run.model, unseen)), flush=True)
    write_checkpoint(folder, run.model)


def _unseen(maker: SampleMaker) -> Iterator[Batch]:
    rng = np.random.default_rng(987_654)
    samples = sorted((maker.draw(rng) for _ in range(10 * BATCH)), key=lambda item: len(item.ids))
    for first in range(0, len(samples), BATCH):
        yield collate(samples[first : first + BATCH], maker.audio_token)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT", help="where the model goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=CYCLES[-1][0], help="stop earlier")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    run = new_run(arguments.steps, arguments.seed)
    if (arguments.folder / "run.pt").exists():
        run.load(arguments.folder / "run.pt")
    train(run, arguments.folder)


if __name__ == "__main__":
    main()
