"""What the documents say can be typed, set and opened is really there."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import typer.main
import yaml

from cli.main import app
from earwitness.settings import BuildSettings

HOUSE = Path(__file__).parents[2]
TOP = [HOUSE / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
PAGES = [*TOP, *sorted((HOUSE / "docs").rglob("*.md"))]
NAMES = typer.main.get_command(app).commands
COMMANDS = {
    name: typer.main.get_command(importlib.import_module(f"cli.{name}").app) for name in NAMES
}
OPTIONS = {
    option
    for command in COMMANDS.values()
    for parameter in command.params
    for option in (*parameter.opts, *parameter.secondary_opts)
}
SETUP = (HOUSE / "deployments/setup.py").read_text()
SETUP_OPTIONS = {"--default-limit", "--gpu-limit", *re.findall(r'"(--[a-z-]+)"', SETUP)}
# prefect deploy, systemctl, useradd, docker compose, vllm serve, everything
OTHERS_OPTIONS = {"--all", "--now", "--system", "--profile", "--enforce-eager", "--help"}
# the benchmarks' own: python -m benchmarks --help
for _script in (HOUSE / "benchmarks").glob("*.py"):
    OTHERS_OPTIONS |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', _script.read_text()))
# flags of vLLM that the pages say are refused
OTHERS_OPTIONS |= {"--api-key", "--hf-token"}
DEPLOYMENTS = {
    f"{Path(entry['entrypoint']).suffixes[-1][1:].replace('_', '-')}/{entry['name']}"
    for entry in yaml.safe_load((HOUSE / "prefect.yaml").read_text())["deployments"]
}
# what reads settings from the environment
READERS = [HOUSE / "prefect.yaml", *(HOUSE / "deployments").rglob("*.service")]
for folder in ("earwitness", "deployments", "cli"):
    READERS += sorted((HOUSE / folder).rglob("*.py"))


def texts(pattern: str) -> list[tuple[str, str]]:
    return [(page.name, found) for page in PAGES for found in re.findall(pattern, page.read_text())]


@pytest.mark.parametrize(("page", "command"), texts(r"(?m)(?:^    |`|  )earwitness ([a-z]+)"))
def test_commands_exist(page: str, command: str):
    assert command in COMMANDS, page


@pytest.mark.parametrize(("page", "option"), sorted(set(texts(r"[ `(](--[a-z][a-z-]+)"))))
def test_options_exist(page: str, option: str):
    assert option in OPTIONS | SETUP_OPTIONS | OTHERS_OPTIONS, page


@pytest.mark.parametrize(("page", "target"), sorted(set(texts(r"(?:^    |`)make ([a-z-]+)"))))
def test_make_targets_exist(page: str, target: str):
    assert re.search(rf"(?m)^{target}:", (HOUSE / "Makefile").read_text()), page


@pytest.mark.parametrize(
    ("page", "name"), sorted(set(texts(r"`((?:engine|sampling|audio|input|layout)\.[a-z_]+)`")))
)
def test_settings_exist(page: str, name: str):
    group, field = name.split(".")
    model = BuildSettings.model_fields[group].annotation
    assert field in model.model_fields, page


@pytest.mark.parametrize(
    ("page", "name"),
    sorted(set(texts(r"((?:build-dataset|build-shard|retry-failed-shards)/[a-z]+)"))),
)
def test_deployments_exist(page: str, name: str):
    assert name in DEPLOYMENTS, page


@pytest.mark.parametrize(("page", "module"), sorted(set(texts(r"python -m ([a-z_.]+)"))))
def test_modules_exist(page: str, module: str):
    assert importlib.util.find_spec(module), page


@pytest.mark.parametrize(("page", "path"), sorted(set(texts(r"\b(deployments/[\w./@-]*\w)"))))
def test_files_of_the_guide_exist(page: str, path: str):
    assert (HOUSE / path).exists(), page


def test_variables_are_read_somewhere():
    said = {name for _, name in texts(r"\b(EARWITNESS_[A-Z_]+)")}
    read = "\n".join(path.read_text() for path in READERS)
    assert sorted(name for name in said if name not in read) == []


@pytest.mark.parametrize(("page", "target"), texts(r"\]\((?!https?:)([^)#]+)"))
def test_links_lead_somewhere(page: str, target: str):
    folders = {path.parent for path in PAGES if path.name == page}
    assert any((folder / target).exists() for folder in folders), page


def test_every_command_is_in_the_readme():
    readme = (HOUSE / "README.md").read_text()
    assert [name for name in COMMANDS if f"`earwitness {name} " not in readme] == []


def test_every_decision_is_numbered_once():
    numbers = [path.name[:4] for path in (HOUSE / "docs/decisions").glob("[0-9]*.md")]
    assert sorted(numbers) == [f"{number:04d}" for number in range(1, len(numbers) + 1)]
