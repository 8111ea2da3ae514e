"""Texts from outside, made harmless where people read them: on terminals, in logs, as Markdown.

What is stored as data is never changed; this is for showing it.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_JOINERS = "\u200c\u200d"
"""Zero-width, and needed to write Persian, Hindi and many emoji; they hide nothing."""
_WEB = re.compile(r"(?i)\bwww\.")
_LINE_MARK = re.compile(r"^(\d*)([-+=.)])")
_BACKTICKS = re.compile("`+")
# what starts markup, a link, a template's tag or a mention; `:` keeps bare addresses from linking
_MARKDOWN = str.maketrans(
    {char: f"\\{char}" for char in "\\`*_{}[]#~!$@:"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "|": "&#124;"}
)


def printable(text: Any, *, lines: bool = False) -> str:
    r"""A text that does nothing to a terminal or a log but appear in it.

    Control characters (a terminal's escape sequences begin with one), line breaks, characters
    that turn the reading direction, invisible tags and lone surrogates are written as `\x1b`,
    `\n`, `\u202e`, `\ud800`.

    Args:
        text: Anything; shown as `str` shows it.
        lines: Keep line breaks and tabs.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    kept = _JOINERS + ("\n\t" if lines else "")
    return "".join(
        char if char.isprintable() or char in kept or _is_space(char) else _named(char)
        for char in shown
    )


def listed(names: Iterable[str], most: int, *, separator: str = ", ") -> str:
    """Names in a row, `a, b and 2 more` where there are more than can be shown.

    Args:
        names: What is listed.
        most: How many are named.
        separator: Stands between two.
    """
    every = list(names)
    more = len(every) - most
    shown = separator.join(every[:most])
    return f"{shown} and {more:,} more" if more > 0 else shown


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it has to be."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _is_space(char: str) -> bool:
    """Wide, narrow and unbreakable spaces: Chinese and French text is full of them."""
    return unicodedata.category(char) == "Zs"


def _named(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def markdown(text: Any) -> str:
    """A text that Markdown shows as it is, in one line: no markup, link, HTML or template.

    Args:
        text: Anything; shown as `str` shows it.
    """
    return _WEB.sub(lambda found: f"{found.group()[:-1]}\\.", printable(text).translate(_MARKDOWN))


def markdown_lines(text: Any, width: int) -> str:
    """A text as `markdown` shows it, broken into lines where a table's cell would cut it.

    Args:
        text: Anything; shown as `str` shows it.
        width: Characters a line; a longer word has a line to itself.
    """
    lines = textwrap.wrap(printable(text), width, break_long_words=False, break_on_hyphens=False)
    # at the start of a line these would begin a list or a heading
    return "\\\n".join(_LINE_MARK.sub(r"\1\\\2", markdown(line)) for line in lines)


def markdown_code(text: Any) -> str:
    """A text as a Markdown code span, whatever backticks it holds; not for table cells.

    Args:
        text: Anything; shown as `str` shows it.
    """
    shown = printable(text)
    longest = max((len(run) for run in _BACKTICKS.findall(shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"
