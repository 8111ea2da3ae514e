"""`earwitness check`: what a build would reject, without an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.build import Config, Manifest  # noqa: TC001 - typer reads the annotation
from cli.options import options_of, with_options
from cli.settings_file import make_settings

if TYPE_CHECKING:
    from earwitness.check import Report

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@with_options(options_of("Input", "Prompt", "Audio"))
def check(
    ctx: typer.Context,
    manifest: Manifest = None,
    *,
    config: Config = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Fetch and decode the clips of this many rows, evenly spread. Default: all.",
            rich_help_panel="Run",
        ),
    ] = None,
    given: dict[str, Any],
) -> None:
    """Read MANIFEST as a build would, and say what would be rejected.

    Every line is linted; then clips are fetched and decoded. No engine, no GPU, nothing is
    written. The exit status is 0 when nothing would be rejected, else 1.
    """
    del ctx
    if manifest is not None:
        given = {**given, "manifest": manifest}
    # a check writes nothing, so that it needs no output
    settings = make_settings({"output": ".", **given}, config)
    from cli.live import View
    from cli.tables import output
    from earwitness.build.prepare import resolve_settings
    from earwitness.check import check_clips, lint_manifest, sampled

    settings = resolve_settings(settings)
    with View() as view:
        view.busy("reading the manifest: 0 rows")
        report = lint_manifest(settings)
        view.busy("")
        view.count("rows heard", sampled(report.sound, sample))
        check_clips(settings, report, sample=sample, advance=view.advance)
    _print(report)
    if report.rejected:
        raise typer.Exit(1)
    output().print("nothing would be rejected", style="green")


def _print(report: Report) -> None:
    from rich.text import Text

    from cli.tables import duration, one_line, output, print_table

    heard = f"{report.heard:,}"
    if report.heard < report.sound:
        heard += f" of {report.sound:,} that could be asked"
    lines = [
        ("rows", f"{report.rows:,}"),
        ("clips heard of rows", heard),
        ("audio", duration(report.audio_s)),
        ("would be rejected", f"{report.rejected:,}"),
    ]
    print_table(lines)
    console = output()
    ordered = sorted(report.rejections.items(), key=lambda item: -item[1].rows)
    for reason, found in ordered:
        console.print(Text.assemble("  ", (reason, "red"), f"  {found.rows:,}"))
        for row, detail in found.examples:
            console.print(Text(f"    row {row}: {one_line(detail)}"), soft_wrap=True)
        more = found.rows - len(found.examples)
        if more:
            console.print(Text(f"    and {more:,} more", style="dim"))
