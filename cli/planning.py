"""From settings to a chosen build: what `build` does before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.run import run_build
from cli.settings_file import note_ignored
from cli.tables import output, print_table, reason_lines
from earwitness.builds.choose import choose_build
from earwitness.builds.prepare import resolve_model, resolve_settings
from earwitness.manifest.read import open_manifest

if TYPE_CHECKING:
    from earwitness.builds.choose import Choice
    from earwitness.settings import BuildSettings


def start(settings: BuildSettings, *, new: bool, rows_too: bool | None) -> None:
    """Choose a build and run it.

    Args:
        settings: As given.
        new: Start another one even where one could be continued.
        rows_too: Print a line for each row.
    """
    settings = resolve_settings(settings)
    note_ignored(settings.engine)
    # a manifest that is not there is told at once, not when Prefect is up
    open_manifest(settings.manifest, max_line_bytes=settings.input.max_line_bytes).close()
    run_build(settings, _choose(settings, new=new).build, rows_too=rows_too)


def dry(settings: BuildSettings, *, new: bool) -> None:
    """Say what `start` would do. Nothing is written, no engine is started.

    Args:
        settings: As given.
        new: Start another one even where one could be continued.
    """
    from cli.live import View
    from earwitness.check import lint_manifest

    settings = resolve_settings(settings)
    note_ignored(settings.engine)
    with View() as view:
        view.busy("reading the manifest: 0 rows")
        report = lint_manifest(settings)
        view.busy("looking for a build to continue")
        choice = _choose(settings, new=new)
    size = settings.layout.shard_rows
    lines = [
        ("rows", f"{report.rows:,}"),
        ("shards", f"{-(-report.rows // size):,} of up to {size:,} rows"),
        ("would be asked", f"{report.sound:,}"),
        ("would be rejected", f"{report.rejected:,}"),
        *reason_lines({reason: found.rows for reason, found in report.rejections.items()}),
    ]
    print_table(lines)
    output().print(_told(choice), soft_wrap=True)


def _choose(settings: BuildSettings, *, new: bool) -> Choice:
    _, model = resolve_model(settings)
    return choose_build(settings, model, new=new)


def _told(choice: Choice) -> str:
    if not choice.continued:
        return f"would start a new build under {choice.build.output.root}"
    if choice.build.published:
        return f"{choice.build.id} is already published: nothing would be done"
    shards, left = len(choice.build.plan.shards), len(choice.build.missing_shards())
    return f"would continue {choice.build.id}: {shards - left} of {shards} shards are done"
