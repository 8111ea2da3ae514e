"""What Prefect shows, sends and stores: no stranger's markup, no template, no pickle."""

from __future__ import annotations

import ast
import html
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from test_build_publish import planned
from test_trust_text import WEB, rendered
from workbench import record, tone, write_clip, write_manifest

from earwitness.builds.layout import Counts, Receipt
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Callable


ROOT = Path(__file__).parents[2]
_TASKS = "plan resolve fetch validate decode generate persist publish"
_FLOWS = "build_dataset build_shard retry_failed_shards"
TASKS = [f"tasks.{name}" for name in _TASKS.split()]
MODULES = [*TASKS, *(f"flows.{name}" for name in _FLOWS.split())]
HOSTILE = " ".join(WEB)
SEALED = ("<script", "<img", "<a ", "<hr", "<h3", "<em", "<strong", "<s>", "<code>code")


def posted(tell: Callable[[], None], key: str) -> Any:
    """An artifact's data, as the server has it after a flow run that tells something."""
    from prefect import flow
    from prefect.artifacts import Artifact

    flow(name="telling")(tell)()
    found = Artifact.get(key, _sync=True)
    assert found is not None
    return found.data


@pytest.mark.usefixtures("prefect_server")
def test_a_shards_message_is_no_markup_in_the_table(tmp_path: Path):
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Failed

    from tasks.artifacts import ShardsTable, artifact_key

    build = planned(tmp_path)

    def tell() -> None:
        table = ShardsTable(build)
        state = Failed(name=HOSTILE, message=f"Flow run encountered an exception: {HOSTILE}")
        table.note(0, FlowRun(id=uuid4(), flow_id=uuid4(), state=state))
        table.done(Receipt(shard=0, counts=Counts(), files=(), worker=HOSTILE))
        table.show(now=True)

    (row,) = posted(tell, artifact_key("shards", build))
    for column in ("state", "worker", "message"):
        shown = rendered(row[column])
        assert [tag for tag in SEALED if tag in shown] == []
        assert "alert(1)" in html.unescape(shown)
    assert rendered(row["shard"]).count("<a ") == 1


@pytest.mark.usefixtures("prefect_server")
def test_a_builds_summary_is_no_place_for_markup(tmp_path: Path):
    from tasks.artifacts import artifact_key, post_summary

    folder = tmp_path / "`<img src=x>` [click](javascript:a) {{ x }}"
    folder.mkdir()
    build = planned(folder)
    counts = Counts(rows=1, reasons={HOSTILE: 1})
    text = posted(lambda: post_summary(build, counts), artifact_key("summary", build))
    shown = rendered(text)
    assert [tag for tag in SEALED if tag in shown] == []
    assert shown.count("<td>") + shown.count("<td ") == 2 * 6


def test_a_notification_fills_strangers_texts_in_and_never_renders_them():
    from prefect.server.utilities.user_templates import (
        TemplateSecurityError,
        render_user_template_sync,
        validate_user_template,
    )

    from deployments.automations import failed_build

    (action,) = failed_build(uuid4()).actions
    text = "{{ 7 * 7 }} {% for x in y %} <script>alert(1)</script> <http://evil|click> <!channel>"
    run = SimpleNamespace(name=text, state=SimpleNamespace(name=text, message=text))
    for template in (action.subject, action.body):
        try:
            validate_user_template(template)
        except TemplateSecurityError as error:
            pytest.fail(str(error))
        context = {"flow": SimpleNamespace(name="build-dataset"), "flow_run": run}
        told = render_user_template_sync(template.replace("|ui_url", ""), context)
        told = told.split("namespace(")[0]
        assert "{{ 7 * 7 }} {% for x in y %}" in told
        assert "49" not in told
        assert "<" not in told
        assert "alert(1)" in told
    nothing = SimpleNamespace(name="x", state=SimpleNamespace(name="Failed", message=None))
    context = {"flow": SimpleNamespace(name="build-dataset"), "flow_run": nothing}
    assert ": Failed\n\n" in render_user_template_sync(action.body.replace("|ui_url", ""), context)


