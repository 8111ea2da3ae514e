"""The demo model's shipped weights: vLLM, transformers and the training's own code must agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demo_model.questions import ask, right_answers
from demo_model.sounds import RATE_HZ, draw_clip
from earwitness.engine.client import AskRequest, Engine
from earwitness.settings import EngineSettings, SamplingSettings

MODEL = Path(__file__).parents[2] / "demo_model" / "weights"
SYSTEM = "You are a helpful assistant."

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def cases():
    """Clips and questions: every kind of sound, pairs, the long clip, text before the clip."""
    rng = np.random.default_rng(4)
    kinds = ("beeps", "beeps", "tone", "rising", "falling", "noise", "clicks", "silence")
    alone = [(draw_clip(rng, kind=kind),) for kind in kinds]
    alone.append((draw_clip(rng, beeps=4, long_clip=True),))
    pairs = [(draw_clip(rng, beeps=a), draw_clip(rng, beeps=b)) for a, b in ((1, 4), (5, 2))]
    return [
        (clips, ask(rng, clips, type_=name, plain=True))
        for clips in (*alone, *pairs)
        for name in right_answers(*clips)
    ]


def content(clips, question, *, text_first):
    parts = [{"type": "audio", "clip": number} for number in range(len(clips))]
    text = {"type": "text", "text": question.text}
    return [text, *parts] if text_first else [*parts, text]


@pytest.fixture(scope="module")
def transformers_answers(cases):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoProcessor.from_pretrained(MODEL)
    model, loaded = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(
        MODEL, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loaded.values()), loaded
    answers = []
    for number, (clips, question) in enumerate(cases):
        parts = content(clips, question, text_first=is_text_first(number, clips))
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        sounds = [clip.samples for clip in clips]
        inputs = processor(text=text, audio=sounds, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    return answers


def is_text_first(number, clips):
    return len(clips) == 1 and number % 5 == 0


async def test_vllm_and_transformers_give_equal_greedy_answers(
    cases, transformers_answers, tmp_path
):
    settings = EngineSettings(
        dtype="float32", max_model_len=2048, max_num_seqs=8, vllm_args=("--enforce-eager",)
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    greedy = SamplingSettings(temperature=0)
    engine = Engine(
        settings,
        str(MODEL),
        scratch=scratch,
        clips_per_prompt=2,
        log_path=tmp_path / "engine.log",
    )
    answers = []
    async with engine:
        for number, (clips, question) in enumerate(cases):
            paths = tuple(scratch / f"{number}-{place}.wav" for place in range(len(clips)))
            for path, clip in zip(paths, clips, strict=True):
                soundfile.write(path, clip.samples, RATE_HZ, subtype="PCM_16")
            parts = content(clips, question, text_first=is_text_first(number, clips))
            system = {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
            messages = (system, {"role": "user", "content": parts})
            request = AskRequest(messages, paths, greedy, max_tokens=24, seed=None)
            answers.append((await engine.ask(request)).text)
    assert answers == transformers_answers


def test_what_transformers_answers_is_right(cases, transformers_answers):
    wrong = [
        (question.text, answer, question.answer)
        for (_, question), answer in zip(cases, transformers_answers, strict=True)
        if answer != question.answer
    ]
    assert len(wrong) <= len(cases) // 50, wrong


def test_the_training_forward_equals_the_padded_one():
    torch = pytest.importorskip("torch")
    from transformers import WhisperFeatureExtractor

    from demo_model.architecture import read_checkpoint, train_tokenizer
    from demo_model.batches import NONE, SampleMaker, collate
    from demo_model.train import forward

    model = read_checkpoint(MODEL)
    extractor = WhisperFeatureExtractor.from_pretrained(MODEL)
    maker = SampleMaker(train_tokenizer())
    rng = np.random.default_rng(5)
    for _ in range(4):
        sample = maker.draw(rng)
        batch = collate([sample], maker.audio_token)
        with torch.no_grad():
            ours, _, _ = forward(model, batch)
        kept = [place for place, branch in enumerate(sample.branches) if branch in {0, 1}]
        ids = torch.tensor([[sample.ids[place] for place in kept]])
        heard = {}
        if sample.heard:
            features = extractor(
                list(sample.heard),
                sampling_rate=RATE_HZ,
                return_attention_mask=True,
                padding="max_length",
                return_tensors="pt",
            )
            heard = {
                "input_features": features["input_features"],
                "feature_attention_mask": features["attention_mask"],
            }
        with torch.no_grad():
            padded = model(input_ids=ids, attention_mask=torch.ones_like(ids), **heard).logits[0]
        chosen = [place for place, old in enumerate(kept) if sample.targets[old] != NONE]
        assert torch.allclose(padded[chosen], ours[: len(chosen)], atol=1e-4)


def test_the_training_writes_tokens_as_the_chat_template_does():
    pytest.importorskip("torch")
    from demo_model.architecture import train_tokenizer
    from demo_model.batches import SampleMaker

    tokenizer = train_tokenizer()
    maker = SampleMaker(tokenizer)
    rng = np.random.default_rng(6)
    for _ in range(50):
        sample = maker.draw(rng)
        for branch in (1, 2, 3):
            ids = [
                token
                for token, place in zip(sample.ids, sample.branches, strict=True)
                if place in {0, branch}
            ]
            assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids
