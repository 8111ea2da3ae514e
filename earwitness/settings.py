"""Every setting, defined once: the command line, YAML files and flow parameters all read this.

What people change from build to build is a field of `BuildSettings` itself; the rest lives in
five small models. `frozen()` is the part that two runs must share to be the same build.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from earwitness.access import AccessPolicy, check_allowed, make_policy
from earwitness.addresses import parent_uri

QUESTIONS = {
    "caption": "Describe the sound in this audio clip.",
    "transcribe": "Transcribe the speech in this audio clip.",
}
"""Short names for `question`."""

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
"""Qwen2-Audio's own default system prompt (its chat template adds it when none is given)."""


def _allowed(entry: str) -> str:
    check_allowed(entry)
    return entry


def _names(given: Any) -> Any:
    """Names as one text with commas, as the command line gives them, or as a list."""
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list | tuple):
        return given
    texts = [name.split(",") if isinstance(name, str) else [name] for name in listed]
    return [name.strip() if isinstance(name, str) else name for text in texts for name in text]


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        # settings are stored as JSON, which has no word for NaN and infinities
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # in a form a setting has the name it has everywhere else
        field_title_generator=lambda name, _field: name,
    )


class TooLong(StrEnum):
    """What happens to a clip longer than the model hears."""

    REJECT = "reject"
    CUT = "cut"


class Silence(StrEnum):
    """What happens to a clip that is silent throughout."""

    REJECT = "reject"
    KEEP = "keep"


class Format(StrEnum):
    """A format data files are written in."""

    PARQUET = "parquet"
    JSONL = "jsonl"


class InputSettings(_Model):
    """How to read other people's manifests."""

    audio_root: str | None = None
    """Folder or URL that relative clip paths start from. Default: the manifest's own folder."""
    audio_column: str = "audio"
    """Field that holds a record's clips."""
    conversation_column: str = "conversation"
    """Field that holds a record's conversation."""
    max_line_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20
    """A manifest line longer than this is rejected unread."""
    max_clips: Annotated[int, Field(ge=1)] = 16
    """A record with more clips than this is rejected; also the engine's limit per prompt."""
    ignore_fields: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Fields that mean something else to other tools (`offset`, `system`, `tools`, …) and are only
    carried through here, separated by commas; without this a manifest with such fields is
    refused."""
    trusted: bool | None = None
    """A trusted manifest may name any local file and any host; one that is not, only folders below
    `audio_root`, public addresses and what `allow` names. Default: a local manifest is trusted."""
    allow: tuple[Annotated[str, AfterValidator(_allowed)], ...] = ()
    """Where clips may come from besides: a folder (with a slash), a host, `host:port`, an address
    or a network (`10.0.0.0/8`)."""
    clip_timeout_s: Annotated[float, Field(gt=0)] = 300
    """One attempt at fetching one clip may take this long."""


class AudioSettings(_Model):
    """Limits and policies for clips. These decide outcomes, so they are part of the cache key."""

    sample_rate_hz: Annotated[int, Field(ge=8000, le=48000)] = 16_000
    """Rate the model hears at."""
    min_duration_s: Annotated[float, Field(ge=0)] = 0.05
    """Shorter clips are rejected (vLLM refuses clips under about 0.03 s)."""
    max_duration_s: Annotated[float, Field(gt=0)] | None = None
    """Longest clip the model hears. Default: the model's own limit, else 30 s."""
    too_long: TooLong = TooLong.REJECT
    """Reject longer clips, or cut them (recorded as `heard_s` < `duration_s`)."""
    silence: Silence = Silence.REJECT
    """Reject silent clips, or ask about them all the same."""
    silence_dbfs: Annotated[float, Field(le=0)] = -60.0
    """A clip is silent when its peak stays below this, in dB of full scale."""
    max_clip_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """Larger objects are rejected without being downloaded."""


class SamplingSettings(_Model):
    """How answers are sampled; field names are vLLM's."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.3
    """How freely words are chosen; 0: always the likeliest."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Choose among the likeliest words that together reach this probability."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Choose among this many likeliest words; -1 or 0: no limit."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1: words said before become less likely."""
    seed: int | None = 0
    """Each request's own seed derives from this and from what is asked; none: requests have no
    seed, so that vLLM samples them together, faster, and differently each time."""


