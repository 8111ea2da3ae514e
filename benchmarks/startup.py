"""How long `earwitness --help` takes, and what importing it loads.

    python -m benchmarks.startup

Processes of Python that do nothing, the command line's help and the import of the core are started
in turns; medians. What was measured on a loaded machine is compared with the Python that did
nothing on the same machine at the same time; CPU seconds hold on such a machine, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.table import Row, print_rows

HOUSE = Path(__file__).parents[1]
SCRIPT = "python -m benchmarks.startup"
HELP_GOAL_S = 0.3
COMMANDS = {
    "nothing": ["-c", "pass"],
    "help": ["-m", "cli.main", "--help"],
    "build help": ["-m", "cli.main", "build", "--help"],
    "core": ["-c", "import earwitness"],
}
OTHERS = {"build help": "earwitness build --help", "core": "import earwitness"}
HEAVY = ("prefect", "vllm", "torch", "pyarrow", "pandas", "numpy", "librosa", "s3fs")


def started_s(command: list[str]) -> tuple[float, float]:
    """Seconds from starting a Python to its end, and its CPU seconds."""
    begun, cpu = time.perf_counter(), sum(os.times()[2:4])
    subprocess.run([sys.executable, *command], cwd=HOUSE, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun, sum(os.times()[2:4]) - cpu


def loaded_by(command: list[str]) -> list[str]:
    """Which of the heavy packages a command has imported at its end."""
    code = (
        "import runpy, sys, contextlib, io\n"
        "sys.argv = sys.argv[1:]\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    words = [sys.executable, "-c", code, *command]
    return subprocess.run(
        words, cwd=HOUSE, capture_output=True, text=True, check=True
    ).stdout.split()


def measure(repeats: int = 15) -> list[Row]:
    """Start each in turns.

    Args:
        repeats: How often; the median counts.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        started_s(command)  # once unmeasured: what is read from disk is then in memory
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            taken[name].append(started_s(command))
    median_s = {name: statistics.median(wall for wall, _ in both) for name, both in taken.items()}
    cpu_s = {name: statistics.median(cpu for _, cpu in both) for name, both in taken.items()}

    def note(name: str) -> str:
        beside = f"python -c pass, measured alternately: {median_s['nothing']:.3f} s"
        return f"CPU {cpu_s[name]:.2f} s; {beside}, CPU {cpu_s['nothing']:.2f} s"

    heavy = loaded_by(["cli.main", "--help"])
    return [
        Row(
            "start: earwitness --help",
            f"{median_s['help']:.3f} s",
            f"< {HELP_GOAL_S} s",
            median_s["help"] < HELP_GOAL_S,
            SCRIPT,
            note("help"),
        ),
        *(
            Row(f"start: {told}", f"{median_s[name]:.3f} s", "", None, SCRIPT, note(name))
            for name, told in OTHERS.items()
        ),
        Row(
            "start: heavy packages that --help imports",
            ", ".join(heavy) or "none",
            "none",
            not heavy,
            SCRIPT,
            f"checked: {', '.join(HEAVY)}",
        ),
    ]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    print_rows(measure(parser.parse_args().repeats))


if __name__ == "__main__":
    main()
