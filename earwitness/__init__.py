"""earwitness: audio in, question-answer dataset out, every night, no row lost.

    import earwitness
    answers = earwitness.load("out")            # a pandas DataFrame
    rejected = earwitness.load_rejected("out")

The core below this package imports neither Prefect nor vLLM.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["__version__", "load", "load_rejected"]

try:
    __version__ = version("earwitness")
except PackageNotFoundError:  # run from a bare checkout
    __version__ = "0+unknown"


def load(output: str, build: str | None = None) -> pd.DataFrame:
    """A published dataset as a DataFrame, in row order.

    Args:
        output: Folder or URL given to `earwitness build`.
        build: A published build's id. Default: the newest.

    Returns:
        The manifest's fields with nullable types, clips by their absolute addresses, the answer,
        and the provenance struct as columns `earwitness.row`, `earwitness.finish_reason`, ….

    Raises:
        BuildNotFoundError: Nothing is published there.
    """
    from earwitness.builds.load import load_answers

    return load_answers(output, build)


def load_rejected(output: str, build: str | None = None) -> pd.DataFrame:
    """The rejections of a published dataset as a DataFrame, in row order.

    Args:
        output: Folder or URL given to `earwitness build`.
        build: A published build's id. Default: the newest.

    Returns:
        The manifest's fields, clips by their absolute addresses, and `earwitness.row`, `.stage`,
        `.reason`, `.detail`, `.transient`.

    Raises:
        BuildNotFoundError: Nothing is published there.
    """
    from earwitness.builds.load import load_rejections

    return load_rejections(output, build)
