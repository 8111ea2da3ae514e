"""`earwitness retry`: run again what failed, or ask rejected rows again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.build import Print, VllmFlags, collect
from cli.options import all_options, machinery, with_options
from cli.settings_file import make_settings, merge, note_ignored
from cli.status import Where  # noqa: TC001 - typer reads the annotation
from earwitness.settings import EngineSettings

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_OPTIONS = (
    *machinery(),
    # part of what a build is, and never taken from storage: it has to be said again
    *(option for option in all_options() if option.path == ("engine", "trust_remote_code")),
)


@app.command(
    cls=VllmFlags, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@with_options(_OPTIONS)
def retry(
    ctx: typer.Context,
    output: Where,
    *,
    build: Annotated[
        str | None,
        typer.Option(
            "--build",
            help="Id of a build. Default: the newest unpublished one; with --reason, the newest.",
            metavar="ID",
            rich_help_panel="Run",
        ),
    ] = None,
    reason: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask again the rows that were rejected for this reason. May be repeated.",
            metavar="REASON",
            rich_help_panel="Run",
        ),
    ] = None,
    rows_too: Print = None,
    given: dict[str, Any],
) -> None:
    """Run again what failed in a build of OUTPUT, with the settings it was planned with.

    Without --reason, the unfinished build is continued. Rows that failed because of a temporary
    fault, such as a time-out, are asked again.

    With --reason, a new build is made over the same rows. Rows that were rejected for that reason
    are asked again, and all other results are reused.

    Settings that can run other people's code (--trust-remote-code, and some flags for vLLM after
    --) are not taken from the earlier build. Give them again.
    """
    given = collect(ctx, given, None, None)
    from cli.run import run_build
    from earwitness.builds.retry import build_to_retry, source_to_retry
    from earwitness.builds.stored import continued_engine

    source = source_to_retry(output, build, with_reason=bool(reason))
    engine = continued_engine(source.plan.settings.engine, given.get("engine", {}))
    base = {
        **source.plan.settings.model_dump(mode="json"),
        "engine": engine.model_dump(mode="json"),
        "max_rejected": source.gates.max_rejected,
        "build": None,
    }
    base["engine"]["price_per_hour"] = source.gates.price_per_hour
    if source.plan.model["kind"] == "hub":  # its branch may have moved since
        base["engine"]["revision"] = source.plan.model["version"]
    checked = make_settings(merge(base, given), None)
    note_ignored(EngineSettings.model_validate(given.get("engine", {})))
    target = build_to_retry(source, reason) if reason else source
    run_build(checked, target, rows_too=rows_too)
