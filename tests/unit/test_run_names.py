"""What runs are called: the build's id, beside what a person typed."""

from __future__ import annotations

import pytest
from prefect.utilities.names import generate_slug

from flows.names import build_of, run_name

BUILD = "nightly-20261127T020000Z-abc123"


@pytest.mark.parametrize(
    "name", ["kappa6-taguchi-point", "mu123-ursae-majoris", "pi-akita-reach", "iota709--void"]
)
def test_a_name_that_the_form_filled_in_gives_way_to_the_builds_id(name: str):
    assert run_name(BUILD, name) == BUILD


def test_a_name_that_the_server_made_up_gives_way_to_the_builds_id():
    made_up = [generate_slug(2) for _ in range(200)]
    assert [name for name in made_up if run_name(BUILD, name) != BUILD] == []


@pytest.mark.parametrize("name", ["my run", "beta-test", "run (second)", "first-try", "πρώτη", "x"])
def test_a_typed_name_stays_with_the_builds_id_beside_it(name: str):
    assert run_name(BUILD, name) == f"{name} ({BUILD})"


@pytest.mark.parametrize("name", ["my run", "optimal-lemur"])
def test_a_retry_leaves_the_name_as_it_is(name: str):
    once = run_name(BUILD, name)
    assert run_name(BUILD, once) == once


@pytest.mark.parametrize("name", ["my run", "optimal-lemur", "run (second)"])
def test_the_build_is_found_again_in_the_runs_name(name: str):
    assert build_of(run_name(BUILD, name)) == BUILD
