"""What workers' engines say of themselves, asked as their flow runs ask them."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from processes import MARKER

from earwitness.engine.shared import KEY_VARIABLE, URL_VARIABLE

if TYPE_CHECKING:
    from pool import Pool

ANSWERED = "vllm:request_success_total"
RUNNING = "vllm:num_requests_running"


class Engines:
    """The engines of a service's workers; each is known once a shard of it was seen running.

    Attributes:
        fronts: Address and key by worker.
    """

    def __init__(self, pool: Pool) -> None:
        self.fronts: dict[str, tuple[str, str]] = {}
        self._mark = f"{MARKER}={pool.mark}"

    def look(self) -> None:
        """Learn from the environment of the flow runs that are going where their engine is."""
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                if self._mark in words:
                    given = dict(word.partition("=")[::2] for word in words)
                    if URL_VARIABLE in given:
                        address = given[URL_VARIABLE].removesuffix("/v1"), given[KEY_VARIABLE]
                        self.fronts[given["EARWITNESS_WORKER"]] = address

    def total(self, metric: str, **labels: str) -> int:
        """A metric summed over all engines and, but for those named, over its labels."""
        return sum(self._of(url, key, metric, labels) for url, key in self.fronts.values())

    def asked(self) -> int:
        """Requests answered so far."""
        return self.total(ANSWERED)

    def idle_within(self, limit_s: float) -> bool:
        """Whether within a time no engine works on any request."""
        limit = time.monotonic() + limit_s
        while self.total(RUNNING):
            if time.monotonic() > limit:
                return False
            time.sleep(0.2)
        return True

    def _of(self, url: str, key: str, metric: str, labels: dict[str, str]) -> int:
        answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=30)
        answer.raise_for_status()
        total = 0.0
        for name, told, value in re.findall(r"(?m)^([\w:]+)(?:\{(.*)\})? (\S+)$", answer.text):
            wanted = (f'{label}="{text}"' for label, text in labels.items())
            if name == metric and all(one in told for one in wanted):
                total += float(value)
        return round(total)
