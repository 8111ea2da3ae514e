"""`earwitness build`: a manifest in, a published dataset out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.help import Command
from cli.options import all_options, with_options
from cli.settings_file import make_settings
from cli.usage import usage

_VLLM_FLAGS = "vllm flags"


class VllmFlags(Command):
    """A command whose words after `--` are flags for vLLM, not arguments of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what follows `--` aside; parse the rest."""
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta[_VLLM_FLAGS] = args[cut + 1 :]
        return super().parse_args(ctx, args[:cut])


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Manifest = Annotated[
    str | None,
    typer.Argument(
        help="Path or URL of the manifest: JSON lines (also .gz, .zst) or Parquet.",
        metavar="MANIFEST",
    ),
]
Output = Annotated[
    str | None,
    typer.Argument(help="Folder or URL that the dataset is written to.", metavar="OUTPUT"),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with settings (earwitness init writes one). Options given here win.",
        metavar="FILE",
        rich_help_panel="Run",
    ),
]
Print = Annotated[
    bool | None,
    typer.Option(
        "--print/--no-print",
        help="At the end, print one line for each row. Default: only if there are at most 50.",
        show_default=False,
        rich_help_panel="Run",
    ),
]


@app.command(
    cls=VllmFlags, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@with_options(all_options())
def build(
    ctx: typer.Context,
    manifest: Manifest = None,
    output: Output = None,
    *,
    config: Config = None,
    new: Annotated[
        bool,
        typer.Option(
            "--new",
            help="Start a new build, even if an earlier one could be continued.",
            rich_help_panel="Run",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Read the manifest and say what would be done, without doing it.",
            rich_help_panel="Run",
        ),
    ] = False,
    rows_too: Print = None,
    given: dict[str, Any],
) -> None:
    """Build a dataset from MANIFEST and publish it under OUTPUT.

    The same command, run again, continues a build that was interrupted: the newest unpublished
    build of OUTPUT with the same settings, model and manifest. An answer that a build of OUTPUT
    already has is reused, not asked for again.

    Flags for vllm serve follow after --, for example:

      earwitness build clips.jsonl out -- --enforce-eager
    """
    settings = make_settings(collect(ctx, given, manifest, output), config)
    if new and settings.build is not None:
        usage(["--new and --build cannot be used together: --new chooses the id itself"])
    from cli.planning import dry, start

    if dry_run:
        dry(settings, new=new)
    else:
        start(settings, new=new, rows_too=rows_too)


def collect(
    ctx: typer.Context, given: dict[str, Any], manifest: str | None, output: str | None
) -> dict[str, Any]:
    """What the command line gives, nested like the settings."""
    found = dict(given)
    if manifest is not None:
        found["manifest"] = manifest
    if output is not None:
        found["output"] = output
    flags = ctx.meta.get(_VLLM_FLAGS)
    if flags:
        found["engine"] = {**found.get("engine", {}), "vllm_args": flags}
    return found
