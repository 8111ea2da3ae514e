"""Where Prefect keeps task results: with us, never where others may write.

A stored result names the code that reads it: `pickle`, or any function for Prefect's `json`. So
whoever can write there runs what they like in our flow runs, whatever serializer we chose.
"""

from __future__ import annotations

import os
from pathlib import Path

from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from earwitness.errors import SettingsError


def private_results() -> Path:
    """This machine's own folder for results, made sure to be nobody else's.

    A default result storage that is configured for Prefect (a bucket, say) is not used.

    Raises:
        SettingsError: The folder is another user's.
    """
    folder = Path(PREFECT_LOCAL_STORAGE_PATH.value())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise SettingsError(
            f"the folder {folder} belongs to another user: set PREFECT_LOCAL_STORAGE_PATH to a "
            "folder of your own"
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder
