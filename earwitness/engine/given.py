"""Which engines a person or a worker named, how to speak to them, and how much they take."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from earwitness.engine.address import EngineAddress, ServedModel, base_url
from earwitness.errors import ModelIdentityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwitness.engine.shared import SharedEngine
    from earwitness.settings import EngineSettings


def slots_of(settings: EngineSettings) -> int:
    """Requests that what stands behind one address answers at once.

    Args:
        settings: With vLLM's limit, which is one replica's.
    """
    return settings.max_num_seqs * (1 if settings.url else settings.data_parallel_size)


_FOR_AN_ENGINE_OF_OURS = (
    "revision",
    "hub_cache",
    "tensor_parallel_size",
    "data_parallel_size",
    "gpu_memory_utilization",
    "max_model_len",
    "dtype",
    "quantization",
    "chat_template",
    "trust_remote_code",
    "api_server_count",
    "vllm_args",
    "python",
    "command",
    "start_timeout_s",
    "max_restarts",
)
"""Settings of how an engine is started; an engine that runs already knows nothing of them."""


def without_effect(settings: EngineSettings) -> list[str]:
    """Settings that were given and that the engine which answers never learns of.

    Args:
        settings: As given.

    Returns:
        Names of fields; empty where an engine is started.
    """
    if not settings.url:
        return []
    usual = type(settings)()
    return [
        name for name in _FOR_AN_ENGINE_OF_OURS if getattr(settings, name) != getattr(usual, name)
    ]


def in_flight(engine: EngineSettings | int) -> int:
    """Requests to keep at an engine: a tenth over its slots, so that one waits when one ends.

    Args:
        engine: Its settings, or its slots.

    Returns:
        1.1 times as many, rounded up.
    """
    slots = engine if isinstance(engine, int) else slots_of(engine)
    return -(-11 * slots // 10)


def borrowed_address(shared: SharedEngine) -> EngineAddress:
    """How a flow run speaks to its worker's engine.

    Args:
        shared: As the environment names it.
    """
    # the engine reads the worker's scratch; waiting there, and its limit, are the front's
    url = base_url(shared.url)
    run = secrets.token_hex(8)
    return EngineAddress(url, api_key=shared.key, inline=False, request_timeout_s=None, run=run)


def given_addresses(settings: EngineSettings, *, api_key: str | None) -> list[EngineAddress]:
    """The addresses a person gave, each once.

    Args:
        settings: With `url`.
        api_key: None: VLLM_API_KEY or OPENAI_API_KEY.

    Returns:
        How to speak to each.

    Raises:
        SettingsError: One is no http(s) address.
    """
    if api_key is None:
        api_key = os.environ.get("VLLM_API_KEY") or os.environ.get("OPENAI_API_KEY", "")
    return [
        EngineAddress(url, api_key=api_key, request_timeout_s=settings.request_timeout_s)
        for url in dict.fromkeys(map(base_url, settings.url))
    ]


async def check_addresses(settings: EngineSettings) -> None:
    """Check the addresses a person gave; see `EngineAddress.check`.

    Args:
        settings: With `url`.

    Raises:
        SettingsError: An address is wrong; the text says how.
        CredentialsError: An engine refused the API key.
    """
    addresses = given_addresses(settings, api_key=None)
    try:
        for address in addresses:
            await address.check()
    finally:
        for address in addresses:
            await address.close()


def pick_model(model: str | None, served: Sequence[ServedModel]) -> str:
    """The name to ask given engines for.

    Args:
        model: The name a person gave; None: whatever is served.
        served: What the engines serve.

    Returns:
        A served name.

    Raises:
        ModelIdentityError: The name is not served, or none was given and there are several.
    """
    names = [card.id for card in served]
    if model is None:
        if len(names) == 1:
            return names[0]
        raise ModelIdentityError(
            f"the engine serves several models ({', '.join(names)}): choose one with --model"
        )
    by_root = [card.id for card in served if card.root == model]
    if model in names:
        return model
    if by_root:
        return by_root[0]
    raise ModelIdentityError(
        f"the engine serves {', '.join(names)}, not {model}: change --model, or leave it out"
    )
