"""Qwen2-Audio-7B's real shape with dummy weights: how near a whole build comes to the GPU's peak.

    python -m benchmarks.gpu            one GPU, 3,000 clips, API servers 1, 2, 4 and 8
    python -m benchmarks.gpu --tiny     on the CPU, the model cut down, to see that it works

Nothing is downloaded: the config is the public model's, the tokenizer is made, the weights are
vLLM's dummies, the clips are noise of 2 to 30 seconds, every answer has 100 tokens. It takes
about half an hour, and 5 GB of disk under --folder; with --api-servers 4 --clips 1500 a few
minutes. What it prints is explained in docs/performance.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from benchmarks.gpu.comparison import TINY, Scale, compare, has_gpu, not_measured, rows
from benchmarks.table import print_rows


def main() -> None:
    """Read the command line and measure."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=form
    )
    parser.add_argument("--tiny", action="store_true", help="on the CPU, everything in small")
    parser.add_argument("--clips", type=int, help="how many (default: 3000)")
    parser.add_argument("--tokens", type=int, help="length of every answer (default: 100)")
    parser.add_argument("--slots", type=int, help="the engine's --max-num-seqs (default: 256)")
    parser.add_argument("--api-servers", type=int, nargs="+", help="counts (default: 1 2 4 8)")
    parser.add_argument("--folder", type=Path, help="where it works (default: a temporary folder)")
    given = parser.parse_args()
    if not given.tiny and not has_gpu():
        parser.error("nvidia-smi finds no GPU here; --tiny tries the script on the CPU")
    chosen = {
        "clips": given.clips,
        "tokens": given.tokens,
        "slots": given.slots,
        "api_servers": given.api_servers and tuple(given.api_servers),
    }
    scale = dataclasses.replace(
        TINY if given.tiny else Scale(), **{k: v for k, v in chosen.items() if v is not None}
    )
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=given.folder) as folder:
        found = compare(scale, Path(folder))
    print_rows(not_measured(found) if scale.tiny else rows(found))


if __name__ == "__main__":
    main()