def test_a_runs_name_is_never_taken_for_a_template():
    """Prefect fills a text in with `str.format`: a build's id from storage must not be one."""
    wrong = []
    for package in ("tasks", "flows", "deployments", "cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg in {"flow_run_name", "task_run_name"}:
                    fixed = isinstance(node.value, ast.Constant | ast.Lambda | ast.Name)
                    called = isinstance(node.value, ast.Call) and "cast(" in ast.unparse(node.value)
                    if not (fixed or called):
                        wrong.append(f"{path}: {ast.unparse(node.value)}")
    assert wrong == []


def test_a_signed_manifests_signature_is_no_part_of_a_runs_name():
    from prefect._internal.engine import resolve_custom_task_run_name

    from tasks.plan import plan

    settings = BuildSettings(manifest="https://h/m.jsonl?X-Amz-Signature=hidden", output="o")
    told = resolve_custom_task_run_name(plan, {"settings": settings})
    assert told == "plan https://h/m.jsonl?X-Amz-Signature=***"


@pytest.mark.usefixtures("prefect_server")
def test_a_parameter_is_never_taken_for_a_template():
    from prefect.client.orchestration import get_client

    from flows.build_shard import build_shard

    text = "s3://b/{{ 7 * 7 }}/{{ prefect.variables.x }}/{{ prefect.blocks.secret.y }}"
    given = {"build": text, "shard": 0}
    with get_client(sync_client=True) as client:
        flow = client.create_flow(build_shard)
        deployment = client.create_deployment(flow, name="templates", parameters={"build": text})
        run = client.create_flow_run_from_deployment(deployment, parameters=given)
        assert client.read_deployment(deployment).parameters == {"build": text}
        assert client.read_flow_run(run.id).parameters == given


def runnable() -> list[Any]:
    from prefect import Flow, Task

    found: dict[int, Any] = {}
    for module in MODULES:
        for item in vars(importlib.import_module(module)).values():
            if isinstance(item, Flow | Task):
                found[id(item)] = item
    return list(found.values())


def test_no_flow_or_task_keeps_results_but_one_and_that_one_as_json():
    every = runnable()
    assert len(every) >= 11
    assert {one.result_serializer for one in every} == {"json"}
    assert [one.name for one in every if one.persist_result is not False] == ["generate"]


class Opened:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.usefixtures("prefect_server")
def test_a_planted_result_is_not_read(tmp_path: Path):
    from prefect.filesystems import LocalFileSystem
    from prefect.results import ResultStore
    from prefect.serializers import PickleSerializer
    from prefect.settings import (
        PREFECT_DEFAULT_RESULT_STORAGE_BLOCK,
        PREFECT_LOCAL_STORAGE_PATH,
        temporary_settings,
    )

    from flows.build_shard import _generate
    from tasks.generate import generate

    bucket = LocalFileSystem(basepath=str(tmp_path / "bucket"))
    bucket.save("others-may-write", overwrite=True)
    settings = {
        PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: "local-file-system/others-may-write",
        PREFECT_LOCAL_STORAGE_PATH: tmp_path / "mine",
    }
    (tmp_path / "mine").mkdir(mode=0o777)
    (tmp_path / "mine").chmod(0o777)
    trace = tmp_path / "opened"
    with temporary_settings(settings):
        planted = ResultStore(result_storage=bucket, serializer=PickleSerializer())
        planted.write(Opened(trace), key="known-key")
        # the attack works: whoever reads there is had, though `generate` is set to JSON
        ResultStore(cache_result_in_memory=False).update_for_task(generate).read("known-key")
        assert trace.exists()
        trace.unlink()
        ours = ResultStore(cache_result_in_memory=False).update_for_task(_generate())
        assert not ours.exists("known-key")
        assert ours.result_storage.basepath == str(tmp_path / "mine")
    assert not trace.exists()
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700


def test_results_in_another_users_folder_are_refused(tmp_path: Path):
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    from earwitness.errors import SettingsError
    from tasks.results import private_results

    if os.geteuid() != 0:
        pytest.skip("only root can make another user's folder")
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with (
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "theirs"}),
        pytest.raises(SettingsError, match="belongs to another user"),
    ):
        private_results()


