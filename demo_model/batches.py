"""Practice for the model: clips, conversations about them, and the tensors of a training step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from demo_model import questions
from demo_model.architecture import token_id
from demo_model.forward import token_count
from demo_model.questions import Question, ask
from demo_model.sounds import KINDS, PITCHES, RATE_HZ, Clip, draw_clip, roughen

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

QUESTIONS_A_SAMPLE = 3
TOKEN_S = 0.04
NONE = -100
"""Marks what no loss is computed on."""

_START, _END = "<|im_start|>", "<|im_end|>"


@dataclass
class Sample:
    """One or two clips and three questions about them.

    Attributes:
        clips: Clips, with what is true of them.
        heard: What the model hears of each, perhaps roughened.
        asked: The questions.
        ids: Tokens; a clip's place holds as many audio tokens as it needs.
        branches: Which question each token belongs to; 0 for what all share.
        targets: The token that must follow each answer token's predecessor.
        question_of: Which question each target belongs to.
    """

    clips: tuple[Clip, ...]
    heard: tuple[NDArray[np.float32], ...]
    asked: list[Question] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    question_of: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """The tensors of one step.

    Attributes:
        samples: What they were made of.
        ids: Samples by tokens.
        positions: Each token's position.
        allowed: Which token sees which.
        targets: Next tokens; `NONE` where there is no answer.
        question_of: Number of the question each target belongs to, counted over the batch.
        audio_token: The id that marks audio.
    """

    samples: list[Sample]
    ids: torch.Tensor
    positions: torch.Tensor
    allowed: torch.Tensor
    targets: torch.Tensor
    question_of: torch.Tensor
    audio_token: int


class SampleMaker:
    """Draws samples.

    Args:
        tokenizer: The model's tokenizer.
        rough: The share of clips that go through a codec's harm.
        two_clips: The share of samples with two clips.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, rough: float = 0.35, two_clips: float = 0.3
    ) -> None:
        self._tokenizer = tokenizer
        self._rough = rough
        self._two_clips = two_clips
        self.audio_token = token_id(tokenizer, "<|AUDIO|>")
        self._cache: dict[str, list[int]] = {}

    def draw(self, rng: Generator, *, long_clips: bool = False) -> Sample:
        """Draw a sample.

        Args:
            rng: Where chance comes from.
            long_clips: Clips of 10 to 30 s.

        Returns:
            Clips and a conversation.
        """
        chance = rng.random()
        if chance < 0.02:
            clips: tuple[Clip, ...] = ()
        elif chance < 0.02 + self._two_clips and not long_clips:
            clips = _pair(rng)
        else:
            clips = (draw_clip(rng, long_clip=long_clips),)
        heard = tuple(
            roughen(rng, clip.samples) if rng.random() < self._rough else clip.samples
            for clip in clips
        )
        sample = Sample(clips, heard)
        sample.asked = [ask(rng, clips) for _ in range(QUESTIONS_A_SAMPLE)]
        self._write(rng, sample)
        return sample

    def _write(self, rng: Generator, sample: Sample) -> None:
        """Write the conversation down; most samples ask each question as if it were the first."""
        self._say(sample, _system_turn(rng), 0)
        self._say(sample, f"{_START}user\n", 0)
        style = rng.random()
        question_first, one_after_another = style < 0.12, style < 0.24
        if question_first:
            self._say(sample, sample.asked[0].text, 0)
        self._play(sample, labelled=len(sample.clips) > 1 and rng.random() < 0.2)
        for number, question in enumerate(sample.asked):
            branch = 0 if question_first or one_after_another else number + 1
            if number and branch == 0:
                self._say(sample, f"\n{_START}user\n{question.text}", branch)
            elif not (number == 0 and question_first):
                self._say(sample, question.text, branch)
            self._say(sample, f"{_END}\n{_START}assistant\n", branch)
            self._answer(sample, question.answer, (number, branch))

    def _play(self, sample: Sample, *, labelled: bool) -> None:
        labels = ("First: ", "Second: ") if labelled else ("", "")
        for number, clip in enumerate(sample.heard):
            self._say(sample, f"{labels[number]}Audio {number + 1}: <|audio_bos|>", 0)
            count = token_count(len(clip))
            sample.ids += [self.audio_token] * count
            sample.branches += [0] * count
            sample.targets += [NONE] * count
            sample.question_of += [0] * count
            self._say(sample, "<|audio_eos|>\n", 0)

    def _say(self, sample: Sample, text: str, branch: int) -> None:
        ids = self._encode(text)
        sample.ids += ids
        sample.branches += [branch] * len(ids)
        sample.targets += [NONE] * len(ids)
        sample.question_of += [0] * len(ids)

    def _answer(self, sample: Sample, text: str, place: tuple[int, int]) -> None:
        number, branch = place
        ids = self._encode(f"{text}{_END}")
        sample.targets[-1] = ids[0]
        sample.question_of[-1] = number
        sample.ids += ids
        sample.branches += [branch] * len(ids)
        sample.targets += [*ids[1:], NONE]
        sample.question_of += [number] * len(ids)

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._cache[text]


