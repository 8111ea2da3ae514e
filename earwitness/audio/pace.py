"""How slow a web server may be before it counts as not answering."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Bounds on one answer; the attempt as a whole is bounded besides.

    Attributes:
        answer_s: Until an answer's status and headers are there, for each redirect anew.
        silence_s: Between two pieces of a body.
        window_s: A body's speed is looked at after every so much waiting for it.
        bytes_per_s: Slower over a window than this is no answer.
        resume_bytes: A body that breaks off goes on where it stopped if at least this much came.
    """

    answer_s: float = 60.0
    silence_s: float = 60.0
    window_s: float = 30.0
    bytes_per_s: float = 1000.0
    resume_bytes: int = 65_536
