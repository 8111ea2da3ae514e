"""Equal questions have equal keys; whatever changes an answer changes the key, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from earwitness.errors import ModelIdentityError
from earwitness.identity import (
    KEY_VERSION,
    ModelIdentity,
    build_id,
    cache_key,
    folder_digest,
    identify_model,
    output_arguments,
    question_digest,
    request_seed,
)
from earwitness.settings import EngineSettings, SamplingSettings

if TYPE_CHECKING:
    from pathlib import Path

SOUND_A, SOUND_B = "a" * 64, "b" * 64
ASKED = [{"role": "user", "content": [{"type": "audio", "clip": 0}, {"type": "text", "text": "?"}]}]
MODEL = ModelIdentity("hub", "org/model", "c" * 40)


def question(**changes: object) -> str:
    parts = {"model": MODEL, "sampling": SamplingSettings(), **changes}
    return question_digest(parts["model"], parts["sampling"])


def test_the_order_of_sounds_is_part_of_the_key():
    assert cache_key([SOUND_A, SOUND_B], ASKED, "q") != cache_key([SOUND_B, SOUND_A], ASKED, "q")


def test_a_key_is_the_same_in_every_process():
    # a changed value here throws every user's cache away: raise KEY_VERSION and say so
    assert cache_key([SOUND_A], ASKED, "q") == (
        "cab697f9c8dcb7ba55fdcb61f645098ef99ba0044e07723b4bec60683dcb32e4"
    )


@given(st.text(), st.text())
def test_different_texts_have_different_keys(one: str, other: str):
    def key(text: str) -> str:
        return cache_key(
            [SOUND_A], [{"role": "user", "content": [{"type": "text", "text": text}]}], "q"
        )

    assert (key(one) == key(other)) == (one == other)


@given(
    st.lists(
        st.fixed_dictionaries({"role": st.text(), "content": st.lists(st.text(), max_size=2)}),
        max_size=3,
    ),
    st.lists(st.text(alphabet="0123456789abcdef"), max_size=2),
)
@example([{"role": "user", "content": ["\ud800", '\x00\x7f\u2028\U0001f600"\\/']}], [])
def test_a_key_is_over_compact_sorted_json(messages: list[dict[str, object]], sounds: list[str]):
    decides = {
        "version": KEY_VERSION,
        "kind": "say",
        "sounds": sounds,
        "messages": messages,
        "question": "q",
        "sample": 0,
        "schema": None,
    }
    text = json.dumps(decides, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    assert cache_key(sounds, messages, "q") == digest


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": SamplingSettings(temperature=0.0)},
        {"sampling": SamplingSettings(seed=1)},
        {"sampling": SamplingSettings(repetition_penalty=1.1)},
        {"model": ModelIdentity("hub", "org/model", "d" * 40)},
        {"model": ModelIdentity("hub", "org/model", "c" * 40, ("--dtype=float16",))},
    ],
)
def test_what_changes_answers_changes_the_question(changes: dict[str, object]):
    assert question(**changes) != question()


def test_at_temperature_0_a_seed_is_no_part_of_the_question():
    greedy, seeded = SamplingSettings(temperature=0), SamplingSettings(temperature=0, seed=1)
    assert question(sampling=seeded) == question(sampling=greedy)


def test_a_local_model_is_its_files_wherever_they_lie():
    assert (
        ModelIdentity("local", "here", "1").digest()
        == ModelIdentity("local", "there", "1").digest()
    )


def test_tensor_parallelism_and_memory_are_not_part_of_the_identity():
    spread = EngineSettings(tensor_parallel_size=4, gpu_memory_utilization=0.5, max_model_len=4096)
    assert output_arguments(spread) == output_arguments(EngineSettings())


def test_flags_we_do_not_know_are_part_of_the_identity():
    known = EngineSettings(vllm_args=("--enforce-eager", "--max-num-seqs=4", "--block-size", "16"))
    unknown = EngineSettings(vllm_args=("--enable-lora", "--hf_overrides", '{"a": 1}'))
    assert output_arguments(known) == ()
    assert output_arguments(unknown) == ("--enable-lora", '--hf-overrides={"a": 1}')


@pytest.mark.parametrize(
    "words",
    [
        ("--enforce-eager", "-q", "fp8"),
        ("--max-num-seqs", "4", "-q", "fp8"),
        ("--max-num-seqs=4", "-cc", "3"),
        ("-O3",),
        ("--enforce-eager", "other/model"),
        ("--max-num-seqs", "4", "other/model"),
        ("other/model", "--enforce-eager"),
        ("--load-format", "dummy"),
        ("--limit-mm-per-prompt.audio", "2"),
    ],
)
def test_every_word_that_is_not_known_to_be_neutral_counts(words: tuple[str, ...]):
    assert output_arguments(EngineSettings(vllm_args=words)) != ()


@pytest.mark.parametrize(
    "words",
    [
        ("--enforce-eager", "--max-num-seqs", "4", "-tp", "2"),
        ("-tp=2", "--kv-cache-memory-bytes", "-1"),
        ("--max_num_seqs", "4", "--no-enable-prefix-caching"),
    ],
)
def test_neutral_flags_change_nothing_however_they_are_spelled(words: tuple[str, ...]):
    assert output_arguments(EngineSettings(vllm_args=words)) == ()


def test_the_short_name_of_a_flag_is_the_same_flag():
    short = EngineSettings(vllm_args=("--enforce-eager", "-q", "fp8"))
    assert output_arguments(short) == output_arguments(EngineSettings(quantization="fp8"))


def test_the_last_of_a_repeated_flag_counts_as_the_last():
    one = EngineSettings(vllm_args=("--kv-cache-dtype", "fp8", "--kv-cache-dtype", "auto"))
    other = EngineSettings(vllm_args=("--kv-cache-dtype", "auto", "--kv-cache-dtype", "fp8"))
    assert output_arguments(one) != output_arguments(other)


def test_the_order_of_different_flags_changes_nothing():
    one = EngineSettings(vllm_args=("--kv-cache-dtype", "fp8", "--seed", "1"))
    other = EngineSettings(vllm_args=("--seed", "1", "--kv-cache-dtype", "fp8"))
    assert output_arguments(one) == output_arguments(other)


@pytest.mark.parametrize("prefix", ["", "voice="])
def test_a_file_or_folder_that_a_flag_names_counts_by_its_content(tmp_path: Path, prefix: str):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "weights").write_bytes(b"one")
    (tmp_path / "config.yaml").write_bytes(b"one")
    for named, changed in ((adapter, adapter / "weights"), (tmp_path / "config.yaml",) * 2):
        engine = EngineSettings(vllm_args=("--some-flag", f"{prefix}{named}"))
        before = output_arguments(engine)
        changed.write_bytes(b"other")
        assert output_arguments(engine) != before


def test_a_chat_template_counts_by_its_content(tmp_path: Path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    by_path = output_arguments(EngineSettings(chat_template=str(template)))
    assert by_path == output_arguments(EngineSettings(chat_template="{{ messages }}"))
    template.write_text("{{ other }}")
    assert output_arguments(EngineSettings(chat_template=str(template))) != by_path


@given(st.binary(min_size=32, max_size=32))
def test_seeds_are_31_bits_of_the_key(key: bytes):
    assert 0 <= request_seed(key.hex()) < 2**31


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_changed_weights_in_the_same_folder_are_another_model(model_folder: Path):
    before = identify_model(str(model_folder), EngineSettings(), declared=False)
    (model_folder / "model.safetensors").write_bytes(b"weighty")
    after = identify_model(str(model_folder), EngineSettings(), declared=False)
    assert before.digest() != after.digest()


def test_notes_beside_the_weights_change_nothing(model_folder: Path):
    before = folder_digest(model_folder)
    (model_folder / "README.md").write_text("notes")
    (model_folder / ".cache").mkdir()
    (model_folder / ".cache" / "junk").write_text("junk")
    assert folder_digest(model_folder) == before


def test_an_old_file_is_read_once(model_folder: Path):
    weights = model_folder / "model.safetensors"
    for path in model_folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    before = folder_digest(model_folder)
    status = weights.stat()
    weights.write_bytes(b"WEIGHTS")  # same size, and the old time put back: only reading could tell
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder_digest(model_folder) == before


def test_a_folder_without_a_model_says_so(tmp_path: Path):
    with pytest.raises(ModelIdentityError, match=r"config\.json"):
        identify_model(str(tmp_path), EngineSettings(), declared=False)


def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id():
    with pytest.raises(ModelIdentityError, match="no such folder"):
        identify_model("./nowhere", EngineSettings(), declared=False)


def test_a_commit_needs_no_hub():
    model = identify_model("org/model", EngineSettings(revision="a" * 40), declared=False)
    assert (model.kind, model.version) == ("hub", "a" * 40)


def test_a_hub_model_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("e" * 40)
    settings = EngineSettings(hub_cache=str(tmp_path))
    assert identify_model("org/model", settings, declared=False).version == "e" * 40


def test_a_hub_model_nobody_knows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelIdentityError, match="org/model@main"):
        identify_model("org/model", EngineSettings(hub_cache=str(tmp_path)), declared=False)


def test_a_build_id_tells_name_time_and_run():
    started = datetime(2026, 11, 22, 4, 0, tzinfo=timezone(timedelta(hours=1)))
    run = "0f0e0d0c-0000-0000-0000-00000abc123f"
    assert build_id("nightly", started, run) == "nightly-20261122T030000Z-bc123f"


@given(st.text())
def test_a_build_id_is_a_plain_folder_name(name: str):
    made = build_id(name, datetime(2026, 1, 1, tzinfo=UTC), "abcdef")
    assert "/" not in made
    assert not made.startswith((".", "-"))
    assert made.isascii()


def test_a_hub_that_cannot_be_reached_is_told_in_one_sentence(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelIdentityError, match=r"the hub does not answer for org/model@main"):
        identify_model("org/model", EngineSettings(hub_cache=str(tmp_path)), declared=False)
