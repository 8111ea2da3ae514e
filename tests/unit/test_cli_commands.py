"""The commands that need no server: help, faults of usage, init, status, show, dry runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from test_build_publish import answered, finish, planned, rejected
from typer.main import get_command
from typer.testing import CliRunner

from cli import main as cli
from cli.options import all_options
from cli.run import rows_hint
from earwitness.audio.decode import decode
from earwitness.builds.persist import persist_shard
from earwitness.builds.publish import publish_build
from earwitness.settings import AudioSettings, BuildSettings

if TYPE_CHECKING:
    from click.testing import Result

    from earwitness.builds.layout import Build

COMMANDS = ["init", "check", "build", "status", "show", "retry", "gc", "worker"]


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "300"})


def test_the_command_line_loads_nothing_heavy_before_a_command_is_called():
    heavy = "prefect pydantic pyarrow rich yaml numpy aiohttp fsspec"
    code = f"import sys, cli.main; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_lists_every_command():
    told = run("--help")
    assert told.exit_code == 0
    assert [line.split()[0] for line in told.stdout.splitlines()[-len(COMMANDS) :]] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str):
    told = run(command, "--help")
    assert told.exit_code == 0
    assert f"earwitness {command}" in told.stdout.replace("root", "earwitness")


def test_the_help_of_build_names_every_option():
    told = run("build", "--help").stdout
    assert [option.flag for option in all_options() if option.flag not in told] == []


@pytest.mark.parametrize("columns", ["60", "80"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_by_its_whole_name(
    command: str,
    columns: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    names = [
        name
        for param in get_command(importlib.import_module(f"cli.{command}").app).params
        for name in (*param.opts, *param.secondary_opts)
        if name.startswith("-")
    ]
    words = set(shown.replace(",", " ").split())
    assert [name for name in names if name not in words] == []
    assert max(map(len, shown.splitlines())) <= int(columns)


@pytest.mark.parametrize(
    "words", [["bild"], ["build", "m.jsonl", "out", "--no-such-flag"], ["show", "out", "x"]]
)
def test_wrong_usage_ends_with_status_2(words: list[str]):
    assert run(*words).exit_code == 2


def test_new_and_build_exclude_each_other():
    assert run("build", "m.jsonl", "out", "--new", "--build", "b").exit_code == 2


def test_an_error_of_ours_is_one_line_and_status_1(tmp_path: Path):
    command = [sys.executable, "-m", "cli.main", "status", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: there is no build at {tmp_path}\n"


def test_init_writes_a_workspace_that_loads(tmp_path: Path):
    assert run("init", str(tmp_path / "new")).exit_code == 0
    settings = yaml.safe_load((tmp_path / "new" / "earwitness.yaml").read_text())
    assert BuildSettings.model_validate(settings).manifest == "manifest.jsonl"
    record = json.loads((tmp_path / "new" / "manifest.jsonl").read_text())
    clip = tmp_path / "new" / record["audio"][0]
    assert decode(clip, tmp_path / "heard.wav", AudioSettings()).duration_s == 1.0


def test_what_init_leaves_commented_out_is_valid_too(tmp_path: Path):
    run("init", str(tmp_path))
    lines = (tmp_path / "earwitness.yaml").read_text().splitlines()
    known = [f"{option.path[-1]}:" for option in all_options()] + ["vllm_args:"]
    opened = []
    for line in lines:
        commented = line.strip().startswith("# ") and line.split()[1] in known
        opened.append(line.replace("# ", "", 1) if commented else line)
    assert "\nquestion: caption" in "\n".join(opened)
    BuildSettings.model_validate(yaml.safe_load("\n".join(opened)))


def test_init_says_how_to_go_on_from_here(tmp_path: Path):
    folder = tmp_path / "my data"
    told = run("init", str(folder)).stdout
    assert f"cd '{folder}'\n  earwitness check manifest.jsonl" in told
    assert f"--model {Path(cli.__file__).parents[1] / 'demo_model' / 'weights'}" in told


def test_init_in_this_folder_says_no_cd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "cd " not in run("init").stdout


def test_the_guide_that_init_writes_holds_the_same_commands(tmp_path: Path):
    run("init", str(tmp_path))
    assert "earwitness build --config earwitness.yaml" in (tmp_path / "README.md").read_text()


def test_init_overwrites_nothing(tmp_path: Path):
    (tmp_path / "manifest.jsonl").write_text("mine")
    assert run("init", str(tmp_path)).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]
    assert (tmp_path / "manifest.jsonl").read_text() == "mine"


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Shard 0 finished, shard 1 under way."""
    made = planned(tmp_path)
    finish(made, 0, [answered(0), answered(1, reused=True)])
    persist_shard(made, 0)
    finish(made, 1, [rejected(2)])
    return made


