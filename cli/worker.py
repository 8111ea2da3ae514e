"""`earwitness worker`: what runs on a machine that takes flow runs from a work pool."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.build import VllmFlags, collect
from cli.options import all_options, with_options
from cli.settings_file import make_settings, usage
from deployments.worker import GRACE_S, LIMIT, WorkerOptions, run_worker

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

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
        typer.Option(help="Work pool to take flow runs from.", metavar="NAME"),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="The worker's name in the UI. Default: the machine's, with the GPUs it was given.",
            metavar="NAME",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Flow runs at once.", min=1)] = LIMIT,
    grace_s: Annotated[
        float,
        typer.Option(help="How long runs may go on once it was told to stop, in seconds.", min=0),
    ] = GRACE_S,
    given: dict[str, Any],
) -> None:
    """Take flow runs from a work pool, and lend them this machine's engine.

    With --model it starts an engine over the GPUs of CUDA_VISIBLE_DEVICES, keeps it running and
    shares it out among its flow runs; with --engine it lends them engines that run already; with
    neither it takes runs that need none (those of the pool default).

    SIGTERM or Ctrl-C: no new runs, those under way finish; a second one, or the end of --grace-s,
    hands them back to the pool. The Prefect server is the one of PREFECT_API_URL.

    Any flag of vllm serve may follow after --, word by word:
    earwitness worker --pool gpu --model DIR --tensor-parallel-size 2 -- --enforce-eager
    """
    if name is not None and ("/" in name or "%" in name):
        usage(["--name: a worker's name holds neither / nor %"])
    nested = collect(ctx, given, manifest="-", output="-")
    settings = make_settings(nested, None)
    if "engine" in nested and settings.model is None and not settings.engine.url:
        usage(["engine options need --model (start an engine) or --engine (use one that runs)"])
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
