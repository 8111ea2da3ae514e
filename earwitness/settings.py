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
    ValidationInfo,
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


def _shape_form(schema: dict[str, Any]) -> None:
    # PostgreSQL orders the keys of what it stores; a form shows fields by these numbers
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position
        # a form offers these to choose from, by their titles
        for choice in field.get("anyOf", ()):
            choice.setdefault("title", "Default" if choice.get("type") == "null" else "Set")


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        # settings are stored as JSON, which has no word for NaN and infinities
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # in a form a setting has the name it has everywhere else
        field_title_generator=lambda name, _field: name,
        # what a person clicks to open a group
        model_title_generator=lambda _model: "Change",
        json_schema_extra=_shape_form,
    )


class TooLong(StrEnum):
    """What happens to a clip that is longer than the model hears."""

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
    """Name of the field with a record's clips."""
    conversation_column: str = "conversation"
    """Name of the field with a record's conversation."""
    max_line_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20
    """Reject a manifest line that is longer than this, in bytes."""
    max_clips: Annotated[int, Field(ge=1)] = 16
    """Reject a record with more clips than this. It is also the engine's limit per prompt."""
    ignore_fields: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Fields that have another meaning in other tools (`offset`, `system`, `tools`, …) and are only
    carried through here, separated by commas. Without this a manifest with such fields is
    refused."""
    trusted: bool | None = None
    """A trusted manifest may name any local file and any host. An untrusted one may name only files
    below `audio_root`, public addresses, and what `allow` names. Default: trust local manifests."""
    allow: tuple[Annotated[str, AfterValidator(_allowed)], ...] = ()
    """Another place that clips may come from: a folder (with a slash), a host, `host:port`, an IP
    address or a network (`10.0.0.0/8`)."""
    clip_timeout_s: Annotated[float, Field(gt=0)] = 300
    """Time out an attempt to fetch a clip after this many seconds."""


class AudioSettings(_Model):
    """Limits and policies for clips. A changed limit asks only about the clips it concerns."""

    sample_rate_hz: Annotated[int, Field(ge=8000, le=48000)] = 16_000
    """Sample rate of the audio that the model gets, in Hz."""
    min_duration_s: Annotated[float, Field(ge=0)] = 0.05
    """Reject clips shorter than this, in seconds (vLLM refuses clips under about 0.03 s)."""
    max_duration_s: Annotated[float, Field(gt=0)] | None = None
    """Longest clip that the model hears, in seconds. Default: the model's own limit, or 30."""
    too_long: TooLong = TooLong.REJECT
    """What to do with clips over max_duration_s: reject them, or cut them (rows say so)."""
    silence: Silence = Silence.REJECT
    """What to do with silent clips: reject them, or keep them and ask about them."""
    silence_dbfs: Annotated[float, Field(le=0)] = -60.0
    """A clip is silent if its peak is below this level, in dB of full scale."""
    max_clip_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """Reject files larger than this, in bytes, without downloading them."""


class SamplingSettings(_Model):
    """How answers are sampled; field names are vLLM's."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.3
    """Randomness of the answers. 0: always take the likeliest word."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Choose only among the likeliest words that together have this probability."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Choose only among this many likeliest words. -1 or 0: no limit."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1: words that were used before become less likely."""
    seed: int | None = None
    """Makes sampling reproducible: each request gets a seed made from this number and its question.
    vLLM then samples requests one by one, which can be slower. Has no effect at temperature 0.
    Default: no seed."""

    @field_validator("seed")
    @classmethod
    def _no_seed_where_nothing_is_drawn(cls, seed: int | None, info: ValidationInfo) -> int | None:
        """At temperature 0 all seeds give the same answers: they share keys, and none is sent."""
        return None if info.data.get("temperature") == 0 else seed


