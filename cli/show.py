"""`earwitness show`: one row with all that is known of it, or a build with its counts and cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from cli.help import Command
from cli.status import Where  # noqa: TC001 - typer reads the annotation
from earwitness.escaping import printable

if TYPE_CHECKING:
    from rich.console import Console

    from earwitness.builds.layout import Build
    from earwitness.builds.show import RowResult
    from earwitness.records import Json, Message, PlannedRow

_MARGIN = 11
"""As wide as what stands before a turn or an answer."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    cls=Command, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
def show(
    output: Where,
    row: Annotated[
        int | None,
        typer.Argument(
            help="The row's number in the manifest, from 0. Default: show the build.",
            metavar="ROW",
        ),
    ] = None,
    *,
    build: Annotated[
        str | None,
        typer.Option(
            "--build",
            help="Id of a build. Default: the newest published one, or else the newest.",
            metavar="ID",
        ),
    ] = None,
) -> None:
    """Show one row of a build: its conversation, clips, and answer or rejection.

    Without ROW, show the build: its counts, its engine time and its cost.
    """
    from cli import tables
    from earwitness.builds.choose import existing_build
    from earwitness.builds.show import show_row

    found = existing_build(output, build, published=True)
    if row is None:
        _show_build(found)
        return
    shown = show_row(found, row)
    console = tables.output()
    line = found.plan.manifest.line_of(row)
    place = f"row {row}" if line is None else f"row {row}, line {line} of the manifest"
    console.print(f"{place}, shard {shown.shard} of {found.id}", style="bold", soft_wrap=True)
    _print_record(console, shown.planned)
    for message in shown.planned.messages:
        _print_turn(console, message)
    _print_result(console, shown.result)
    tables.print_table(_provenance(shown.result, found.plan.model))


def _show_build(build: Build) -> None:
    from cli import tables
    from earwitness.builds.account import account_lines
    from earwitness.builds.layout import Counts

    facts = build.facts()
    tables.output().print(build.id, style="bold", soft_wrap=True)
    lines = tables.count_lines(Counts.model_validate(facts["counts"]))
    tables.print_table([*lines, *account_lines(facts.get("account"))])


def _print_record(console: Console, planned: PlannedRow) -> None:
    from rich.text import Text

    for number, clip in enumerate(planned.clips):
        shown = Text.assemble((f"clip {number + 1}  ", "dim"), printable(clip))
        console.print(shown, soft_wrap=True)
    if planned.rejection is not None and planned.record is not None:
        line = json.dumps(planned.record, ensure_ascii=False)
        console.print(Text.assemble(("record  ", "dim"), line), soft_wrap=True)


def _print_turn(console: Console, message: Message) -> None:
    from rich.text import Text

    line = Text(f"{message['role']:>9}  ", style="cyan")
    for part in message["content"]:
        if part["type"] == "text":
            line.append(_below(part["text"]), style="default")
        else:
            line.append(f"[clip {part['clip'] + 1}] ", style="magenta")
    console.print(line, soft_wrap=True)


def _below(text: str) -> str:
    """A text whose further lines stand below its first one: they cannot pass for lines of ours."""
    return printable(text, lines=True).replace("\n", f"\n{' ' * _MARGIN}")


def _print_result(console: Console, result: RowResult) -> None:
    from rich.text import Text

    if result.answer is not None:
        line = Text.assemble(("   answer  ", "green"), _below(result.answer))
    elif result.rejection is not None:
        why = result.rejection
        line = Text.assemble(
            (f" rejected  {why.reason}", "red"), f" in {why.stage}: {_below(why.detail)}"
        )
    else:
        line = Text("     open  not answered yet", style="yellow")
    console.print(line, soft_wrap=True)


def _provenance(result: RowResult, model: Json) -> list[tuple[str, str]]:
    if result.answer is None:
        return []
    origin = result.provenance
    lines = [
        ("model", f"{model['name']} ({model['kind']} {model['version']})".replace(" )", ")")),
        ("finish reason", str(origin["finish_reason"])),
        (
            "tokens",
            f"{origin['prompt_tokens']} in the prompt, {origin['completion_tokens']} in the answer",
        ),
        ("cache key", str(origin["cache_key"])),
    ]
    for number, clip in enumerate(origin["clips"]):
        length = f"{clip['duration_s']:g} s"
        if clip["heard_s"] < clip["duration_s"]:
            length += f", of which the model heard {clip['heard_s']:g} s"
        lines.append((f"clip {number + 1}", f"sha256 {clip['sha256']}, {length}"))
    return lines
