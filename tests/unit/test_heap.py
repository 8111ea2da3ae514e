"""Memory that was freed goes back to the system."""

from pathlib import Path

from earwitness.heap import trim_heap


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_what_was_freed_between_what_lives_on_is_given_back():
    things = [bytes([n % 256]) * 4000 for n in range(16_000)]
    kept = things[::50]
    del things
    before_mib = resident_mib()
    trim_heap()
    assert resident_mib() < before_mib - 30
    assert len(kept) == 320
