"""The GPU comparison where there is no GPU: what it makes of its figures, and of the model card."""

from __future__ import annotations

import pytest

from tests.bench.gpu.bare import Watched, _sum
from tests.bench.gpu.checkpoint import VOCABULARY, model_config
from tests.bench.gpu.comparison import TINY, Found, Scale, engine_settings, not_measured, rows

METRICS = """\
# HELP vllm:num_requests_running Requests in the batch.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_running_total{engine="0"} 900.0
"""


def found(api_servers: int, build_s: float) -> Found:
    idle = Watched(running=[0, 4, 4, 4], gpu=[50, 100])
    return Found(api_servers, 1000, 16_000.0, 40.0, 25.0, 30.0, build_s, idle)


def test_the_peak_is_the_bare_clients_best_round():
    table = {row.measure: row for row in rows([found(1, 50.0), found(4, 26.0)])}
    assert table["GPU: peak, bare client"].value == "40.0 clips/s"
    assert table["GPU: 1 API server"].value == "20.0 clips/s, 50.0% of the peak"
    assert "615 audio hours per GPU hour" in table["GPU: 4 API servers"].note


def test_the_goal_is_judged_by_the_best_number_of_api_servers():
    assert rows([found(1, 50.0), found(4, 25.5)])[-1].met is True
    assert rows([found(1, 50.0), found(4, 26.0)])[-1].met is False


def test_without_a_gpu_nothing_is_called_measured():
    for row in not_measured([found(1, 50.0)]):
        assert (row.value, row.met) == ("not measured", None)


def test_a_metric_is_summed_over_engines_and_no_other_counts():
    assert _sum(METRICS, "vllm:num_requests_running") == 7


def test_the_share_of_time_without_requests():
    assert found(1, 1.0).idle.without_request() == 0.25
    assert (Watched().without_request(), Watched().gpu_busy()) == (0, None)


def test_the_shape_is_that_of_the_public_model_card():
    config = model_config(tiny=False)
    audio, text = config["audio_config"], config["text_config"]
    heads = (audio["encoder_attention_heads"], text["num_attention_heads"])
    layers = (audio["encoder_layers"], text["num_hidden_layers"])
    widths = (audio["d_model"], text["hidden_size"], text["intermediate_size"])
    assert (heads, layers, widths) == ((20, 32), (32, 32), (1280, 4096, 11_008))
    assert text["vocab_size"] == VOCABULARY == 156_032


@pytest.mark.parametrize("scale", [Scale(), TINY])
def test_every_engine_gets_dummy_weights_and_no_prefix_cache(scale: Scale):
    words = engine_settings(scale, 2).vllm_args
    assert words[:3] == ("--load-format", "dummy", "--no-enable-prefix-caching")


def test_small_differs_in_size_alone():
    real, tiny = model_config(tiny=False), model_config(tiny=True)
    assert real.keys() == tiny.keys()
    assert real["audio_token_index"] == tiny["audio_token_index"]
    assert real["text_config"].keys() == tiny["text_config"].keys()
    assert tiny["audio_config"]["max_source_positions"] == 1500
