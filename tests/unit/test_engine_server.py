"""The command that starts vLLM, and the reason dug out when it does not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.engine.command import serve_command, split_cores
from earwitness.engine.failure import start_failure_advice, start_failure_reason
from earwitness.engine.launcher import with_whole_prompts
from earwitness.settings import EngineSettings
from tests.support.standin import parse_options

LOGS = Path(__file__).with_name("engine_logs")


def command_and_env(model="org/model", **settings):
    return serve_command(
        EngineSettings(**settings),
        model,
        scratch=Path("/scratch"),
        port=4711,
        api_key="secret",
        clips_per_prompt=3,
    )


def flag(command, name):
    return command[command.index(name) + 1]


def test_it_listens_on_the_loopback_and_reads_the_scratch_alone():
    command, _ = command_and_env()
    assert flag(command, "--host") == "127.0.0.1"
    assert flag(command, "--allowed-local-media-path") == "/scratch"


def test_the_key_is_in_the_environment_and_not_on_the_command_line():
    command, env = command_and_env()
    assert env["VLLM_API_KEY"] == "secret"
    assert "secret" not in " ".join(command)


def test_all_of_a_records_clips_are_heard():
    command, _ = command_and_env()
    assert json.loads(flag(command, "--limit-mm-per-prompt")) == {"audio": 3}


def test_settings_keep_vllms_names():
    command, _ = command_and_env(
        tensor_parallel_size=2, gpu_memory_utilization=0.8, max_model_len=4096, dtype="float32",
        revision="abc", api_server_count=5, max_num_seqs=9, trust_remote_code=True,
    )  # fmt: skip
    named = {"--tensor-parallel-size": "2", "--gpu-memory-utilization": "0.8",
             "--max-model-len": "4096", "--dtype": "float32", "--revision": "abc",
             "--api-server-count": "5", "--max-num-seqs": "9"}  # fmt: skip
    assert {name: flag(command, name) for name in named} == named
    assert "--trust-remote-code" in command


def test_what_is_not_set_is_left_to_vllm():
    command, _ = command_and_env()
    for name in ("--dtype", "--max-model-len", "--tensor-parallel-size", "--trust-remote-code"):
        assert name not in command


def test_other_flags_come_last_so_that_they_win():
    command, _ = command_and_env(vllm_args=("--seed", "7"))
    assert command[-2:] == ["--seed", "7"]


def test_another_command_gets_the_same_flags():
    ours, _ = command_and_env()
    other, _ = command_and_env(command=("serve-it", "now"))
    assert other == ["serve-it", "now", *ours[3:]]


def test_a_local_model_is_served_offline(tmp_path):
    assert command_and_env(str(tmp_path))[1]["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in command_and_env("org/model")[1]


def test_on_a_cpu_prompts_are_read_whole_because_a_cut_one_with_a_seed_ends_the_engine():
    words = ["serve", "org/model", "--port", "1"]
    assert with_whole_prompts(words, "0.32.0+cpu") == [*words, "--no-enable-chunked-prefill"]


def test_on_a_gpu_vllm_reads_prompts_as_it_likes():
    words = ["serve", "org/model"]
    assert with_whole_prompts(words, "0.33.0") == words


@pytest.mark.parametrize(
    "said",
    [
        ["--enable-chunked-prefill"],
        ["--enable_chunked_prefill=true"],
        ["--no-enable-chunked-prefill"],
        ["--max-num-batched-tokens", "512"],
    ],
)
def test_who_says_how_prompts_are_read_on_a_cpu_is_heard(said):
    words = ["serve", "org/model", *said]
    assert with_whole_prompts(words, "0.32.0+cpu") == words


def test_nothing_is_reported_to_anyone():
    env = command_and_env()[1]
    assert (env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"]) == ("1", "1")


@given(st.integers(1, 64), st.integers(1, 16))
def test_cores_are_shared_out_evenly_and_every_worker_has_one(cores, workers):
    shares = [group.split(",") for group in split_cores(list(range(cores)), workers).split("|")]
    assert len(shares) == workers
    assert len({len(share) for share in shares}) == 1
    if cores >= workers:
        used = [core for share in shares for core in share]
        assert len(used) == len(set(used))


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("unknown_flag", "unrecognized arguments: --no-such-flag 3"),
        ("no_model_in_folder", "Invalid repository ID or local directory specified: '/models/e"),
        ("no_such_folder", "HFValidationError: Repo id must be in the form"),
        ("context_too_long", "User-specified max_model_len (100000000) is greater than the deri"),
        ("worker_assertion", "AssertionError: Not enough allowed NUMA nodes to bind threads of "),
        ("no_memory_for_kv_cache", "Available memory on node 0 (5.71/10.21 GiB) on kv cache all"),
        ("cuda_out_of_memory", "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB."),
        ("no_cache_blocks", "No available memory for the cache blocks. Try increasing"),
        ("cache_too_small", "To serve at least one request with the model's max seq len (32768)"),
        ("memory_taken", "Free memory on device cuda:0 (1.95/23.64 GiB) on startup is less than"),
        ("hub_model_unknown", "OSError: nobody/nothing is not a local folder and is not a vali"),
    ],
)
def test_vllms_own_reason_is_found_in_its_output(log, reason):
    found = start_failure_reason((LOGS / f"{log}.log").read_text())
    assert found.startswith(reason)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("log", "setting"),
    [
        ("cuda_out_of_memory", "tensor_parallel_size"),
        ("no_cache_blocks", "raise gpu_memory_utilization"),
        ("cache_too_small", "lower max_model_len"),
        ("memory_taken", "lower gpu_memory_utilization"),
    ],
)
def test_where_memory_lacks_it_is_said_which_setting_helps(log, setting):
    reason = start_failure_reason((LOGS / f"{log}.log").read_text())
    assert setting in start_failure_advice(reason)


def test_where_no_setting_helps_no_advice_is_given():
    reason = start_failure_reason((LOGS / "unknown_flag.log").read_text())
    assert start_failure_advice(reason) == ""


def test_without_any_exception_the_last_lines_are_shown():
    assert start_failure_reason("one\ntwo\nthree\n\n") == "two / three"


def test_silence_is_said_so():
    assert start_failure_reason("") == "it printed nothing"


@given(st.text())
def test_any_output_gives_a_short_reason(log_text):
    assert 0 < len(start_failure_reason(log_text)) <= 400


def test_the_stand_in_takes_vllms_command_line():
    command, _ = command_and_env("org/model", command=("standin",), vllm_args=("--slots", "2"))
    options, model = parse_options(command[1:])
    assert (model, options.port, options.slots) == ("org/model", 4711, 2)


@pytest.mark.parametrize("argv", [["serve", "m", "--dtype", "x"], ["m", "--dtype", "x"]])
def test_the_stand_in_serves_under_the_models_name(argv):
    assert parse_options(argv)[1] == "m"