def test_a_hostile_manifest_makes_files_that_no_spreadsheet_runs(
    build: Callable[..., dict[str, Any]], tmp_path: Path
):
    """Formulas matter where a spreadsheet opens a file: none of ours is a CSV, a sheet or HTML."""
    names = ["=cmd|calc.wav", "@SUM(1).wav", "<img src=x onerror=alert(1)>.wav", "{{ 7*7 }}.wav"]
    clips = [write_clip(tmp_path / name, tone(300 + i)) for i, name in enumerate(names)]
    records = [
        record(clip, HOSTILE, **{"=1+1": "=1+1", "+x|y": "@x", "<b>": i})
        for i, clip in enumerate(clips)
    ]
    records.append(record("gone.wav", "=1+1"))
    counts = build(write_manifest(tmp_path / "m.jsonl", records), tmp_path / "out")
    assert (counts["answered"], counts["rejected"]) == (4, 1)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".parquet", ".jsonl", ".json", ".md"}
    for path in files:
        start = path.read_bytes()[:1]
        expected = {".parquet": b"P", ".jsonl": b"{", ".json": b"{", ".md": b"-"}[path.suffix]
        assert start in {expected, b"", b"["}, path
    cards = list((tmp_path / "out").rglob("README.md"))
    assert len(cards) == 2, "the build's own, and the output's"
    for card in cards:
        page = rendered(card.read_text().split("---\n", 2)[2])
        assert [tag for tag in SEALED if tag in page] == []


_ALONE = """
import json, os, pathlib, urllib.error, urllib.request
os.umask(0)
from deployments.temporary_server import prefect_api, quiet_prefect
quiet_prefect(debug=False)
with prefect_api() as url:
    from prefect.client.orchestration import get_client
    kind = {"Content-Type": "application/json"}
    ask = urllib.request.Request(url + "/flow_runs/filter", b"{}", kind)
    try:
        status = urllib.request.urlopen(ask).status
    except urllib.error.HTTPError as error:
        status = error.code
    from prefect.settings import PREFECT_API_AUTH_STRING
    login = PREFECT_API_AUTH_STRING.value().partition(":")[2]
    lines = b"".join(path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
    home = pathlib.Path(os.environ["PREFECT_HOME"])
    modes = [oct(path.stat().st_mode & 0o777) for path in home.glob("prefect.db*")]
    port = int(url.split(":")[2].partition("/")[0])
    heard = [line.split()[1] for name in ("tcp", "tcp6") for line in
             pathlib.Path("/proc/net/" + name).read_text().splitlines() if line.split()[3] == "0A"]
    heard = [one.partition(":")[0] for one in heard if one.endswith(f":{port:04X}")]
    print(json.dumps([status, len(runs), login.encode() in lines, sorted(set(modes)), heard]))
"""


def test_a_builds_own_prefect_server_answers_nobody_else(tmp_path: Path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", _ALONE],
        env={**kept, "PREFECT_HOME": str(tmp_path / "home")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    status, runs, on_a_command_line, modes, heard = json.loads(done.stdout.splitlines()[-1])
    assert (status, runs, on_a_command_line) == (401, 0, False)
    assert modes == ["0o600"]
    assert heard == ["0100007F"]


def test_make_up_keeps_its_folder_to_itself_and_passes_a_login_on(monkeypatch):
    from deployments import local

    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:hidden")
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    environment = local._environment("http://127.0.0.1:1")
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == "me:hidden"
    assert environment["PREFECT_API_AUTH_STRING"] == "me:hidden"
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:1/api"
