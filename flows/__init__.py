"""Orchestration only: which task after which, how many at once, what a retry does."""
