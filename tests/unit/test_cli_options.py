"""Every setting is an option, defined once; the command line wins over the file, one by one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import typer
from pydantic import BaseModel

from cli.options import all_options, flag_of, machinery, put
from cli.settings_file import make_settings, merge
from earwitness.settings import BuildSettings, Format, TooLong

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = {"manifest": "m.jsonl", "output": "out"}


def leaves(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= leaves(kind, (*prefix, name))
        else:
            found.add((*prefix, name))
    return found


def test_every_setting_is_reachable():
    otherwise = {("manifest",), ("output",), ("engine", "vllm_args")}
    assert {option.path for option in all_options()} == leaves(BuildSettings) - otherwise


def test_no_two_settings_share_an_option():
    flags = [option.flag for option in all_options()]
    assert len(flags) == len(set(flags))


def test_an_option_is_named_like_its_field():
    named = {option.flag: option.path for option in all_options()}
    assert named["--gpu-memory-utilization"] == ("engine", "gpu_memory_utilization")
    assert named["--max-tokens"] == ("max_tokens",)
    assert named["--engine"] == ("engine", "url")
    assert named["--format"] == ("layout", "formats")


def test_every_option_has_help_and_a_group():
    assert all(option.help and option.panel for option in all_options())


def test_a_build_goes_on_with_other_machinery_but_not_with_another_question():
    flags = {option.flag for option in machinery()}
    assert {"--engine", "--tensor-parallel-size", "--max-rejected", "--window-batches"} <= flags
    assert flags.isdisjoint({"--model", "--question", "--temperature", "--max-tokens", "--dtype"})


def given(**options: Any) -> dict[str, Any]:
    tree: dict[str, Any] = dict(NEEDED)
    for name, value in options.items():
        put(tree, tuple(name.split("__")), value)
    return tree


def config(folder: Path, text: str) -> Path:
    path = folder / "earwitness.yaml"
    path.write_text(text)
    return path


def test_the_command_line_wins_over_the_file_and_keeps_what_it_does_not_name(tmp_path: Path):
    file = config(tmp_path, "max_tokens: 9\nsampling: {temperature: 0.1, top_p: 0.5}\n")
    settings = make_settings(given(sampling__temperature=1.0), file)
    assert (settings.max_tokens, settings.sampling.temperature, settings.sampling.top_p) == (
        9,
        1.0,
        0.5,
    )
    assert settings.sampling.seed is None


def test_a_file_may_name_manifest_and_output(tmp_path: Path):
    settings = make_settings({}, config(tmp_path, "manifest: a.jsonl\noutput: out/\n"))
    assert (settings.manifest, settings.output) == ("a.jsonl", "out")


def test_a_section_without_content_is_no_fault(tmp_path: Path):
    assert make_settings(given(), config(tmp_path, "engine:\n  # url: []\n")).engine.url == ()


def refused(
    capsys: pytest.CaptureFixture[str], tree: dict[str, Any], file: Path | None
) -> list[str]:
    with pytest.raises(typer.Exit) as stopped:
        make_settings(tree, file)
    assert stopped.value.exit_code == 2
    return capsys.readouterr().err.splitlines()


def test_each_wrong_value_is_a_line_that_names_its_option(capsys: pytest.CaptureFixture[str]):
    tree = given(sampling__temperature=5.0, max_tokens=0, layout__formats=["csv"])
    lines = refused(capsys, tree, None)
    assert [line.split(":")[1].strip() for line in lines] == [
        "--max-tokens",
        "--temperature",
        "--format",
    ]
    assert "at most 2, not 5.0" in lines[1]


def test_a_wrong_value_in_the_file_names_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (line,) = refused(capsys, given(), config(tmp_path, "audio: {too_long: shorten}\n"))
    assert f"audio.too_long in {tmp_path}/earwitness.yaml: " in line


def test_a_misspelt_name_in_the_file_is_told_with_its_likely_meaning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (line,) = refused(capsys, given(), config(tmp_path, "sampling: {temprature: 1}\n"))
    assert "there is no such setting (did you mean temperature?)" in line


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "\tx: 1\n"])
def test_a_file_that_is_no_settings_file_is_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
):
    (line,) = refused(capsys, given(), config(tmp_path, text))
    assert line.startswith(f"error: --config {tmp_path}/earwitness.yaml")


def test_a_missing_output_is_told(capsys: pytest.CaptureFixture[str]):
    (line,) = refused(capsys, {"manifest": "m"}, None)
    assert line.startswith("error: OUTPUT is missing: ")


def test_merging_does_not_touch_what_it_is_given():
    base = {"a": {"b": 1}}
    assert merge(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}


def test_a_field_without_an_option_is_named_by_its_path():
    assert flag_of(["engine", "vllm_args", 0]) == "engine.vllm_args.0"
    assert flag_of(["layout", "formats", 0]) == "--format"


def test_a_file_may_say_that_there_is_no_seed(tmp_path: Path):
    assert make_settings(NEEDED, config(tmp_path, "sampling: {seed: null}\n")).sampling.seed is None


def test_lists_are_given_the_short_way():
    by_path = {option.path: option for option in all_options()}
    tree = given(
        layout__formats=by_path["layout", "formats"].value("jsonl, parquet"),
        engine__command=by_path["engine", "command"].value("uv run 'my engine'"),
        audio__too_long=TooLong.CUT,
    )
    settings = make_settings(tree, None)
    assert settings.layout.formats == (Format.JSONL, Format.PARQUET)
    assert settings.engine.command == ("uv", "run", "my engine")
    assert json.loads(settings.model_dump_json())["audio"]["too_long"] == "cut"
