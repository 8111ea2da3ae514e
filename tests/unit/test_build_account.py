"""A build's account: summed over shards and attempts, in rates, savings, money and words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_build_publish import answered, finish, planned, rejected
from test_cli_commands import run

from earwitness.builds.account import (
    Account,
    Basis,
    account_facts,
    account_lines,
    amount,
    basis_of,
    choose_basis,
    estimate,
    span,
    total_usage,
)
from earwitness.builds.batch import Decided, Segment, write_resolved, write_segment
from earwitness.builds.card import dataset_card
from earwitness.builds.layout import Build, Counts, Gates, Receipt, work_path
from earwitness.builds.persist import persist_shard
from earwitness.builds.publish import known_basis, publish_build
from earwitness.builds.retry import build_to_retry
from earwitness.check import Report
from earwitness.engine.usage import EngineTime, Usage
from earwitness.errors import BuildNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

MODEL = {"kind": "hub", "name": "some/model", "version": "1", "arguments": []}
HOUR_S = 3600
COST = Account(start_s=40, engine_s=1000, busy_s=900, answers=500, audio_s=7200, prompt_tokens=5000)


def basis(build: str = "earlier", account: Account = COST, **more: Any) -> Basis:
    return Basis(build=build, model=MODEL, account=account, **more)


def facts(account: Account = COST, reused: int = 0, price: float | None = None) -> Any:
    mine = basis("mine", account, price_per_hour=price)
    return account_facts(mine, choose_basis(mine, None), reused=reused)


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=6, max_size=6), max_size=8))
def test_the_account_of_a_shard_is_the_sum_of_its_checkpoints(times: list[list[float]]):
    found = total_usage(Usage("a", EngineTime(*time)) for time in times)
    sums = [sum(time[number] for time in times) for number in range(6)]
    told = list(found.model_dump().values())[:6]
    assert told[:4] == pytest.approx(sums[:4], abs=1e-3)
    assert told[4:] == pytest.approx(sums[4:], abs=0.51)
    assert not found.interrupted


def test_a_shard_with_checkpoints_of_several_processes_was_interrupted():
    assert total_usage([Usage("a"), Usage("b"), Usage("b")]).interrupted == 1
    assert total_usage([Usage("a"), Usage(), Usage("a")]).interrupted == 0


def test_accounts_of_shards_add_up():
    both = COST + Account(engine_s=24, busy_s=20, answers=12, interrupted=1)
    assert (both.engine_s, both.busy_s, both.starved_s) == (1024, 920, 104)
    assert (both.answers, both.interrupted, both.start_s) == (512, 1, 40)


def test_rates_are_by_engine_time():
    told = facts()
    assert told["starved_s"] == 100
    assert told["prompt_tokens_per_s"] == 5
    assert told["audio_hours_per_engine_hour"] == 7.2


def test_a_reused_answer_saved_the_busy_seconds_of_a_generated_one():
    told = facts(reused=1000, price=2.0)
    assert told["saved_s"] == 1800
    assert told["saved_cost"] == 1.0


def test_money_is_for_the_time_an_engine_was_held_its_start_included():
    assert facts(Account(start_s=600, engine_s=3000), price=4.5)["cost"] == 4.5


def test_without_a_price_there_is_no_money_and_without_answers_no_saving():
    told = facts(Account(), reused=7)
    assert told["cost"] is told["saved_cost"] is told["saved_s"] is told["basis"] is None
    assert told["prompt_tokens_per_s"] is None


@pytest.mark.parametrize(
    ("own", "earlier", "chosen"),
    [
        (0, 500, "earlier"),
        (3, 500, "earlier"),
        (3, 2, "mine"),
        (100, 500, "mine"),
        (3, None, "mine"),
        (0, None, None),
        (0, 0, None),
    ],
)
def test_a_build_with_few_answers_goes_by_an_earlier_one_that_had_more(own, earlier, chosen):
    mine = basis("mine", Account(engine_s=9, busy_s=1, answers=own))
    known = None if earlier is None else basis("earlier", Account(engine_s=9, answers=earlier))
    found = choose_basis(mine, known)
    assert (found and found.build) == chosen


def test_a_build_with_another_model_says_nothing_about_this_one():
    other = basis().model_copy(update={"model": {**MODEL, "version": "2"}})
    assert choose_basis(basis("mine", Account()), other) is None


def test_a_basis_is_found_in_build_json_and_nonsense_there_is_none():
    told = json.loads(json.dumps({"account": facts(price=3)}))
    assert basis_of(told) == basis("mine", price_per_hour=3)
    for nonsense in ({}, {"account": None}, {"account": {"basis": {"build": 1}}}, {"account": 7}):
        assert basis_of(nonsense) is None


USED = Usage("first", EngineTime(start_s=30, engine_s=100, busy_s=60, prompt_tokens=70))


def use(build: Build, shard: int, decided: list[Decided], usage: Usage) -> None:
    write_resolved(build, shard, [])
    path = f"{work_path(shard)}/batch-00000-0.parquet"
    write_segment(build, path, decided, [], usage)


def test_engine_time_is_kept_with_the_checkpoint(tmp_path: Path):
    build = planned(tmp_path)
    use(build, 0, [answered(0)], USED)
    assert Segment(build, f"{work_path(0)}/batch-00000-0.parquet").usage == USED


def test_a_receipt_holds_what_all_attempts_at_its_shard_had(tmp_path: Path):
    build = planned(tmp_path)
    use(build, 0, [answered(0), answered(1, reused=True)], USED)
    again = Usage("second", EngineTime(engine_s=10, busy_s=5))
    account = persist_shard(build, 0, usage=again).account
    assert (account.start_s, account.engine_s, account.busy_s) == (30, 110, 65)
    assert account.engine_prompt_tokens == 70
    assert account.interrupted == 1


def test_only_generated_answers_count_as_what_the_engine_did(tmp_path: Path):
    build = planned(tmp_path)
    finish(build, 0, [answered(0), answered(1, reused=True)])
    finish(build, 1, [rejected(2), answered(3)])
    account = persist_shard(build, 0).account + persist_shard(build, 1).account
    assert (account.answers, account.prompt_tokens, account.completion_tokens) == (2, 20, 6)
    assert account.audio_s == 3.0


def test_a_receipt_of_before_there_were_accounts_is_read(tmp_path: Path):
    receipt = Receipt(shard=0, counts=Counts(), files=()).model_dump()
    del receipt["account"]
    assert Receipt.model_validate(receipt).account == Account()
    assert account_lines(None) == []
    del tmp_path


def published(folder: Path, name: str, *decided: Decided, usage: Usage, **more: Any) -> Any:
    build = planned(folder, rows=2, name=name, **more)
    use(build, 0, list(decided), usage)
    persist_shard(build, 0)
    return publish_build(build)["account"]


PRICE = {"engine": {"price_per_hour": 36.0}}
FIRST, SECOND = "b-20261122T000000Z-aaaaaa", "b-20261123T000000Z-bbbbbb"


def test_a_build_without_a_question_to_the_engine_goes_by_the_last_one_that_had_some(
    tmp_path: Path,
):
    first = published(tmp_path, FIRST, answered(0), answered(1), usage=USED, **PRICE)
    assert first["basis"]["build"] == FIRST
    assert first["cost"] == 1.3
    reused = [answered(row, reused=True) for row in (0, 1)]
    second = published(tmp_path, SECOND, *reused, usage=Usage(), **PRICE)
    assert (second["cost"], second["engine_s"]) == (0, 0)
    assert (second["saved_s"], second["saved_cost"]) == (60, 0.6)
    assert second["basis"]["build"] == FIRST
    known = known_basis(str(tmp_path / "out"))
    assert known is not None
    assert known.build == FIRST


def test_the_card_and_show_tell_what_a_build_cost(tmp_path: Path):
    account = published(tmp_path, FIRST, answered(0), answered(1), usage=USED, **PRICE)
    build = Build(str(tmp_path / "out"), FIRST)
    card = build.store.read_bytes("README.md").decode()
    assert "| engine | 1.7 min, 60% busy, 40% waiting for work |" in card
    assert "| cost | 1.30 at 36 per hour |" in card
    assert dataset_card(build.plan, Counts(rows=1), account).count("| cost |") == 1
    told = run("show", build.output.root).stdout
    assert "1.7 min, 60% busy, 40% waiting for work" in told
    assert "1.30 at 36 per hour" in told


def test_a_build_that_asks_rejections_again_keeps_the_price(tmp_path: Path):
    build = planned(tmp_path, rows=2)
    build.set_gates(build.gates.model_copy(update={"price_per_hour": 5.0, "max_rejected": 0.9}))
    finish(build, 0, [answered(0), rejected(1)])
    persist_shard(build, 0)
    publish_build(build)
    again = build_to_retry(build, ["silent"]).gates
    assert (again.price_per_hour, again.max_rejected) == (5.0, 0.9)
    assert again.retry_reasons == ("silent",)


def test_gates_of_before_there_were_prices_are_read(tmp_path: Path):
    build = planned(tmp_path, rows=2)
    build.store.write_bytes("gates.json", b'{"max_rejected": 0.25}')
    assert build.gates == Gates(max_rejected=0.25, price_per_hour=None)


def test_publishing_again_tells_the_same_account(tmp_path: Path):
    account = published(tmp_path, FIRST, answered(0), answered(1), usage=USED, **PRICE)
    build = Build(str(tmp_path / "out"), FIRST)
    build.set_gates(build.gates.model_copy(update={"price_per_hour": 1.0}))
    assert publish_build(build)["account"] == account


def test_a_build_that_is_not_published_is_not_shown(tmp_path: Path):
    build = planned(tmp_path, rows=2)
    told = run("show", build.output.root)
    assert isinstance(told.exception, BuildNotFoundError)


def test_another_price_may_be_named_when_a_build_goes_on(tmp_path: Path):
    build = planned(tmp_path, rows=2, **PRICE)
    assert build.gates.price_per_hour == 36
    build.set_gates(build.gates.model_copy(update={"price_per_hour": 72.0}))
    use(build, 0, [answered(0), answered(1)], USED)
    persist_shard(build, 0)
    assert publish_build(build)["account"]["cost"] == 2.6


def test_a_build_that_was_interrupted_says_that_it_tells_the_least():
    told = dict(account_lines(facts(COST + Account(interrupted=1), price=3.6)))
    assert told["engine"] == "at least 16.7 min, 90% busy, 10% waiting for work"
    assert told["cost"] == "at least 1.04 at 3.6 per hour"


def test_a_build_whose_engine_had_nothing_to_do_tells_what_reuse_saved():
    mine = basis("mine", Account(), price_per_hour=2.0)
    told = account_lines(account_facts(mine, basis(), reused=1000))
    assert told == [
        ("saved by reuse", "30.0 min of engine time"),
        ("cost", "0.00 at 2 per hour; reuse saved 1.00"),
    ]


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        (0, "5 in prompts, 0 in answers"),
        (5000, "5 in prompts, 0 in answers"),
        (8000, "5 in prompts, 0 in answers (all requests to this engine: 8)"),
    ],
)
def test_the_engines_own_count_stands_beside_ours_where_it_has_done_more(counted: int, told: str):
    account = COST + Account(engine_prompt_tokens=counted)
    assert dict(account_lines(facts(account)))["  tokens per second"] == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0.0 s"), (59.94, "59.9 s"), (90, "1.5 min"), (2 * HOUR_S, "2.00 h")]
)
def test_lengths_of_time_are_told_in_the_unit_that_fits(seconds: float, told: str):
    assert span(seconds) == told


@pytest.mark.parametrize(("money", "told"), [(0, "0.00"), (1234.5, "1,234.50"), (0.0042, "0.0042")])
def test_amounts_of_money_never_round_to_nothing(money: float, told: str):
    assert amount(money) == told


def test_an_estimate_goes_from_an_engine_never_waiting_to_one_waiting_as_before():
    found = estimate(basis(price_per_hour=3.6), 50_500, reused=500)
    assert (found.answers, found.busy_s, found.engine_s) == (50_000, 90_000, 100_000)
    told = dict(found.lines())
    assert told["answers to generate"] == "about 50,000 (500 reused)"
    assert told["engine time"] == "25.00 h to 27.78 h, and 40.0 s to start the engine"
    assert told["cost"] == "90.04 to 100.04 at 3.6 per hour"
    assert told["  estimated from"] == (
        "earlier: 500 answers, each with 14.4 s of audio and 0 tokens on average"
    )


def test_an_estimate_is_the_most_where_reuse_is_not_known():
    told = dict(estimate(basis(), 500).lines())
    assert told["engine time"].startswith("at most 15.0 min to 16.7 min")
    assert "cost" not in told


def test_nothing_to_generate_takes_no_engine():
    told = dict(estimate(basis(), 500, reused=500, price_per_hour=9).lines())
    assert told["engine time"] == "0.0 s"
    assert told["cost"] == "0.00 at 9 per hour"


def sound_manifest(folder: Path, rows: int) -> str:
    """Rows that linting lets pass; with `--sample 0` nobody looks for their clips."""
    asked = [{"from": "human", "value": "What?"}]
    line = json.dumps({"audio": ["x.wav"], "conversation": asked}) + "\n"
    (folder / "m.jsonl").write_text(line * rows)
    return str(folder / "m.jsonl")


def test_check_estimates_from_the_newest_published_build(tmp_path: Path):
    published(tmp_path, FIRST, answered(0), answered(1), usage=USED, **PRICE)
    words = ("check", sound_manifest(tmp_path, 200), str(tmp_path / "out"), "--sample", "0")
    told = run(*words).stdout
    # 200 answers, of which two took 60 s busy and 100 s in all; at the price of that build
    assert "about 200 (reuse not known)" in told
    assert "at most 1.67 h to 2.78 h, and 30.0 s to start the engine" in told
    assert "at most 60.30 to 100.30 at 36 per hour" in told
    assert f"  {FIRST}: 2 answers, each with 1.5 s of audio and 3 tokens on average" in told
    dearer = run(*words, "--price-per-hour", "72").stdout
    assert "120.60 to 200.60 at 72 per hour" in dearer


def test_an_output_named_in_the_settings_file_is_looked_at_too(tmp_path: Path):
    published(tmp_path, FIRST, answered(0), answered(1), usage=USED)
    (tmp_path / "e.yaml").write_text(f"output: {tmp_path / 'out'}\n")
    words = ("check", sound_manifest(tmp_path, 2), "--config", str(tmp_path / "e.yaml"))
    told = run(*words, "--sample", "0").stdout
    assert "about 2 (" in told
    assert "cost" not in told


def test_what_a_sample_shows_is_told_of_all_rows():
    report = Report(rows=1010, sound=1000, heard=50, asked=40, known=10)
    assert report.expected(report.asked) == 800
    assert report.expected(report.known or 0) == 200
    assert Report(sound=7).expected(0) == 7


def test_check_says_when_nothing_is_known_yet(tmp_path: Path):
    (tmp_path / "m.jsonl").write_text("{}\n")
    words = ("check", str(tmp_path / "m.jsonl"))
    assert "not known: give OUTPUT as second argument" in run(*words).stdout
    nowhere = run(*words, str(tmp_path / "out")).stdout
    assert "not known: no published build in OUTPUT says what an answer takes" in nowhere
