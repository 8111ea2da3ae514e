"""`prefect.yaml` and what lies beside it, by reading alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

HOUSE = Path(__file__).parents[2]
TEXT = (HOUSE / "prefect.yaml").read_text()
DEPLOYMENTS = yaml.safe_load(TEXT)["deployments"]
NAMES = [f"{entry['entrypoint'].rpartition('.')[2]}/{entry['name']}" for entry in DEPLOYMENTS]


def signature(entrypoint: str) -> list[str]:
    module, _, function = entrypoint.rpartition(".")
    tree = ast.parse((HOUSE / f"{module.replace('.', '/')}.py").read_text())
    (found,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function
    )
    return [argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)]


@pytest.mark.parametrize("entry", DEPLOYMENTS, ids=NAMES)
def test_a_deployment_sets_only_parameters_its_flow_has(entry: dict):
    assert set(entry.get("parameters", {})) <= set(signature(entry["entrypoint"]))


@pytest.mark.parametrize("entry", DEPLOYMENTS, ids=NAMES)
def test_a_deployment_sets_no_group_of_settings_that_a_run_would_replace_whole(entry: dict):
    assert not any(isinstance(value, dict) for value in entry.get("parameters", {}).values())


def test_no_machine_and_no_secret_is_in_the_deployments():
    settings = re.sub(r"(?m)#.*$", "", TEXT)
    assert not re.search(r"(?<![\w*])/[a-z]+/|prefect\.blocks\.", settings)