class EngineSettings(_Model):
    """The engine. Fields named like vLLM's flags are passed to `vllm serve` as they are."""

    url: tuple[str, ...] = ()
    """Address of an engine that runs already (`http://gpu1:8000/v1`). Default: start an engine."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub."""
    hub_cache: str | None = None
    """Folder of the hub's cache. Default: the hub's usual folder."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Number of GPUs that one copy of the model is spread over."""
    data_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Number of copies of the model on this machine."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each GPU's memory that vLLM uses, up to 1. Default: vLLM's own."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a question and its answer together. Default: the model's own limit."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 128
    """Number of requests that the engine answers at the same time."""
    dtype: str | None = None
    """Number format of the weights (float32, bfloat16, …). Default: the model's own."""
    quantization: str | None = None
    """Quantization method of the weights. Default: as the model says."""
    chat_template: str | None = None
    """A chat template, or a file with one, to use instead of the model's own."""
    trust_remote_code: bool = False
    """Allow the model's own Python code to run. Default: not allowed."""
    api_server_count: Annotated[int, Field(ge=1)] | None = None
    """Number of processes that prepare audio for the engine. Default: from the CPU cores."""
    vllm_args: tuple[str, ...] = ()
    """Any other flags for `vllm serve`, word by word (on the command line: what follows `--`)."""
    python: str | None = None
    """Python interpreter with vLLM, if vLLM is installed in another environment."""
    command: tuple[str, ...] = ()
    """Command to start instead of vllm serve. It gets the same flags."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 1800
    """Fail if the engine has not started after this many seconds."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 600
    """Time out a request after this many seconds. Its row is asked again later."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 300
    """Restart an engine that has requests but shows no activity for this many seconds."""
    max_restarts: Annotated[int, Field(ge=0)] = 5
    """How many times an engine that ends for no known reason is restarted. The count starts again
    when it has run for an hour."""
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one engine with all its GPUs for an hour, in any currency. Reports then show the
    cost."""
    shards_on: str | None = None
    """Deployment that runs the shards on a worker pool. Default: build-shard/gpu if the build runs
    as a deployment; otherwise the shards run in the build's own process."""


class LayoutSettings(_Model):
    """How a build is cut up and written."""

    name: str | None = None
    """First part of the build's id. Default: the last folder of the output."""
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = (Format.PARQUET, Format.JSONL)
    """File formats of the dataset."""
    answer_column: str = "answer"
    """Name of the field that the answer is written to."""
    provenance_column: str = "earwitness"
    """Name of the field that describes where the answer comes from."""
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    """Number of rows in a shard. Shards are scheduled and retried one by one."""
    batch_rows: Annotated[int, Field(ge=1, le=100_000)] = 512
    """Number of rows in a batch. Results are saved after each batch."""
    window_batches: Annotated[int, Field(ge=1, le=64)] = 3
    """Number of batches worked on at the same time. More need more memory and disk space."""
    shards_in_flight: Annotated[int, Field(ge=1, le=1000)] = 32
    """Number of shards given to a worker pool at the same time. The others wait."""


class BuildSettings(_Model):
    """One build: which manifest, to where, which model, asked how."""

    manifest: str
    """Path or URL of the manifest: JSON lines (also .gz, .zst) or Parquet."""
    output: str
    """Folder or URL that the dataset is written to."""
    model: str | None = None
    """The model: a local folder, an id on the hub, or the name that a given engine serves."""
    question: str | None = None
    """Question for records without a conversation: a text, `@FILE`, `caption` or `transcribe`."""
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    """System prompt for conversations without one. An empty text: no system prompt."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Most tokens of an answer. Longer answers are cut."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Publish only if at most this share of the rows is rejected, from 0 to 1."""
    build: str | None = None
    """Id of the build to make or continue. Default: chosen (see earwitness build --help)."""
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

    @property
    def clip_root(self) -> str:
        """Folder or URL that relative clip paths start from."""
        return self.input.audio_root or parent_uri(self.manifest)

    def access(self) -> AccessPolicy:
        """Where clips may come from; symbolic links are resolved as this machine has them."""
        return make_policy(
            self.manifest,
            self.clip_root,
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
