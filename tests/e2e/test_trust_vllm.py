"""Real vLLM runs no code that comes with a model unless it was asked to."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from earwitness.engine.server import EngineServer
from earwitness.errors import EngineStartError
from earwitness.settings import EngineSettings

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

WEIGHTS = Path(__file__).parents[2] / "demo_model" / "weights"


async def test_a_models_own_code_is_not_run_and_the_error_says_how_to_ask_for_it(tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(WEIGHTS, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "strangers_audio", "auto_map": {"AutoConfig": "strange.Config"}}
    (model / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "run"
    (model / "strange.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    server = EngineServer(
        EngineSettings(dtype="float32", vllm_args=("--enforce-eager",)),
        str(model),
        scratch=tmp_path / "scratch",
        clips_per_prompt=1,
        log_path=tmp_path / "log",
    )
    with pytest.raises(EngineStartError, match="--trust-remote-code"):
        await server.start()
    assert not trace.exists()
