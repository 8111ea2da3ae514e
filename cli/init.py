"""`earwitness init`: a workspace to start from."""

from __future__ import annotations

import json
import math
import struct
import wave
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

_RATE_HZ = 16_000
_BEEP_S = 1.0
_BEEP_HZ = 440.0
_LOUDNESS = 0.3
_FADE_S = 0.02

SETTINGS = """\
# earwitness build --config earwitness.yaml
#
# Everything here is also an option (earwitness build --help), and an option wins over this file.
# Names are nested here: --max-tokens is max_tokens, --temperature is temperature under sampling.
# Paths start from the folder the command is run in.

manifest: manifest.jsonl      # or s3://bucket/clips.jsonl.gz, https://…, clips.parquet
output: out                   # or s3://bucket/out

model: Qwen/Qwen2-Audio-7B-Instruct   # a local folder, or a hub id
# question: caption           # asks records that bring no conversation: a text, @FILE,
                              # caption or transcribe
# system_prompt: You are a helpful assistant.
max_tokens: 256
max_rejected: 0.5             # publish only if at most this share of the rows is rejected

engine:
  # url: [http://gpu1:8000/v1]     # engines that run already; without it vLLM is started
  tensor_parallel_size: 1          # GPUs the model is spread over
  # gpu_memory_utilization: 0.9
  # price_per_hour: 3.5            # what the machine costs: builds then tell theirs in money
  # vllm_args: [--enforce-eager]   # any other flag of vllm serve, word by word

sampling:
  temperature: 0.3
  top_p: 0.9
  seed: 0

audio:
  too_long: reject            # or cut: hear the first part of clips that are too long
  silence: reject             # or keep
  # max_duration_s: 30        # default: what the model hears

layout:
  formats: [parquet, jsonl]
"""

GUIDE = """\
1. Put your clips and questions into manifest.jsonl (one JSON object a line) and your model into
   earwitness.yaml; `earwitness check manifest.jsonl` says what would be rejected.
2. `earwitness build --config earwitness.yaml`; the dataset is under out/builds/, and
   `python -c 'import earwitness; print(earwitness.load("out"))'` shows it.
"""


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def init(
    folder: Annotated[
        Path, typer.Argument(help="Where to. Default: the working folder.", metavar="DIR")
    ] = Path(),
) -> None:
    """Write a settings file, a sample manifest with one clip, and a short guide into DIR.

    Nothing that is there is overwritten.
    """
    files = {
        folder / "earwitness.yaml": SETTINGS.encode(),
        folder / "manifest.jsonl": _manifest(),
        folder / "README.md": GUIDE.encode(),
    }
    clip = folder / "clips" / "beep.wav"
    there = [str(path) for path in [*files, clip] if path.exists()]
    if there:
        from cli.settings_file import usage

        usage([f"{', '.join(there)}: there already, and nothing is overwritten"])
    clip.parent.mkdir(parents=True, exist_ok=True)
    _write_beep(clip)
    for path, data in files.items():
        path.write_bytes(data)
    for path in [*files, clip]:
        typer.echo(f"wrote {path}")
    typer.echo(GUIDE.rstrip())


def _manifest() -> bytes:
    record = {
        "id": 1,
        "audio": ["clips/beep.wav"],
        "conversation": [{"from": "human", "value": "What do you hear?"}],
    }
    return (json.dumps(record) + "\n").encode()


def _write_beep(path: Path) -> None:
    """A second of a tone, faded in and out so that it does not click."""
    frames = int(_RATE_HZ * _BEEP_S)
    fade = _RATE_HZ * _FADE_S
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE_HZ)
        for frame in range(frames):
            gain = _LOUDNESS * min(1.0, frame / fade, (frames - frame) / fade)
            level = gain * math.sin(2 * math.pi * _BEEP_HZ * frame / _RATE_HZ)
            file.writeframesraw(struct.pack("<h", round(level * 32767)))
