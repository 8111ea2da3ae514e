"""`earwitness check`: what a build would reject, without an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.build import Config, Manifest, collect
from cli.help import Command
from cli.options import all_options, options_of, with_options
from cli.settings_file import make_settings

if TYPE_CHECKING:
    from earwitness.builds.account import Basis
    from earwitness.builds.layout import Build
    from earwitness.check import Report

NOWHERE = "."
"""Stands for an output that was not given."""
_PRICE = tuple(one for one in all_options() if one.path == ("engine", "price_per_hour"))

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    cls=Command, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@with_options((*options_of("Input", "Prompt", "Audio"), *_PRICE))
def check(
    ctx: typer.Context,
    manifest: Manifest = None,
    output: Annotated[
        str | None,
        typer.Argument(
            help="Folder or URL with earlier builds, to estimate engine time and reuse from them.",
            metavar="OUTPUT",
        ),
    ] = None,
    *,
    config: Config = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Fetch and decode the clips of only this many rows, evenly spread. Default: all.",
            rich_help_panel="Run",
        ),
    ] = None,
    given: dict[str, Any],
) -> None:
    """Read MANIFEST as a build would, and say what would be rejected.

    Every line is checked first, then the clips are fetched and decoded. It needs no engine and no
    GPU, and writes nothing. The exit status is 0 if nothing would be rejected, otherwise 1.

    With OUTPUT it also estimates the engine time, from the newest build published there, and
    counts the answers that are stored there already.
    """
    given = collect(ctx, given, manifest, output)
    # a check writes nothing, so that it needs no output
    settings = make_settings(given, config, {"output": NOWHERE})
    from cli import tables
    from cli.live import View
    from earwitness.builds.prepare import resolve_settings
    from earwitness.check import check_clips, lint_manifest, sampled

    named = settings.output != NOWHERE
    settings = resolve_settings(settings)
    stored, basis = _earlier(settings.output) if named else (None, None)
    with View() as view:
        view.busy("reading the manifest: 0 rows")
        report = lint_manifest(settings)
        view.busy("")
        view.count("rows checked", sampled(report.sound, sample))
        check_clips(settings, report, sample=sample, stored=stored, advance=view.advance)
    price = settings.engine.price_per_hour
    _print(report, _estimate(report, basis, price, named=named))
    if report.rejected:
        raise typer.Exit(1)
    tables.output().print("nothing would be rejected", style="green")


def _earlier(output: str) -> tuple[Build | None, Basis | None]:
    """The newest published build, and what it knows of an answer's cost."""
    from earwitness.builds.layout import Build
    from earwitness.builds.publish import known_basis, latest_build

    name = latest_build(output)
    found = Build(output, name)
    stored = found if name and found.store.exists("plan.json") else None
    return stored, known_basis(output)


def _estimate(
    report: Report, basis: Basis | None, price: float | None, *, named: bool
) -> list[tuple[str, str]]:
    if basis is None:
        if named:
            why = "no published build in OUTPUT says what an answer takes"
        else:
            why = "give OUTPUT as second argument to estimate it from earlier builds"
        return [("engine time", f"not known: {why}")]
    from earwitness.builds.account import estimate

    rows = report.expected(report.asked)
    reused = None if report.known is None or not report.heard else report.expected(report.known)
    return estimate(basis, rows, reused=reused, price_per_hour=price).lines()


def _print(report: Report, estimated: list[tuple[str, str]]) -> None:
    from rich.text import Text

    from cli.tables import one_line, output, print_table
    from earwitness.builds.account import span

    heard = f"{report.heard:,}"
    if report.heard < report.sound:
        heard += f" of {report.sound:,} that passed the line check"
    lines = [
        ("rows", f"{report.rows:,}"),
        ("rows with clips decoded", heard),
        ("audio", span(report.audio_s)),
        ("would be rejected", f"{report.rejected:,}"),
        *estimated,
    ]
    print_table(lines)
    console = output()
    ordered = sorted(report.rejections.items(), key=lambda item: -item[1].rows)
    for reason, found in ordered:
        console.print(Text.assemble("  ", (reason, "red"), f"  {found.rows:,}"))
        for place, detail in found.examples:
            console.print(Text(f"    {place}: {one_line(detail)}"), soft_wrap=True)
        more = found.rows - len(found.examples)
        if more:
            console.print(Text(f"    and {more:,} more", style="dim"))