def test_status_tells_finished_and_unfinished_shards(build: Build):
    told = run("status", build.output.root)
    assert told.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in told.stdout.splitlines())
    assert lines["build"] == build.id
    assert lines["shards"] == "1 of 2 done"
    assert lines["rows"] == "3 of 4 answered or rejected (75%)"
    assert lines["silent"] == "1"


def test_show_tells_an_answered_row_with_its_origin(build: Build):
    told = run("show", build.output.root, "0").stdout
    assert "answer 0" in told
    assert "[clip 1] What?" in told
    assert "a" * 64 in told


def test_show_says_the_line_of_the_manifest_beside_the_row(build: Build):
    assert (
        f"row 2, line 3 of the manifest, shard 1 of {build.id}"
        in run("show", build.output.root, "2").stdout
    )


def test_show_tells_a_rejection_of_an_unfinished_shard(build: Build):
    assert "rejected  silent in decode: silent" in run("show", build.output.root, "2").stdout


def test_show_tells_that_a_row_is_open(build: Build):
    assert "not answered yet" in run("show", build.output.root, "3").stdout


def test_show_prefers_what_is_published(build: Build, tmp_path: Path):
    finish(build, 1, [rejected(2), answered(3)])
    persist_shard(build, 1)
    publish_build(build)
    newer = planned(tmp_path, name="b-20261123T000000Z-bbbbbb")
    assert build.id in run("show", build.output.root, "3").stdout
    assert newer.id in run("show", build.output.root, "3", "--build", newer.id).stdout
    assert newer.id in run("status", build.output.root).stdout


def test_a_dry_run_writes_nothing_and_needs_no_engine(tmp_path: Path):
    manifest = tmp_path / "m.jsonl"
    good = {"audio": ["a.wav"], "conversation": [{"from": "human", "value": "What?"}]}
    manifest.write_text(json.dumps(good) + "\n{\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    told = run("build", str(manifest), str(tmp_path / "out"), "--dry-run", "--model", str(model))
    assert told.exit_code == 0, told.output
    lines = dict(line.split(maxsplit=1) for line in told.stdout.splitlines())
    assert lines["malformed_line"] == "1"
    assert lines["would"].startswith("start a new build")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_check_says_the_row_and_in_text_also_the_line(tmp_path: Path, kind: str):
    rows = [{"audio": ["a.wav"]}, {"audio": []}]
    if kind == "jsonl":
        manifest = tmp_path / "m.jsonl"
        manifest.write_text("\n\n".join(map(json.dumps, rows)))
    else:
        manifest = tmp_path / "m.parquet"
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), manifest)
    told = run("check", str(manifest), "--question", "caption", "--sample", "0").stdout
    place = "row 1, line 3" if kind == "jsonl" else "row 1"
    assert f"    {place}: field 'audio' is empty" in told


def test_check_says_how_many_rows_more_were_rejected_for_a_reason(tmp_path: Path):
    (tmp_path / "m.jsonl").write_text("{}\n" * 5)
    assert "    and 2 more" in run("check", str(tmp_path / "m.jsonl")).stdout


def test_rows_that_are_not_printed_are_shown_by_a_command_that_is_named():
    assert rows_hint("my out").startswith("to see row 0: earwitness show 'my out' 0 ")


def test_check_lints_and_fails_where_something_would_be_rejected(tmp_path: Path):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("{}\n")
    told = run("check", str(manifest), "--sample", "0")
    assert told.exit_code == 1
    assert "no_audio" in told.stdout
