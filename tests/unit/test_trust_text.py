"""Texts of strangers only appear: on terminals, in the card, in errors. Data keeps them whole."""

from __future__ import annotations

import html
import io
import logging
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table
from rich.text import Text

from cli import main as cli
from cli.live import View
from cli.tables import print_table
from cli.terminal import Terminal
from earwitness.engine.failure import start_failure_reason
from earwitness.errors import EngineStartError, FatalError
from earwitness.escaping import markdown, markdown_code, markdown_lines, printable
from earwitness.progress import EngineStarting, Planned, tell

TERMINAL = [
    "\x1b[2J\x1b[31mred",  # clears the screen
    "\x1b]0;title\x07",  # renames the window
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",  # a link that says another address
    "\x9b2J",  # the same in one character
    "answer\rnot the answer",
    "\u202egpj.exe",  # reads backwards
    "\u2066abc\u2069",
    "tag\U000e0041",
    "lone \ud800 surrogate",
]
MARKUP = ["[red]x[/red]", "[link=http://evil.example]x[/link]", "[/nothing]", ":bomb:", "[bold"]
WEB = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "one | two | three",
    "`code` ``more`` ```",
    "first\n\n# heading\n\n---\nlicense: evil\n---",
    "&lt;b&gt; &#60;b&#62;",
    "*bold* _it_ ~~no~~ $x$",
    "{{ config }} {% raw %} ${x}",
    "<https://evil.example>",
    "back\\`slash",
]


@pytest.mark.parametrize("text", TERMINAL)
def test_what_a_terminal_would_obey_is_written_out(text: str):
    shown = printable(text)
    assert shown.isprintable()
    assert "\\" in shown


@given(st.text(st.characters(codec=None)))
def test_nothing_but_printable_characters_comes_out(text: str):
    allowed = {"\u200c", "\u200d"}
    for lines in (False, True):
        shown = printable(text, lines=lines)
        odd = {char for char in shown if not char.isprintable() and char not in allowed}
        assert all(unicodedata.category(char) == "Zs" for char in odd - {"\n", "\t"})
        assert lines or not odd & {"\n", "\t"}
        shown.encode()


def test_ordinary_text_of_any_language_stays_as_it_is():
    for text in ("日本語\u3000です", "क्\u200dष", "می\u200cخواهم", "naïve\u00a0— “x”", "👩\u200d🔬"):  # noqa: RUF001
        assert printable(text) == text


def shown_by(print_it) -> str:
    out = io.StringIO()
    print_it(Terminal(file=out, force_terminal=True, color_system=None, width=400))
    return out.getvalue()


def table_of(text: str) -> Table:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    return table


@pytest.mark.parametrize("text", TERMINAL + MARKUP)
@pytest.mark.parametrize("wrap", [str, Text, table_of], ids=["text", "Text", "table"])
def test_whatever_goes_through_the_terminal_only_appears(text: str, wrap):
    shown = shown_by(lambda terminal: terminal.print(wrap(text)))
    assert shown.replace("\n", "").isprintable()
    # rich itself drops a few control characters; all else is there to be read
    seen = printable(text.translate(dict.fromkeys(map(ord, "\a\b\v\f\r"))))
    assert seen in shown


@pytest.mark.parametrize("text", TERMINAL + MARKUP)
def test_a_running_build_shows_strangers_names_as_they_are(text: str):
    for terminal in (False, True):
        out = io.StringIO()
        console = Terminal(file=out, force_terminal=terminal, color_system=None, width=400)
        with View(console):
            tell(Planned(text, 3, 1, resumed=False))
            tell(EngineStarting(text, text))
            logging.getLogger("earwitness.engine").warning("died: %s", f"{text}\nbuild x: done")
        told = out.getvalue()
        assert f"build {printable(text)} (new)" in told
        assert f"{printable(text)}\\nbuild x: done" in told
        for secretly in ("\x1b[2J", "\x1b]", "\x9b", "\u202e", "\u2066", "\x07"):
            assert secretly not in told


def test_a_value_cannot_pass_for_a_line_of_ours(capsys: pytest.CaptureFixture[str]):
    print_table([("manifest", "m.jsonl\nstate     published")])
    assert capsys.readouterr().out == "manifest  m.jsonl\\nstate     published\n"


def test_errors_are_printed_without_anything_a_terminal_obeys():
    for error in (FatalError("\x1b[2J"), OSError("\x1b[2J"), EngineStartError("\x1b[2J", "log")):
        assert "\\x1b[2J" in cli._told(error)
        assert "\x1b" not in cli._told(error)


def test_an_errors_text_is_harmless_wherever_it_is_logged():
    assert str(FatalError("bad\x1b[2J\u202e")) == "bad\\x1b[2J\\u202e"
    assert str(EngineStartError("bad\x1b[2J\nnext")) == (
        "the engine did not start: bad\\x1b[2J\\nnext"
    )


def test_an_engines_last_words_are_one_harmless_line():
    assert start_failure_reason("ValueError: \x1b[2Jno\x9b model\n") == "\\x1b[2Jno\\x9b model"


def rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


@pytest.mark.parametrize("text", WEB)
def test_markdown_shows_a_strangers_text_as_it_is(text: str):
    inside = rendered(f"| a | b |\n| - | - |\n| {markdown(text)} | x |\n")
    (cells,) = [line for line in [inside] if "<table>" in line]
    body = cells.partition("<tbody>")[2]
    assert body.count("<td>") == 2
    assert html.unescape(body.split("<td>")[1].partition("</td>")[0]) == printable(text).strip()
    assert rendered(f"- {markdown_code(text)}").count("<code>") == 1
    shown = html.unescape(rendered(markdown_code(text))).strip()
    assert shown == f"<p><code>{printable(text)}</code></p>"


@given(st.text(min_size=1))
def test_no_text_at_all_becomes_markup(text: str):
    body = rendered(f"x {markdown(text)} x")
    assert set(body) - set("<p>/\n") == set(body.replace("<p>", "").replace("</p>", "")) - set(
        "<p>/\n"
    )
    assert body.count("<") == 2


def test_bare_addresses_do_not_become_links():
    assert "https://" not in markdown("https://evil.example")
    assert "www." not in markdown("WWW.evil.example www.evil.example").lower()
    assert "\\@" in markdown("me@evil.example")


def test_a_model_with_code_of_its_own_is_told_to_ask_for_it_however_long_its_path():
    said = (
        f"ValueError: The repository /{'long/' * 100} contains custom code which must be executed "
        "to correctly load the model. Please pass the argument `trust_remote_code=True`."
    )
    assert start_failure_reason(said).endswith("--trust-remote-code")


@pytest.mark.parametrize("text", [*WEB, "a - b + c 1. d 2) e = f # g " * 3])
def test_a_text_broken_into_lines_is_no_markup_either(text: str):
    shown = rendered(markdown_lines(text, 2))
    assert shown.count("<p>") == 1
    assert re.sub(r"<br ?/>|</?p>|\s", "", html.unescape(shown)) == re.sub(
        r"\s", "", printable(text)
    )
    assert not re.search(r"<(ul|ol|li|h\d|hr|table|em|strong|s|a|img|script)\b", shown)
