"""Running a chosen build: lease, Prefect, flow, progress, and what is told at the end."""

from __future__ import annotations

import importlib
import os
import shlex
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import typer

from cli.live import View
from cli.main import DEBUG_VARIABLE, INTERRUPTED
from cli.stopping import StoppedError, stoppable
from cli.tables import output, print_rows, print_summary
from deployments.temporary_server import prefect_api, quiet_prefect
from earwitness.builds.layout import Counts
from earwitness.builds.lease import lease
from earwitness.errors import EarwitnessError
from earwitness.heap import bound_heap

if TYPE_CHECKING:
    from earwitness.builds.layout import Build
    from earwitness.settings import BuildSettings

PRINTED_ROWS = 50
"""Up to this many rows, every answer and rejection is printed unless told otherwise."""


def run_build(settings: BuildSettings, build: Build, *, rows_too: bool | None = None) -> None:
    """Run a build to its end and say what came of it.

    Args:
        settings: Resolved settings.
        build: The build to make or continue.
        rows_too: Print a line for each row. Default: for small builds.

    Raises:
        EarwitnessError: The build did not come to its end.
        typer.Exit: It was stopped with Ctrl-C.
    """
    bound_heap()
    quiet_prefect(debug=bool(os.environ.get(DEBUG_VARIABLE)))
    view = View()
    try:
        with view, stoppable(lambda: view.busy("stopping"), lambda: _abandon(view)):
            counts = _run(settings, build, view)
    except StoppedError:
        view.say(_stopped(view))
        raise typer.Exit(INTERRUPTED) from None
    except EarwitnessError:
        if view.tally.done:
            view.say(f"not published: {view.tally.done:,} of {view.tally.rows:,} rows are done")
        raise
    if rows_too or (rows_too is None and counts.rows <= PRINTED_ROWS):
        print_rows(build)
    print_summary(build, counts, view.closed)
    if rows_too is None and counts.rows > PRINTED_ROWS:
        output().print(rows_hint(settings.output), soft_wrap=True)


def rows_hint(where: str) -> str:
    """How to see rows that were not printed.

    Args:
        where: The output that was built.
    """
    return f"to see row 0: earwitness show {shlex.quote(where)} 0 (--print prints all rows)"


def _run(settings: BuildSettings, build: Build, view: View) -> Counts:
    # the lease goes last: until then nobody else may take the build up
    with ExitStack() as stack:
        stack.enter_context(lease(build))
        view.busy("starting Prefect")
        stack.enter_context(prefect_api(lambda: _import("flows.build_dataset")))
        from flows.build_dataset import build_dataset

        view.busy("starting the build")
        names = type(settings).model_fields
        parameters: dict[str, Any] = {name: getattr(settings, name) for name in names}
        # a function: a text would be a template
        flow = build_dataset.with_options(flow_run_name=lambda: build.id)
        state = flow(**{**parameters, "build": build.id}, return_state=True)
        return Counts.model_validate(state.result())


def _import(module: str) -> None:
    importlib.import_module(module)


def _stopped(view: View) -> str:
    tally = view.tally
    known = f" after {tally.done:,} of {tally.rows:,} rows" if tally.rows else ""
    return f"stopped{known}: run the same command again to continue"


def _abandon(view: View) -> None:
    with suppress(Exception):
        view.stop()
        view.say(_stopped(view))