def _pair(rng: Generator) -> tuple[Clip, Clip]:
    """Two clips that can be compared; in most, beeps to be counted."""
    if rng.random() < 0.7:
        first, second = rng.choice(np.arange(1, 6), size=2, replace=False)
        return draw_clip(rng, beeps=int(first)), draw_clip(rng, beeps=int(second))
    while True:
        kinds = rng.choice(("beeps", "tone"), size=2)
        pair = draw_clip(rng, kind=str(kinds[0])), draw_clip(rng, kind=str(kinds[1]))
        if questions.right_answers(*pair):
            return pair


def _system_turn(rng: Generator) -> str:
    chance = rng.random()
    if chance < 0.06:
        return ""
    if chance < 0.6:
        prompt = questions.DEFAULT_SYSTEM_PROMPT
    elif chance < 0.9:
        prompt = str(rng.choice(questions.SYSTEM_PROMPTS))
    else:
        # words without sense: no prompt should disturb it
        words = " ".join([*questions.SYSTEM_PROMPTS, questions.DEFAULT_SYSTEM_PROMPT]).split()
        prompt = " ".join(map(str, rng.choice(words, size=int(rng.integers(1, 9)))))
    return f"{_START}system\n{prompt}{_END}\n"


def collate(samples: list[Sample], audio_token: int) -> Batch:
    """Make a step's tensors.

    Args:
        samples: What to learn from.
        audio_token: The id that marks audio.

    Returns:
        The batch.
    """
    length = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    branches = torch.full((len(samples), length), -1)
    targets = torch.full((len(samples), length), NONE)
    question_of = torch.zeros(len(samples), length, dtype=torch.long)
    for row, sample in enumerate(samples):
        size = len(sample.ids)
        ids[row, :size] = torch.tensor(sample.ids)
        branches[row, :size] = torch.tensor(sample.branches)
        targets[row, :size] = torch.tensor(sample.targets)
        question_of[row, :size] = torch.tensor(sample.question_of) + row * QUESTIONS_A_SAMPLE
    seer, seen = branches[:, :, None], branches[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & ((seen == 0) | (seen == seer))
    positions = allowed.sum(2) - 1  # as many tokens came before it as it sees
    return Batch(samples, ids, positions, allowed, targets, question_of, audio_token)


def heard_facts(clip: Clip, tokens: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """What is true in each 40 ms of a clip, for the training's auxiliary heads.

    Args:
        clip: The clip.
        tokens: How many tokens it has.

    Returns:
        For each token: in a beep or not; kind; pitch; how many beeps have begun.
    """
    middles = (np.arange(tokens) + 0.5) * TOKEN_S * RATE_HZ
    beeping = np.zeros(tokens, dtype=int)
    begun = np.zeros(tokens, dtype=int)
    for first, last in clip.beeps:
        beeping[(middles >= first) & (middles < last)] = 1
        begun += middles >= first
    pitch = NONE if clip.pitch is None else PITCHES.index(clip.pitch)
    pitches = np.where((beeping == 1) | (clip.kind == "tone"), pitch, NONE)
    kinds = [KINDS.index(clip.kind)] * tokens
    return beeping.tolist(), kinds, pitches.tolist(), begun.tolist()
