"""Makes a small Qwen2-Audio checkpoint with random weights that real vLLM serves.

`python scripts/make_tiny_model.py DIR [--seed 0]`: about 2 MB, same bytes for the same seed. Its
answers mean nothing, but they are readable text, differ from clip to clip, and most of them end by
themselves: enough to run every part of a build against the real engine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARY_SIZE = 512
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
)

# Random layers average a clip's differences away; these make answers depend on what is heard.
EMBEDDING_SCALE = 0.1
GAINS = {
    "multi_modal_projector": 3.0,
    "q_proj": 1.5,
    "k_proj": 1.5,
    "v_proj": 1.5,
    "o_proj": 1.5,
    "lm_head": 3.0,  # tokens whose rows are zero then stay far behind at usual temperatures
}
END_GAIN = 1.8
"""How much louder the end token speaks, so that most answers end by themselves."""
NO_EMPTY_ANSWER = 6.0
"""How much the line break before the answer speaks against the end token."""

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

# What the tokenizer learns its words from: the template's own words and things said about sounds.
TRAINING_TEXT = (
    "system user assistant You are a helpful assistant. Audio 1: Audio 2: Audio 3:",
    "Describe the sound in this audio clip. Transcribe the speech in this audio clip.",
    "What do you hear? What does the speaker say? What sound is this? Which clip is louder?",
    "The sound is a low tone, a high tone, a short beep, white noise, a rising whistle, a bell.",
    "The speaker says that the rain has stopped. A woman speaks, a man speaks, a child laughs.",
    "First there is music, then a car, then a dog, then a bird, and in the end it is quiet.",
    "It gets louder and louder, then softer. Both clips are the same. No, they differ in pitch.",
    "你听到了什么?请把这段语音转写成中文。这是什么声音?哪一段更响?先是音乐,然后是雨声。",
    "说话的人说今天天气很好。声音越来越高。有一个男人在说话,有一个女人在唱歌。两段声音不一样。",
)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer.

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
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 (a token of text, no password)
        pad_token="<|endoftext|>",  # noqa: S106 (likewise)
        extra_special_tokens=["<|im_start|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"],
        model_max_length=8192,
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2AudioConfig:
    """Qwen2-Audio's architecture with every size cut down.

    Args:
        tokenizer: Gives the ids of the special tokens.

    Returns:
        The configuration; the head size of 32 is the smallest that vLLM's CPU attention takes.
    """
    return Qwen2AudioConfig(
        architectures=["Qwen2AudioForConditionalGeneration"],
        dtype="float32",
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
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
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 192,
            "max_position_embeddings": 8192,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        },
    )


def random_weights(config: Qwen2AudioConfig, seed: int) -> dict[str, torch.Tensor]:
    """Draw the weights.

    Args:
        config: The architecture.
        seed: Of the draw.

    Returns:
        Tensors under the names that published Qwen2-Audio checkpoints (and vLLM) use.
    """
    with torch.device("meta"):  # names and shapes alone: every value is ours, so bytes repeat
        shapes = {
            name: tensor.shape
            for name, tensor in Qwen2AudioForConditionalGeneration(config).state_dict().items()
        }
    generator = torch.Generator().manual_seed(seed)
    return {
        _published_name(name): _weight(name, shapes[name], generator) for name in sorted(shapes)
    }


def _weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if "embed_positions" in name:
        return _sinusoids(*shape)
    if len(shape) == 1:
        return torch.ones(shape) if "norm.weight" in name else torch.zeros(shape)
    return torch.randn(shape, generator=generator) * _scale(name, shape)


def _scale(name: str, shape: torch.Size) -> float:
    """Standard deviation of a weight: louder than usual where clips and history come in."""
    if "embed_tokens" in name:
        return EMBEDDING_SCALE
    fan_in = shape[1:].numel()
    gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
    return float(gain * fan_in**-0.5)


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


def readable_answers(
    weights: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast
) -> dict[str, torch.Tensor]:
    """Keep half characters, symbols and special tokens out of the answers, and let answers end.

    Args:
        weights: The checkpoint.
        tokenizer: Tells which tokens are readable by themselves.

    Returns:
        The checkpoint with the output rows of other tokens at zero: their logits stay far below
        the best one's. The end's row is louder, so that it wins every few dozen tokens, only not
        at once.
    """
    drawn = weights["language_model.lm_head.weight"]
    head = drawn.clone()
    for token_id in range(VOCABULARY_SIZE):
        if not _is_readable(tokenizer.decode([token_id])):
            head[token_id] = 0.0
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    head[end] = END_GAIN * drawn[end]
    # the prompt's last token speaks against the end: no answer is empty
    embeddings = weights["language_model.model.embed_tokens.weight"].clone()
    embeddings[tokenizer.encode("\n")[-1]] = -NO_EMPTY_ANSWER * drawn[end] / drawn[end].norm()
    return {
        **weights,
        "language_model.lm_head.weight": head,
        "language_model.model.embed_tokens.weight": embeddings,
    }


def _is_readable(text: str) -> bool:
    """Whole words, parts of words, and whole Chinese characters; no lone ASCII, no half bytes."""
    if text in SPECIAL_TOKENS or "\N{REPLACEMENT CHARACTER}" in text:
        return False
    return text.strip().isalpha() and (len(text) > 1 or not text.isascii())


def write_checkpoint(folder: Path, seed: int) -> Iterator[Path]:
    """Write the whole checkpoint.

    Args:
        folder: Where to; made if it is not there.
        seed: Of the random weights.

    Yields:
        Each file written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    config = model_config(tokenizer)
    feature_extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    feature_extractor.save_pretrained(folder)
    Qwen2AudioProcessor(feature_extractor, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(
        folder
    )
    config.save_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    generation = {"eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = readable_answers(random_weights(config, seed), tokenizer)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    yield from sorted(path for path in folder.iterdir() if path.is_file())


def main() -> None:
    """Read the command line, write, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    arguments = parser.parse_args()
    for path in write_checkpoint(arguments.folder, arguments.seed):
        print(f"{path.stat().st_size:>9,} bytes  {path}")


if __name__ == "__main__":
    main()