class EngineSettings(_Model):
    """The engine. Fields named like vLLM's flags are passed to `vllm serve` as they are."""

    url: tuple[str, ...] = ()
    """Addresses of engines that run already (`http://gpu1:8000/v1`); none: start one."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    hub_cache: str | None = None
    """Folder of the hub's cache. Default: the hub's own."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that share one copy of the model."""
    data_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Copies of the model on this machine."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each GPU's memory vLLM takes. Default: vLLM's."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Longest context in tokens, question and answer together. Default: the model's."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 128
    """Requests the engine answers at once; about 1.1 times as many are kept in flight."""
    dtype: str | None = None
    """Number format of the weights (`float32`, `bfloat16`, …). Default: the model's."""
    quantization: str | None = None
    """How the weights are quantized. Default: what the model says."""
    chat_template: str | None = None
    """File with a chat template instead of the model's own, or the template itself."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless asked for."""
    api_server_count: Annotated[int, Field(ge=1)] | None = None
    """Processes that prepare audio for the engine. Default: by cores."""
    vllm_args: tuple[str, ...] = ()
    """Any other flags for `vllm serve`, word by word (on the command line: what follows `--`)."""
    python: str | None = None
    """Interpreter that has vLLM, where it lives in an environment of its own."""
    command: tuple[str, ...] = ()
    """Another command to start instead of `vllm serve`; it gets the same flags."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 1800
    """How long the engine may take to start."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 600
    """A request unanswered for this long is given up (a transient rejection)."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 300
    """An engine with requests in flight that shows no sign of life for this long is restarted."""
    max_restarts: Annotated[int, Field(ge=0)] = 5
    """How often an engine that dies is started again within one build."""
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """What an hour of one engine costs with all its GPUs, in any currency: builds report what they
    cost, checks what they would."""
    shards_on: str | None = None
    """Deployment that answers shards on a worker pool. Default: `build-shard/gpu` when the build
    itself runs as a deployment; otherwise shards are answered here."""


class LayoutSettings(_Model):
    """How a build is cut up and written."""

    name: str | None = None
    """First part of the build's id. Default: the output's last folder."""
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = (Format.PARQUET, Format.JSONL)
    """Formats data files are written in."""
    answer_column: str = "answer"
    """Field the answer is written to."""
    provenance_column: str = "earwitness"
    """Field the provenance struct is written to."""
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    """Records a shard: the unit of scheduling and of retry."""
    batch_rows: Annotated[int, Field(ge=1, le=100_000)] = 512
    """Records a batch: the unit of pipelining and of checkpoints."""
    window_batches: Annotated[int, Field(ge=1, le=64)] = 3
    """Batches in flight at once; bounds memory, scratch and what a kill can cost."""
    shards_in_flight: Annotated[int, Field(ge=1, le=1000)] = 32
    """Shards handed to a worker pool at once; the others wait their turn in the build's run."""


class BuildSettings(_Model):
    """One build: which manifest, to where, which model, asked how."""

    manifest: str
    """Path or URL of the manifest: JSONL (.gz, .zst) or Parquet."""
    output: str
    """Folder or URL the dataset is published under."""
    model: str | None = None
    """Local folder, hub id, or the name a given engine serves."""
    question: str | None = None
    """Asks records that bring audio alone: a text, `@FILE`, `caption` or `transcribe`."""
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    """Leads every conversation that brings none of its own; empty: none."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer, in tokens."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Publish only if at most this share of the rows is rejected."""
    build: str | None = None
    """Id of the build to make or continue. Default: chosen (see `earwitness build --help`)."""
    engine: EngineSettings = EngineSettings()
    sampling: SamplingSettings = SamplingSettings()
    audio: AudioSettings = AudioSettings()
    input: InputSettings = InputSettings()
    layout: LayoutSettings = LayoutSettings()

    @field_validator("output")
    @classmethod
    def _strip_slash(cls, value: str) -> str:
        return value.rstrip("/") or "/"

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        ours = (self.layout.answer_column, self.layout.provenance_column)
        theirs = (self.input.audio_column, self.input.conversation_column)
        names = [*ours, *theirs]
        if len(set(names)) < len(names):
            message = f"columns must have different names, not {', '.join(names)}"
            raise ValueError(message)
        return self

    def access(self) -> AccessPolicy:
        """Where clips may come from; symbolic links are resolved as this machine has them."""
        return make_policy(
            self.manifest,
            self.input.audio_root or parent_uri(self.manifest),
            trusted=self.input.trusted,
            allow=self.input.allow,
        )

    def frozen(self) -> dict[str, Any]:
        """What makes a build this build: two runs that differ here are different builds.

        Returns:
            The settings without the gates, limits and machinery that may change on resume
            (`max_rejected`, `build`, addresses, parallelism, time-outs, the window).
        """
        return self.model_dump(
            mode="json",
            exclude={
                "output": True,
                "build": True,
                "max_rejected": True,
                "engine": {
                    "url",
                    # the commit it stood for is in the model's identity
                    "revision",
                    "hub_cache",
                    "tensor_parallel_size",
                    "data_parallel_size",
                    "gpu_memory_utilization",
                    "max_num_seqs",
                    "api_server_count",
                    "python",
                    "command",
                    "start_timeout_s",
                    "request_timeout_s",
                    "stall_timeout_s",
                    "max_restarts",
                    "shards_on",
                    "price_per_hour",
                },
                # a manifest with a field that changes what is asked is refused, not planned
                "input": {"clip_timeout_s", "ignore_fields"},
                "layout": {"window_batches", "shards_in_flight"},
            },
        )

    def frozen_digest(self) -> str:
        """Hex SHA-256 over `frozen()`."""
        text = json.dumps(self.frozen(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()
