"""What people do in Prefect's UI, done in a browser: a build started, watched, put right.

Real server, pools, workers and flow runs; only the engine is the stand-in. The clips come from a
web server that answers 503 for one shard's until it is mended. Pictures: `out/screenshots/`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from pool import Pool
from workbench import Published, WebServer, clip_bytes, record, write_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ui import Ui

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
)

SHARDS, SHARD_ROWS = 2, 12
FAILING = 1
"""Every clip of this shard fails: enough for the shard to fail, not to reject its rows."""
LAYOUT = {"shard_rows": SHARD_ROWS, "batch_rows": 4}
FORM_HEIGHT = 1500
"""Pixels: with the groups closed a person sees the form in two screens."""
HANGS = "forever"
"""A question with this word is never answered."""
STAND_IN = f"{sys.executable} -m tests.support.standin --hang-on {HANGS}"
ROWS = SHARDS * SHARD_ROWS


@dataclass(frozen=True)
class House:
    """A service with clips and manifests to build from."""

    pool: Pool
    web: WebServer
    folder: Path

    def write(self, name: str, question: str = "What do you hear?") -> Path:
        """A manifest whose clips, one a row, are at `/<name>/<shard>/<row>.wav`."""
        records = []
        for row in range(ROWS):
            data = clip_bytes(self.folder, 200 + 10 * row)
            url = self.web.put(f"/{name}/{row // SHARD_ROWS}/{row}.wav", data)
            records.append(record(url, question, id=row))
        return write_manifest(self.folder / f"{name}.jsonl", records)

    def fail(self, name: str) -> None:
        rows = range(FAILING * SHARD_ROWS, (FAILING + 1) * SHARD_ROWS)
        self.web.statuses |= {f"/{name}/{FAILING}/{row}.wav": 503 for row in rows}

    def mend(self) -> None:
        self.web.statuses.clear()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("ui")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with WebServer() as web, Pool(folder / "pool") as pool:
        house = House(pool, web, folder)
        pool.deploy(house.write("prefilled"), folder / "prefilled", model)
        pool.start_worker("default", name="parents")
        words = ("--model", model, "--command", STAND_IN)
        pool.start_worker("gpu", *words, name="gpu-1")
        pool.wait_for_workers()
        yield house


@pytest.fixture(scope="module")
def ui(house: House) -> Iterator[Ui]:
    from ui import CHROMIUM, browser

    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium fonts-dejavu-core")
    with browser(house.pool.ui_url) as ui:
        yield ui


def generated(output: Path) -> int:
    counts = json.loads((Published(output).folder / "build.json").read_bytes())["counts"]
    return int(counts["generated"])


def test_the_form_is_prefilled_and_says_what_each_field_is_for(house: House, ui: Ui):
    ui.open_form("build-dataset", "adhoc")

    fields = ui.parameters()
    first = ["manifest", "output", "model", "question", "max_tokens", "max_rejected"]
    assert list(fields)[:6] == first
    assert "engine" not in fields
    assert ui.form_height() <= FORM_HEIGHT
    assert [name for name, text in fields.items() if not text.strip()] == []
    assert ui.value("manifest") == str(house.folder / "prefilled.jsonl")
    assert ui.value("output") == str(house.folder / "prefilled")
    assert ui.value("sampling.temperature") == "0.3"
    assert ui.value("layout.shard_rows") == "20000"
    ui.shot("form", height=2600)


def test_a_bad_value_gets_a_message_that_names_its_field(house: House, ui: Ui):
    ui.open_form("build-dataset", "adhoc")
    ui.fill("manifest", "")
    ui.submit()
    assert "'manifest' is a required property" in ui.complaint("manifest")
    ui.shot("bad-manifest")

    ui.fill("manifest", str(house.folder / "prefilled.jsonl"))
    ui.fill("max_tokens", "-5")
    ui.submit()
    assert "-5 is less than the minimum of 1" in ui.complaint("field 'max_tokens'")
    ui.shot("bad-max-tokens")

    ui.fill("max_tokens", "256")
    ui.fill("sampling.temperature", "9")
    ui.submit()
    assert "9 is greater than the maximum of 2" in ui.complaint("field 'sampling.temperature'")
    ui.shot("bad-temperature")


def test_a_shard_retried_by_its_button_publishes_the_build_of_a_failed_parent(house: House, ui: Ui):
    manifest, output = house.write("child"), house.folder / "child"
    house.fail("child")
    ui.open_form("build-dataset", "adhoc")
    ui.name_run("first try")
    ui.fill("manifest", str(manifest))
    ui.fill("output", str(output))
    for name, value in LAYOUT.items():
        ui.fill(f"layout.{name}", str(value))
    parent = ui.submit_well()
    ui.wait_for_state("Running")
    ui.shot("parent-running")
    ui.rest()
    house.pool.api.expect(parent, "FAILED")

    ui.open_run(parent)
    build = ui.run_name().removeprefix("first try (").removesuffix(")")
    assert ui.run_name() == f"first try ({build})"
    assert build.startswith("child-")
    ui.tab("Logs")
    ui.see(f"shard {FAILING} is not done: at least ")
    # ten failed clips fail the shard; its batches run at once, so that one or two more may be told
    lost = f" of {SHARD_ROWS} clips could not be fetched"
    assert lost in ui.text()
    assert "Traceback" not in ui.text()
    ui.shot("parent-failed")
    assert "PROGRESS" in " ".join(ui.artifacts())
    ui.shot("parent-artifacts")
    ui.open_artifact(house.pool.api.artifact(parent, "table"))
    ui.see(lost)
    ui.shot("table-of-shards")
    ui.open_artifact(house.pool.api.artifact(parent, "markdown"))
    ui.see("Not published:")
    ui.shot("failed-summary")
    assert not (output / "latest.json").exists()

    house.mend()
    shard = house.pool.api.shards(build)[FAILING]
    ui.open_run(shard["id"])
    assert ui.run_name() == f"shard-{FAILING:05d} of {build}"
    ui.shot("shard-failed")
    ui.retry()
    ui.wait_for_state("Completed")
    ui.tab("Details")
    ui.see(f"{SHARD_ROWS} rows: 0 reused")
    ui.shot("shard-retried")
    ui.open_artifact(house.pool.api.artifact(shard["id"], "markdown"))
    ui.see(f"Published under {output}/builds/{build}")
    ui.shot("summary")

    assert house.pool.api.state(parent)["type"] == "FAILED"
    assert Published(output).folder.name == build
    assert sorted(Published(output).by_id()) == list(range(ROWS))


def test_a_parent_retried_by_its_button_runs_the_failed_shard_alone(house: House, ui: Ui):
    manifest, output = house.write("parent"), house.folder / "parent"
    house.fail("parent")
    api = house.pool.api
    given = {"manifest": str(manifest), "output": str(output), "layout": LAYOUT}
    parent = api.run("build-dataset/adhoc", **given)
    api.expect(parent, "FAILED")
    ui.open_run(parent)
    build = ui.run_name()
    before = api.shards(build)

    house.mend()
    ui.retry()
    ui.rest()
    api.wait(parent, "RUNNING", "COMPLETED")
    api.expect(parent, "COMPLETED")
    ui.open_run(parent)
    ui.wait_for_state("Completed")
    ui.tab("Details")
    ui.see(f"{ROWS} answers")
    ui.shot("parent-retried", height=1300)
    ui.tab("Subflow Runs")
    ui.see(f"shard-{FAILING:05d} of {build}")
    ui.shot("parent-shards")

    after = api.shards(build)
    assert {number: run["id"] for number, run in after.items()} == {
        number: run["id"] for number, run in before.items()
    }
    assert [after[number]["run_count"] for number in range(SHARDS)] == [1, 2]
    assert generated(output) == ROWS
    assert sorted(Published(output).by_id()) == list(range(ROWS))


def test_cancel_ends_the_build_and_its_shards(house: House, ui: Ui):
    manifest, output = house.write("cancel", HANGS), house.folder / "cancel"
    api = house.pool.api
    given = {"manifest": str(manifest), "output": str(output), "layout": LAYOUT}
    parent = api.run("build-dataset/adhoc", **given)
    api.wait(parent, "RUNNING")
    ui.open_run(parent)
    build = ui.run_name()
    ui.rest()
    # the page's list of shards is drawn once: they have to be there before it is
    ui.until(lambda: len(api.shards(build)) == SHARDS, "all shards", limit_s=240)
    for run in api.shards(build).values():
        api.wait(run["id"], "RUNNING")
    ui.open_run(parent)
    ui.wait_for_state("Running")
    ui.tab("Subflow Runs")
    ui.see("shard-00001")

    ui.cancel()
    ui.wait_for_state("Cancelled")
    for run in api.shards(build).values():
        api.expect(run["id"], "CANCELLED")
    ui.shot("cancelled")
    assert not (output / "latest.json").exists()
