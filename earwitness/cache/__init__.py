"""What is kept between builds: outcomes by cache key, and what is known of clips by their URI."""

from earwitness.cache.segments import SegmentCache
from earwitness.cache.tables import ClipSighting, clip_cache, outcome_cache, shared_tables

__all__ = ["ClipSighting", "SegmentCache", "clip_cache", "outcome_cache", "shared_tables"]
