"""How hard property tests try (`HYPOTHESIS_PROFILE=thorough` for an evening), and how patiently."""

from __future__ import annotations

import os

from hypothesis import settings

# a storage that a test takes down is down for good
os.environ.setdefault("EARWITNESS_STORAGE_PATIENCE_S", "5")

# no deadlines: the machines tests run on are shared, and a slow moment is no bug
settings.register_profile("quick", max_examples=15, deadline=None)
settings.register_profile("thorough", max_examples=2_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
