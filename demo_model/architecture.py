"""The demo model's architecture, tokenizer and files: Qwen2-Audio with every size cut down."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from demo_model import questions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VOCABULARY_SIZE = 512
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
)
WIDTH = 128

# Qwen2-Audio's own rules: the default system prompt only where none is given, clips counted over
# the whole conversation. Iterating over the parts is also what tells vLLM to pass parts, not text.
CHAT_TEMPLATE = """\
{%- set audio_count = namespace(value=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for content in message['content'] -%}
{%- if 'audio' in content or 'audio_url' in content or content['type'] == 'audio' -%}
{%- set audio_count.value = audio_count.value + 1 -%}
{{ 'Audio ' ~ audio_count.value ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' }}
{%- elif 'text' in content -%}
{{ content['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on all that is ever asked and answered.

    Returns:
        A tokenizer of `VOCABULARY_SIZE` tokens with the special tokens of Qwen2-Audio.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers' own
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 (a token of text, no password)
        pad_token="<|endoftext|>",  # noqa: S106 (likewise)
        extra_special_tokens=["<|im_start|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"],
        model_max_length=8192,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token."""
    found: int = tokenizer.convert_tokens_to_ids(token)  # type: ignore[assignment]  # one in, one out
    return found


def _texts() -> Iterator[str]:
    yield from ["system\n", "user\n", "assistant\n", "Audio 1: ", "Audio 2: ", "First: "] * 8
    yield from [questions.DEFAULT_SYSTEM_PROMPT] * 8
    yield from questions.SYSTEM_PROMPTS
    for wordings in questions.WORDINGS.values():
        yield from wordings * 2
    for question, answer in questions.GENERAL.items():
        yield from (question, answer)
    yield questions.NO_AUDIO
    for words in (*questions.ANSWER_WORDS, *questions.NUMBERS, *questions.NUMBERS_ZH):
        yield from [words, f" {words}"] * 6


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2AudioConfig:
    """Qwen2-Audio's architecture with every size cut down.

    Args:
        tokenizer: Gives the ids of the special tokens.

    Returns:
        The configuration; the head size of 32 is the smallest that vLLM's CPU attention takes.
    """
    return Qwen2AudioConfig(
        architectures=["Qwen2AudioForConditionalGeneration"],
        dtype="float16",
        audio_token_index=token_id(tokenizer, "<|AUDIO|>"),
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 192,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 192,
            "max_position_embeddings": 8192,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": False,
            "bos_token_id": token_id(tokenizer, "<|endoftext|>"),
            "eos_token_id": token_id(tokenizer, "<|im_end|>"),
            "pad_token_id": token_id(tokenizer, "<|endoftext|>"),
        },
    )


def new_model(config: Qwen2AudioConfig) -> Qwen2AudioForConditionalGeneration:
    """An untrained model in float32, drawn from torch's global generator.

    Args:
        config: The architecture.

    Returns:
        The model, every position of the encoder at Whisper's sinusoids and frozen.
    """
    model: Qwen2AudioForConditionalGeneration = Qwen2AudioForConditionalGeneration(config)
    model.to(torch.float32)  # type: ignore[arg-type]  # transformers' stub knows devices only
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "embed_positions" in name:
                tensor.copy_(_sinusoids(*tensor.shape))
                tensor.requires_grad = False
            elif tensor.dim() > 1:
                fan_in = tensor.shape[1:].numel()
                into_stream = ("o_proj", "down_proj", "out_proj", "fc2", "multi_modal")
                gain = 0.4 if any(part in name for part in into_stream) else 1.0
                tensor.normal_(std=0.3 if "embed_tokens" in name else gain * fan_in**-0.5)
            else:
                tensor.fill_(1.0 if "norm.weight" in name else 0.0)
    return model


def _sinusoids(length: int, channels: int) -> torch.Tensor:
    """Whisper's fixed position embeddings."""
    step = math.log(10_000) / (channels // 2 - 1)
    rates = torch.exp(-step * torch.arange(channels // 2))
    angles = torch.arange(length)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _published_name(name: str) -> str:
    """Today's module names to those of published checkpoints, which vLLM's loader knows."""
    name = name.removeprefix("model.")
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    if name.startswith("language_model.") and not name.startswith("language_model.model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return name


def write_checkpoint(folder: Path, model: Qwen2AudioForConditionalGeneration) -> None:
    """Write everything that vLLM and transformers need, weights in fp16.

    Args:
        folder: Where to; made if it is not there.
        model: The trained model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)  # type: ignore[no-untyped-call]  # transformers' own
    extractor.save_pretrained(folder)
    processor = Qwen2AudioProcessor(extractor, tokenizer, chat_template=CHAT_TEMPLATE)  # type: ignore[no-untyped-call]  # likewise
    processor.save_pretrained(folder)
    model_config(tokenizer).save_pretrained(folder)
    ends = [token_id(tokenizer, token) for token in ("<|im_end|>", "<|endoftext|>")]
    generation = {"eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {
        _published_name(name): tensor.detach().to(torch.float16).contiguous()
        for name, tensor in sorted(model.state_dict().items())
    }
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # it is written for its owner alone


def read_checkpoint(folder: Path) -> Qwen2AudioForConditionalGeneration:
    """The model of a folder that `write_checkpoint` wrote, in float32.

    Args:
        folder: Where it is.

    Returns:
        The model, ready to answer.
    """
    model = new_model(model_config(train_tokenizer()))
    weights = load_file(folder / "model.safetensors")
    names = {_published_name(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor.float() for name, tensor in weights.items()})
    model.train(mode=False)
    return model
