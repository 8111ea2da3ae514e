"""Benchmarks: one script a measure, and `python -m benchmarks` runs them all."""
