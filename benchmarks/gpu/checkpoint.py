"""A Qwen2-Audio checkpoint without weights: config, tokenizer and preprocessor of the real shape.

vLLM fills it with random weights (`--load-format dummy`), which cost a GPU what trained ones do.
The figures are those of the public config.json of Qwen/Qwen2-Audio-7B-Instruct; what it leaves to
transformers' defaults is written out. The tokenizer is made: the special tokens have their real
ids, and every id the model can say is some word.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.page import installed_version

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

QUESTION = "Describe the sound in this audio clip."
VOCABULARY = 156_032
_FIRST_SPECIAL = 151_643
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
)
_PROMPT = "system\nuser\nassistant\nYou are a helpful assistant.\nAudio 1: "

_ENCODER: dict[str, Any] = {
    "model_type": "qwen2_audio_encoder",
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
    "activation_function": "gelu",
    "scale_embedding": False,
    "max_source_positions": 1500,
}
_TEXT: dict[str, Any] = {
    "model_type": "qwen2",
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 11_008,
    "max_position_embeddings": 8192,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
}
# heads of 64 and 32, which vLLM takes on CPUs
_TINY_ENCODER = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 256}
_TINY_TEXT = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256}
_TINY_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


def model_config(*, tiny: bool) -> dict[str, Any]:
    """The config.json.

    Args:
        tiny: Everything that costs time is cut down; the vocabulary and the clips' limits stay.
    """
    encoder = {**_ENCODER, **_TINY_ENCODER, "d_model": 128} if tiny else _ENCODER
    text = {**_TEXT, **_TINY_TEXT, **_TINY_HEADS} if tiny else _TEXT
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_config": encoder,
        "text_config": text,
        "audio_token_index": _FIRST_SPECIAL + _SPECIAL.index("<|AUDIO|>"),
        "ignore_index": -100,
        "torch_dtype": "bfloat16",
        "transformers_version": installed_version("transformers"),
        "vocab_size": VOCABULARY,
    }


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer in which the prompt's words are tokens and every id decodes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    small = Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    small.train_from_iterator([_PROMPT, QUESTION], trainer)
    learnt = json.loads(small.to_str())["model"]
    words = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    words += [f"Ġw{number:06d}" for number in range(len(words), _FIRST_SPECIAL)]
    words += _SPECIAL
    words += [f"Ġw{number:06d}" for number in range(len(words), VOCABULARY)]
    merges = [(first, second) for first, second in learnt["merges"]]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = small.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"],
        model_max_length=8192,
    )


def write_checkpoint(folder: Path, *, tiny: bool) -> Path:
    """Write everything but weights.

    Args:
        folder: Where to; made if it is not there.
        tiny: See `model_config`.

    Returns:
        The folder.
    """
    from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

    from demo_model.architecture import CHAT_TEMPLATE

    folder.mkdir(parents=True, exist_ok=True)
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    extractor.save_pretrained(folder)
    processor = Qwen2AudioProcessor(extractor, make_tokenizer(), chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(folder)
    config = json.dumps(model_config(tiny=tiny), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    return folder
