"""The model's forward pass, on each clip's own length instead of 30 s: some ten times faster.

Equal to transformers' padded pass (`test_demo_model.py` holds it to that): the encoder never lets a
frame of the clip see padding except through its two convolutions, for which a few frames of
silence behind the longest clip are enough.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import Qwen2AudioForConditionalGeneration

FFT, HOP = 400, 160
_PADDING_FRAMES = 6
_MOST_FRAMES = 3000
"""30 s: as far as the encoder's positions reach."""


def token_count(samples: int) -> int:
    """How many tokens a clip becomes.

    Args:
        samples: Its length at 16 kHz.

    Returns:
        The count, one for each 40 ms.
    """
    return (_encoder_steps(samples) - 2) // 2 + 1


def _encoder_steps(samples: int) -> int:
    return (math.ceil(samples / HOP) - 1) // 2 + 1


def log_mel(clips: Sequence[NDArray[np.float32]]) -> torch.Tensor:
    """Whisper's features for clips padded to the longest of them.

    Args:
        clips: 16 kHz mono samples.

    Returns:
        Clips by 128 mel bands by frames.
    """
    frames = math.ceil(max(map(len, clips)) / HOP) + _PADDING_FRAMES
    frames = min(frames + -frames % 4, _MOST_FRAMES)
    waves = np.zeros((len(clips), frames * HOP), dtype=np.float32)
    for wave, clip in zip(waves, clips, strict=True):
        wave[: len(clip)] = clip
    window = torch.hann_window(FFT)
    spectrum = torch.stft(torch.from_numpy(waves), FFT, HOP, window=window, return_complex=True)
    power = (spectrum.real**2 + spectrum.imag**2)[..., :-1].contiguous()
    mel = (_mel_filters().T @ power).clamp(min=1e-10).log10()
    loudest = mel.amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0


@cache
def _mel_filters() -> torch.Tensor:
    filters = mel_filter_bank(1 + FFT // 2, 128, 0.0, 8000.0, 16_000, "slaney", "slaney")
    return torch.from_numpy(filters).float()


def hear(
    model: Qwen2AudioForConditionalGeneration, clips: Sequence[NDArray[np.float32]]
) -> torch.Tensor:
    """What the language model receives of each clip.

    Args:
        model: The model.
        clips: 16 kHz mono samples.

    Returns:
        Clips by tokens by width; a clip's first `token_count` tokens count.
    """
    tower: Any = model.model.audio_tower
    hidden = functional.gelu(tower.conv1(log_mel(clips)))
    hidden = functional.gelu(tower.conv2(hidden)).transpose(1, 2)
    steps = hidden.shape[1]
    hidden = hidden + tower.embed_positions.weight[:steps]
    lengths = torch.tensor([_encoder_steps(len(clip)) for clip in clips])
    mask = (torch.arange(steps) < lengths[:, None])[:, None, None, :]
    bias = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    for layer in tower.layers:
        hidden = _encoder_layer(layer, hidden, bias)
    hidden = tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)
    heard: torch.Tensor = model.model.multi_modal_projector(tower.layer_norm(hidden))
    return heard


def _encoder_layer(layer: Any, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    attention = layer.self_attn
    normed = layer.self_attn_layer_norm(hidden)
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    queries, keys, values = (_heads(part(normed), attention.num_heads) for part in parts)
    mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    hidden = hidden + attention.out_proj(_joined(mixed))
    inner = functional.gelu(layer.fc1(layer.final_layer_norm(hidden)))
    result: torch.Tensor = hidden + layer.fc2(inner)
    return result


def think(
    model: Qwen2AudioForConditionalGeneration,
    embeddings: torch.Tensor,
    positions: torch.Tensor,
    allowed: torch.Tensor,
) -> list[torch.Tensor]:
    """The language model over sequences whose attention the caller decides.

    Args:
        model: The model.
        embeddings: Sequences by tokens by width.
        positions: Each token's position.
        allowed: Which token (second axis) may see which (third).

    Returns:
        The hidden state after each layer; the last is normed and ready for the head.
    """
    language: Any = model.model.language_model
    bias = torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))[:, None]
    turns = language.rotary_emb(embeddings, positions)
    hidden, states = embeddings, []
    for layer in language.layers:
        hidden = _decoder_layer(layer, hidden, bias, turns)
        states.append(hidden)
    states[-1] = language.norm(hidden)
    return states


def _decoder_layer(
    layer: Any, hidden: torch.Tensor, bias: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    size = attention.head_dim
    queries, keys, values = (
        _heads(part(normed), part.out_features // size)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = _rotate(queries, turns), _rotate(keys, turns)
    groups = attention.num_key_value_groups
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    hidden = hidden + attention.o_proj(_joined(mixed))
    result: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return result


def _heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    batch, length, width = states.shape
    return states.view(batch, length, heads, width // heads).transpose(1, 2)


def _joined(states: torch.Tensor) -> torch.Tensor:
    return states.transpose(1, 2).flatten(2)


def _rotate(states: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cosines, sines = (part[:, None] for part in turns)
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat([-second, first], dim=-1) * sines
