"""What runs are called: by the build they make, and by what a person called them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|"
    "sigma|tau|upsilon|phi|chi|psi|omega"
)
_LAST = (
    "[abcdefghkmnpqrvxyz]|adjunct|anomaly|band|boundary|cloud|cluster|collapse|conflux|expanse|"
    "field|fringe|instability|manifold|mass|nebula|point|quadrant|reach|ring|sector|shift|tensor|"
    "terminus|vector|void|warp"
)
_FORMS_OWN = re.compile(rf"({_GREEK})(\d{{1,3}}-[a-z]*(-[a-z]+)*|-[a-z]*(-[a-z]+)*-({_LAST}))")
"""The name that Prefect's form fills in, such as `kappa6-taguchi-point`."""
_BESIDE = re.compile(r".* \((?P<build>[A-Za-z0-9][A-Za-z0-9._-]*)\)", re.DOTALL)


def run_name(build: str, now: str) -> str:
    """The name of a run: what it is about, beside what a person typed.

    Args:
        build: What the run is about: a build's id.
        now: What the run is called now: by a person, by Prefect, or by an earlier attempt.
    """
    typed = now.removesuffix(f" ({build})")
    return build if typed == build or _made_up(typed) else f"{typed} ({build})"


def build_of(run: str) -> str:
    """The id of the build in a run's name."""
    named = _BESIDE.fullmatch(run)
    return named["build"] if named else run


def _made_up(name: str) -> bool:
    """True for a name that Prefect made up: nobody typed it."""
    first, _, second = name.partition("-")
    adjectives, animals = _words()
    return bool(_FORMS_OWN.fullmatch(name)) or (first in adjectives and second in animals)


@cache
def _words() -> tuple[frozenset[str], frozenset[str]]:
    """The words that Prefect's server makes names of, such as `optimal-lemur`."""
    from coolname.data import config

    lists: dict[str, Any] = config

    def words(kind: str) -> set[str]:
        return {word for name in lists[kind]["lists"] for word in lists[name]["words"]}

    return frozenset(words("adj_any")), frozenset(words("subj"))
