"""Where everything of a build lies, and the three small documents that describe it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict

from earwitness.builds.account import Account
from earwitness.errors import BuildNotFoundError, BuildVersionError
from earwitness.records import Json
from earwitness.settings import BuildSettings
from earwitness.storage import Store
from earwitness.strict_json import json_document

PLAN_VERSION = 3
"""Raised when a build's files, or the keys of its stored answers, mean something else."""
_READERS = 16

TABLES = ("outcomes", "clips")
"""Folders of a build that later builds look into: outcomes by cache key, clips by URI."""

FILE_FOLDERS = ("data", "jsonl", "rejected", *TABLES)
"""Folders of a build that hold what receipts name."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """The document as it is stored."""
        return json_document(self.model_dump(mode="json"))


class ShardPlan(_Document):
    """One shard of a plan: which rows, and the digest of the file that holds them."""

    first_row: int
    rows: int
    rejected: int
    sha256: str


class ManifestFacts(_Document):
    """The manifest as it was when the build was planned.

    Attributes:
        line_a_row: True where row N stands in line N + 1: a text file without empty lines.
    """

    uri: str
    stamp: str
    sha256: str
    bytes: int
    line_a_row: bool = False

    def line_of(self, row: int) -> int | None:
        """The line that a row stands in, counted from 1; None where that is not known."""
        return row + 1 if self.line_a_row else None


class Plan(_Document):
    """A frozen build: once this is stored nothing re-plans.

    Attributes:
        settings: Resolved settings: addresses absolute, the question's text, the model's limits.
        identity: What two runs must share to be the same build (see `plan.plan_identity`).
        question_digest: What all cache keys of the build share.
        base: Id of the build whose same shard is looked into first; empty: there is none.
        sources: Ids of all builds whose outcomes and clips this one reuses, newest first.
        fields: The output schema, as `OutputFields` writes it.
    """

    version: int = PLAN_VERSION
    earwitness: str
    build: str
    planned_at: str
    manifest: ManifestFacts
    settings: BuildSettings
    model: Json
    identity: str
    question_digest: str
    base: str = ""
    sources: tuple[str, ...] = ()
    fields: Json
    rows: int
    shards: tuple[ShardPlan, ...]


class Gates(_Document):
    """What may change when a build is continued.

    Attributes:
        max_rejected: Largest share of rejections that is published.
        retry_reasons: Remembered rejections with these reasons are asked again.
        price_per_hour: What an hour of an engine costs.
    """

    max_rejected: float
    retry_reasons: tuple[str, ...] = ()
    price_per_hour: float | None = None


def first_gates(settings: BuildSettings) -> Gates:
    """The gates a build is planned with."""
    price = settings.engine.price_per_hour
    return Gates(max_rejected=settings.max_rejected, price_per_hour=price)


class StoredFile(_Document):
    """A file a receipt vouches for."""

    path: str
    sha256: str
    bytes: int
    rows: int


class Counts(_Document):
    """A ledger: rows = answered + rejected, answered = generated + reused."""

    rows: int = 0
    answered: int = 0
    generated: int = 0
    reused: int = 0
    rejected: int = 0
    transient: int = 0
    reasons: dict[str, int] = {}
    cut_by_max_tokens: int = 0
    audio_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def balanced(self) -> bool:
        """True when no row is lost or counted twice."""
        return (
            self.rows == self.answered + self.rejected
            and self.answered == self.generated + self.reused
            and self.rejected == sum(self.reasons.values())
        )

    def __add__(self, other: Counts) -> Counts:
        reasons = dict(self.reasons)
        for reason, count in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        numbers = {
            name: getattr(self, name) + getattr(other, name)
            for name in type(self).model_fields
            if name != "reasons"
        }
        return Counts(reasons=dict(sorted(reasons.items())), **numbers)


class Receipt(_Document):
    """Written last when a shard is whole; the shard is done if and only if it is there.

    Attributes:
        files: What the shard consists of.
        engine: Version of the engine that was asked last; empty when nothing was.
        worker: Name of the worker that did it; empty without one.
        account: What its answers cost.
    """

    shard: int
    counts: Counts
    files: tuple[StoredFile, ...]
    engine: str = ""
    worker: str = ""
    account: Account = Account()


class Build:
    """One build's folder on storage.

    Args:
        output: Folder or URL datasets are published under.
        build: The build's id.
    """

    def __init__(self, output: str, build: str) -> None:
        self.output = Store(output)
        self.id = build
        self.store = self.output.sub(f"builds/{build}")

    @classmethod
    def at(cls, uri: str) -> Build:
        """The build at `OUTPUT/builds/<id>`."""
        output, _, build = uri.rstrip("/").rpartition("/builds/")
        return cls(output, build)

    @property
    def uri(self) -> str:
        """The build's address; what flows hand to each other."""
        return self.store.root

    @cached_property
    def plan(self) -> Plan:
        """The frozen plan; its output is where the build lies now, wherever it was planned.

        Raises:
            BuildNotFoundError: The build does not exist or was never planned to the end.
            BuildVersionError: Another version of earwitness planned it.
        """
        try:
            data = self.store.read_bytes("plan.json")
        except FileNotFoundError:
            raise BuildNotFoundError(
                f"there is no planned build at {self.uri} (plan.json is missing)"
            ) from None
        self._check_version(data)
        plan = Plan.model_validate_json(data)
        # an output that was moved or copied is continued where it is, not where it was
        here = plan.settings.model_copy(update={"output": self.output.root})
        return plan.model_copy(update={"settings": here})

    def _check_version(self, plan: bytes) -> None:
        found = json.loads(plan)
        version = found.get("version") if isinstance(found, dict) else None
        if version != PLAN_VERSION:
            raise BuildVersionError(
                f"another version of earwitness planned the build {self.uri} (its plan has version "
                f"{version}, this earwitness reads version {PLAN_VERSION}), and its stored answers "
                "cannot be reused: build into another output folder"
            )

    @property
    def gates(self) -> Gates:
        """The gates as last set."""
        try:
            return Gates.model_validate_json(self.store.read_bytes("gates.json"))
        except FileNotFoundError:
            return first_gates(self.plan.settings)

    def set_gates(self, gates: Gates) -> None:
        """Change the gates of a build that is continued."""
        self.store.write_bytes("gates.json", gates.to_bytes())

    @property
    def published(self) -> bool:
        """True once `build.json` is there."""
        return self.store.exists("build.json")

    def facts(self) -> dict[str, Any]:
        """`build.json` of a published build.

        Raises:
            BuildNotFoundError: The build is not published.
        """
        try:
            facts: dict[str, Any] = json.loads(self.store.read_bytes("build.json"))
        except FileNotFoundError:
            raise BuildNotFoundError(f"the build {self.uri} is not published") from None
        return facts

    def receipt(self, shard: int) -> Receipt | None:
        """A shard's receipt, or None while the shard is not done."""
        try:
            return Receipt.model_validate_json(self.store.read_bytes(receipt_path(shard)))
        except FileNotFoundError:
            return None

    def done_shards(self) -> set[int]:
        """Numbers of the shards that have a receipt (one listing, whatever the build's size).

        For people: storage may list a receipt a while after it was written.
        """
        return {
            int(path.removeprefix("receipts/shard-").removesuffix(".json"))
            for path in self.store.sizes("receipts")
        }

    def missing_shards(self) -> list[int]:
        """Numbers of the shards still to do, in order: what no listing shows is asked for."""
        open_shards = self._unlisted_shards()
        with ThreadPoolExecutor(_READERS) as pool:
            done = list(pool.map(self.has_receipt, open_shards))
        return [number for number, there in zip(open_shards, done, strict=True) if not there]

    def whole(self) -> bool:
        """True when every shard has its receipt; cheap while one has none."""
        return all(map(self.has_receipt, self._unlisted_shards()))

    def has_receipt(self, shard: int) -> bool:
        """True when a shard is done."""
        return self.store.exists(receipt_path(shard))

    def _unlisted_shards(self) -> list[int]:
        done = self.done_shards()
        return [number for number in range(len(self.plan.shards)) if number not in done]


def shard_path(shard: int) -> str:
    """The rows of a shard."""
    return f"plan/shard-{shard:05d}.jsonl"


def receipt_path(shard: int) -> str:
    """The receipt of a shard."""
    return f"receipts/shard-{shard:05d}.json"


def work_path(shard: int) -> str:
    """The folder of a shard's unfinished work."""
    return f"work/shard-{shard:05d}"
