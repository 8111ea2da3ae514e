"""`earwitness worker`: takes flow runs from a work pool and lends them this machine's engine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.build import VllmFlags, collect
from cli.options import all_options, with_options
from cli.settings_file import make_settings, note_ignored
from cli.usage import usage
from deployments.worker import GRACE_S, LIMIT, WorkerOptions, run_worker

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_ENGINE_OPTIONS = tuple(
    option
    for option in all_options()
    # a worker is where shards are answered
    if (option.panel == "Engine" and option.path != ("engine", "shards_on"))
    or option.path == ("input", "max_clips")
)


@app.command(
    cls=VllmFlags, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@with_options(_ENGINE_OPTIONS)
def worker(
    ctx: typer.Context,
    *,
    pool: Annotated[
        str,
        typer.Option(help="Name of the work pool to take flow runs from.", metavar="NAME"),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="The worker's name in the UI. Default: the machine's name and its GPUs.",
            metavar="NAME",
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            help=f"How many flow runs run at the same time. Default: {LIMIT}.",
            min=1,
            show_default=False,
        ),
    ] = LIMIT,
    grace_s: Annotated[
        float,
        typer.Option(
            help="After a stop signal, wait this many seconds for the running flow runs to finish. "
            f"Default: {GRACE_S:g}.",
            min=0,
            show_default=False,
        ),
    ] = GRACE_S,
    given: dict[str, Any],
) -> None:
    """Take flow runs from a work pool, and let them use this machine's engine.

    With --model, the worker starts an engine on the GPUs of CUDA_VISIBLE_DEVICES and keeps it
    running. All its flow runs share that engine. With --engine, its flow runs use engines that run
    already. With neither, it takes flow runs that need no engine (those of the pool "default").

    SIGTERM or Ctrl-C: the worker takes no new flow runs and waits for the running ones. A second
    signal, or the end of --grace-s, gives the running ones back to the pool. The environment
    variable PREFECT_API_URL says which Prefect server is used.

    Flags for vllm serve follow after --, for example:

      earwitness worker --pool gpu --model M -- --swap-space 8
    """
    if name is not None and ("/" in name or "%" in name):
        usage(["--name: a worker's name must not contain / or %"])
    nested = collect(ctx, given, manifest="-", output="-")
    settings = make_settings(nested, None)
    if "engine" in nested and settings.model is None and not settings.engine.url:
        usage(
            ["engine options need --model (to start an engine) or --engine (to use one that runs)"]
        )
    note_ignored(settings.engine)
    options = WorkerOptions(
        pool=pool,
        name=name,
        limit=limit,
        grace_s=grace_s,
        model=settings.model,
        engine=settings.engine,
        max_clips=settings.input.max_clips,
    )
    status = run_worker(options)
    if status:
        raise typer.Exit(status)
