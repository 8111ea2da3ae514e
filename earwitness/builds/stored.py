"""What a stored plan does not decide: which code runs on the machine that goes on with it.

Whoever can write to OUTPUT can write a plan. Its answers are theirs to spoil; this machine is not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from earwitness.engine.shared import shared_engine
from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from earwitness.settings import BuildSettings, EngineSettings

_FLAG = re.compile(r"--?[A-Za-z][^=]*")
_HARMLESS = frozenset(
    {
        "block-size",
        "cpu-offload-gb",
        "data-parallel-size",
        "disable-log-requests",
        "disable-log-stats",
        "enable-chunked-prefill",
        "enable-prefix-caching",
        "enforce-eager",
        "gpu-memory-utilization",
        "kv-cache-dtype",
        "kv-cache-memory-bytes",
        "max-model-len",
        "max-num-batched-tokens",
        "max-num-seqs",
        "no-enable-chunked-prefill",
        "no-enable-prefix-caching",
        "pipeline-parallel-size",
        "scheduling-policy",
        "seed",
        "swap-space",
        "tensor-parallel-size",
    }
)
"""vLLM flags that take numbers and choices; many others name a module, a class or a file."""


def continued_engine(planned: EngineSettings, given: Mapping[str, Any]) -> EngineSettings:
    """The engine of a build that is taken up from storage.

    Args:
        planned: As the stored plan has it.
        given: What this run itself was told, by name.

    Returns:
        The planned one, without a command or an interpreter of its own.

    Raises:
        SettingsError: An engine would be started with code that only the plan asks for.
    """
    if not any(given.get(name) or getattr(planned, name) for name in ("url", "shards_on")):
        _check_said_again(planned, given)
    return planned.model_copy(update={"command": (), "python": None})


def stored_settings(settings: BuildSettings) -> BuildSettings:
    """A stored plan's settings, for a process that was told nothing else.

    Args:
        settings: The plan's.

    Raises:
        SettingsError: An engine would be started with code that only the plan asks for.
    """
    lent = {"url": True} if shared_engine() else {}
    return settings.model_copy(update={"engine": continued_engine(settings.engine, lent)})


def _check_said_again(planned: EngineSettings, given: Mapping[str, Any]) -> None:
    unsaid = []
    if planned.trust_remote_code and not given.get("trust_remote_code"):
        unsaid.append("--trust-remote-code")
    if tuple(given.get("vllm_args") or ()) != planned.vllm_args:
        unsaid += _unknown(planned.vllm_args)
    if unsaid:
        raise SettingsError(
            f"the stored plan starts the engine with {', '.join(unsaid)}, which can run other "
            "people's code on this machine, so a stored plan alone cannot allow it. Add it to "
            "`earwitness retry` (vLLM's flags after --), or run `earwitness build` with the same "
            "settings: it continues the same build"
        )


def _unknown(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        flag = _FLAG.match(word)
        if flag and flag.group().lstrip("-").replace("_", "-") not in _HARMLESS:
            yield flag.group()
