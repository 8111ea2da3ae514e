"""`earwitness init`: a workspace to start from."""

from __future__ import annotations

import json
import math
import shlex
import struct
import wave
from pathlib import Path
from typing import Annotated

import typer

from cli.help import Command
from cli.usage import usage
from earwitness.escaping import listed

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_RATE_HZ = 16_000
_BEEP_S = 1.0
_BEEP_HZ = 440.0
_LOUDNESS = 0.3
_FADE_S = 0.02

SETTINGS = """\
# earwitness build --config earwitness.yaml
#
# Each setting here is also an option (see earwitness build --help). Options win over this file.
# In this file the settings are in groups: --temperature is temperature under sampling.
# Relative paths start from the folder that the command is run in.

manifest: manifest.jsonl      # or s3://bucket/clips.jsonl.gz, https://…, clips.parquet
output: out                   # or s3://bucket/out

model: Qwen/Qwen2-Audio-7B-Instruct   # a local folder, or a hub id
# question: caption           # for records without a conversation: a text, @FILE,
                              # caption or transcribe
# system_prompt: You are a helpful assistant.
max_tokens: 256
max_rejected: 0.5             # publish only if at most this share of the rows is rejected

engine:
  # url: [http://gpu1:8000/v1]     # engines that run already; default: start vLLM
  tensor_parallel_size: 1          # number of GPUs for the model
  # gpu_memory_utilization: 0.9
  # price_per_hour: 3.5            # price of the machine: reports then show the cost
  # vllm_args: [--enforce-eager]   # any other flag of vllm serve, word by word

sampling:
  temperature: 0.3
  top_p: 0.9
  # seed: 1                  # reproducible sampling, which can be slower

audio:
  too_long: reject            # or cut: use the first part of clips that are too long
  silence: reject             # or keep
  # max_duration_s: 30        # default: what the model hears

layout:
  formats: [parquet, jsonl]
"""

GUIDE = """\
Next steps:
{cd}\
  earwitness check manifest.jsonl              # what a build would reject; needs no GPU
  earwitness build --config earwitness.yaml    # the dataset goes to out/
  python -c 'import earwitness; print(earwitness.load("out"))'

Put your own clips and questions into manifest.jsonl, one JSON object a line, and the name of your
model into earwitness.yaml.
{demo}"""

_DEMO = """
To try it without a GPU, use the demo model, which knows only a few sounds:
  earwitness build --config earwitness.yaml --model {model}
"""
_CHECKOUT = Path(__file__).parents[1]


@app.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
def init(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder to write to. Default: this one.", metavar="DIR", show_default=False
        ),
    ] = Path(),
) -> None:
    """Write a settings file, a sample manifest with one clip, and a short guide into DIR.

    Files that exist already are not overwritten.
    """
    _write(folder)
    guide = GUIDE.format(
        cd=f"  cd {shlex.quote(str(folder))}\n" if folder != Path() else "", demo=_demo()
    )
    typer.echo(guide.rstrip())


def _write(folder: Path) -> None:
    clip = folder / "clips" / "beep.wav"
    files = {
        folder / "earwitness.yaml": SETTINGS.encode(),
        folder / "manifest.jsonl": _manifest(),
        folder / "README.md": GUIDE.format(cd="", demo=_demo()).encode(),
    }
    if folder.is_file():
        usage([f"{folder} is a file: name a folder to write to"])
    there = [str(path.relative_to(folder)) for path in [*files, clip] if path.exists()]
    if there:
        usage([f"{folder} already has {listed(there, 3)}: name a new or empty folder"])
    clip.parent.mkdir(parents=True, exist_ok=True)
    _write_beep(clip)
    for path, data in files.items():
        path.write_bytes(data)
    for path in [*files, clip]:
        typer.echo(f"wrote {path}")


def _demo() -> str:
    """How to use the demo model, where this checkout has it."""
    weights = _CHECKOUT / "demo_model" / "weights"
    if not (weights / "config.json").exists():
        return ""
    return _DEMO.format(model=shlex.quote(str(weights)))


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
