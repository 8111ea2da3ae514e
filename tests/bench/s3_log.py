"""What rclone's log says of calls to its S3 server, by operation."""

from __future__ import annotations

import re
from collections import Counter

_OPERATIONS = (
    ("HEAD", re.compile(r"serve s3: HEAD OBJECT \S+ (?P<key>.*)")),
    ("GET", re.compile(r"serve s3: GET OBJECT Bucket: \S+ Object: (?P<key>.*)")),
    ("PUT", re.compile(r"serve s3: CREATE OBJECT: \S+ (?P<key>.*)")),
    # each listing has a second line, "LIST BUCKET", that does not say of what
    ("LIST", re.compile(r'serve s3: bucketname: \S+ prefix: prefix:"(?P<key>[^"]*)"')),
    ("DELETE", re.compile(r"serve s3: (?:DELETE|delete multi) ?(?P<key>.*)")),
)


def count_calls(log: str, clips: str = "clips/") -> Counter[str]:
    """Calls in a part of the log.

    Args:
        log: What rclone wrote with `-vv` while they were made.
        clips: Part of clips' keys: reading one is a `GET clip`.
    """
    found: Counter[str] = Counter()
    for line in log.splitlines():
        if "serve s3: " not in line:
            continue
        for name, pattern in _OPERATIONS:
            if called := pattern.search(line):
                clip = name == "GET" and clips in called["key"] and "cache/" not in called["key"]
                found["GET clip" if clip else name] += 1
                break
    return found
