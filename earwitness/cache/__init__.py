"""What is kept between builds: outcomes by cache key, and what is known of clips by their URI."""

from earwitness.cache.lookup import Lookup, StoredTable
from earwitness.cache.tables import ClipRecord

__all__ = ["ClipRecord", "Lookup", "StoredTable"]
