"""The paper model of large builds: the page says what the script says, and the counts add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.page import taken_from
from tests.bench.s3_log import count_calls
from tests.bench.scale import BUILDS, PAGE, PART, SIZES, Costs, hours, page_part
from tests.bench.scale_calls import Build, Kind, calls

LOG = """\
x DEBUG : serve s3: LIST BUCKET
x DEBUG : serve s3: bucketname: b prefix: prefix:"out/cache/clips/segments/", delim:"" page: {}
x DEBUG : serve s3: HEAD OBJECT b out/builds/1/plan.json
x DEBUG : serve s3: GET OBJECT Bucket: b Object: in/clips/000/1.wav
x DEBUG : serve s3: GET OBJECT Bucket: b Object: out/cache/clips/segments/1.parquet
x DEBUG : serve s3: CREATE OBJECT: b out/latest.json
x DEBUG : serve s3: delete multi bucket
x INFO  : b/out/latest.json: Deleted
x ERROR : serve s3: delete object failed: Directory not empty
"""


def test_the_page_is_what_the_script_prints():
    assert taken_from(PAGE.read_text(encoding="utf-8"), PART) == page_part(Costs())


def test_every_call_in_the_log_counts_once():
    once = {"LIST": 1, "HEAD": 1, "GET clip": 1, "GET": 1, "PUT": 1, "DELETE": 1}
    assert count_calls(LOG) == once


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_calls_of_shards_publish_and_clips_are_all_calls(build: Build):
    called = calls(build)
    parts = called.shards + called.publish + called.of["GET clip"]
    assert parts == pytest.approx(sum(called.of.values()))
    assert called.unindexed <= sum(called.of.values())
    assert min(called.of.values()) >= 0


def test_where_nothing_changed_nothing_is_asked():
    same = Build(SIZES[0], Kind.SAME)
    assert (same.asked, same.batches, calls(same).of["GET clip"]) == (0, 0, 0)
    assert hours(same, 1, Costs()).engine == 0


def test_shards_of_one_process_read_each_segment_once():
    apart = Build(2_000_000, Kind.COLD)
    together = replace(apart, on_pool=False)
    on_average = (apart.shards + 1) / 2
    assert calls(apart).unindexed == pytest.approx(on_average * calls(together).unindexed)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_more_machines_are_never_slower(build: Build):
    totals = [hours(build, machines, Costs()).total for machines in (1, 2, 8, 32, 64)]
    assert totals == sorted(totals, reverse=True)


def test_a_faster_engine_makes_a_first_build_shorter():
    cold = Build(SIZES[0], Kind.COLD)
    slow, fast = (hours(cold, 4, Costs(engine_rate=rate)) for rate in (10, 40))
    assert slow.engine == 4 * fast.engine
    assert slow.limit == "engine"
