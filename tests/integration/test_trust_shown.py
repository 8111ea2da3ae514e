"""A hostile build is shown, and described in its card, without any of it taking effect."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import yaml
from test_build_publish import MODEL, finish, planned
from test_trust_text import MARKUP, TERMINAL, WEB, rendered
from typer.testing import CliRunner

from cli import main as cli
from cli.tables import print_rows
from earwitness.builds.batch import Decided
from earwitness.builds.card import dataset_card
from earwitness.builds.layout import Build, Counts
from earwitness.builds.persist import persist_shard
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.publish import publish_build
from earwitness.records import Answer, HeardClip, Outcome, Reason, Rejection, Stage
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "".join([*TERMINAL[:-1], *MARKUP, *WEB, "=cmd|' /C calc'!A0", "\nanswer  forged\n"])


@pytest.fixture
def hostile(tmp_path: Path) -> Build:
    """A published build whose questions, fields, file names and answers are all hostile."""
    asked = [{"from": "human", "value": HOSTILE}]
    record = {"audio": ["<img src=x>\x1b[2J|`{{x}}`.wav"], "conversation": asked, "=1+1": "=1+1"}
    (tmp_path / "m.jsonl").write_text(2 * (json.dumps({**record, "<b>\n{{x}}": HOSTILE}) + "\n"))
    settings = BuildSettings(manifest=str(tmp_path / "m.jsonl"), output=str(tmp_path / "out"))
    build = Build(settings.output, "b-20261122T000000Z-aaaaaa")
    plan_build(build, resolve_settings(settings), MODEL, datetime.now(tz=UTC))
    heard = (HeardClip("a" * 64, 1.5, 1.5),)
    said = Outcome("0" * 64, Answer(HOSTILE, "stop", 10, 3), None, heard, 256)
    why = Rejection(Stage.FETCH, Reason.CLIP_MISSING, HOSTILE)
    refused = Outcome("1" * 64, None, why, heard, 256)
    finish(build, 0, [Decided(0, said, reused=False), Decided(1, refused, reused=False)])
    persist_shard(build, 0)
    publish_build(build)
    return Build(build.output.root, build.id)


def test_commands_show_a_hostile_build_harmlessly(hostile: Build, capsys):
    print_rows(hostile)
    told = [capsys.readouterr().out]
    for words in (["show", "0"], ["show", "1"], ["status"]):
        command, *rest = words
        done = CliRunner().invoke(cli.app, [command, hostile.output.root, *rest])
        assert done.exit_code == 0, done.output
        told.append(done.output)
    for text in told:
        assert text.replace("\n", "").isprintable()
    assert "\\x1b[2J" in told[0] + told[1] + told[2]
    assert "[red]x[/red]" in told[1]
    # an answer's second line stands apart from our own first columns
    assert "\nanswer  forged" not in told[1] + told[2]


def test_the_data_keeps_every_byte(hostile: Build):
    (parquet,) = (path for path in hostile.store.sizes("data"))
    (jsonl,) = (path for path in hostile.store.sizes("jsonl"))
    table = pd.read_parquet(f"{hostile.uri}/{parquet}")
    assert table["answer"].tolist() == [HOSTILE]
    assert json.loads(hostile.store.read_bytes(jsonl))["answer"] == HOSTILE
    (rejected,) = (path for path in hostile.store.sizes("rejected"))
    row = json.loads(hostile.store.read_bytes(rejected))
    assert row["earwitness"]["detail"] == HOSTILE


def test_the_card_has_no_place_for_markup(tmp_path: Path):
    plan = planned(tmp_path).plan
    plain = dataset_card(plan, Counts(rows=1, reasons={"silent": 1}))
    for text in WEB:
        layout = plan.settings.layout.model_copy(
            update={"answer_column": text, "provenance_column": text}
        )
        hostile_plan = plan.model_copy(
            update={
                "build": text,
                "model": {"name": text, "kind": text, "version": text},
                "settings": plan.settings.model_copy(update={"layout": layout}),
                "fields": {**plan.fields, "json_fields": [text]},
            }
        )
        card = dataset_card(hostile_plan, Counts(rows=1, reasons={text: 1}))
        head, body = card.split("---\n", 2)[1:]
        assert yaml.safe_load(head) == yaml.safe_load(plain.split("---\n", 2)[1])
        shape = rendered(body)
        for tag in ("<script", "<img", "<a ", "<a>", "<hr", "<h3", "<em", "<strong", "<s>"):
            assert tag not in shape
        assert shape.count("<td>") == rendered(plain.split("---\n", 2)[2]).count("<td>")
        assert shape.count("<h1>") == 1
