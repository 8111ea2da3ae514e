"""One definition of every setting; what may change on resume and what may not."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from earwitness.settings import BuildSettings


def settings(**changes: object) -> BuildSettings:
    return BuildSettings(manifest="m.jsonl", output="out", **changes)


def test_a_setting_nobody_knows_is_refused():
    with pytest.raises(ValidationError, match="temprature"):
        settings(sampling={"temprature": 1})


def test_overriding_one_nested_value_keeps_the_others_defaults():
    assert settings(sampling={"temperature": 0}).sampling.top_p == 0.9


def test_no_seed_is_set_where_none_is_asked_for():
    assert settings().sampling.seed is None


def test_at_temperature_0_a_seed_changes_nothing_and_is_not_kept():
    greedy = settings(sampling={"temperature": 0, "seed": 1})
    assert greedy == settings(sampling={"temperature": 0})
    assert greedy.frozen_digest() == settings(sampling={"temperature": 0}).frozen_digest()


def test_columns_must_have_different_names():
    with pytest.raises(ValidationError, match="different names"):
        settings(layout={"answer_column": "audio"})


@pytest.mark.parametrize(
    "changes",
    [
        {"max_rejected": 0.1},
        {"build": "some-build"},
        {"engine": {"url": ("http://gpu1:8000/v1",)}},
        {"engine": {"tensor_parallel_size": 2}},
        {"engine": {"request_timeout_s": 10}},
        {"engine": {"price_per_hour": 4.5}},
        {"layout": {"window_batches": 9}},
    ],
)
def test_gates_and_machinery_may_change_when_a_build_goes_on(changes: dict[str, object]):
    assert settings(**changes).frozen_digest() == settings().frozen_digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 7},
        {"question": "caption"},
        {"system_prompt": ""},
        {"sampling": {"seed": 3}},
        {"audio": {"too_long": "cut"}},
        {"engine": {"dtype": "float16"}},
        {"layout": {"shard_rows": 10}},
        {"input": {"audio_column": "clips"}},
    ],
)
def test_what_is_asked_and_how_it_is_laid_out_makes_another_build(changes: dict[str, object]):
    assert settings(**changes).frozen_digest() != settings().frozen_digest()


def test_every_setting_says_what_it_means():
    undocumented = [
        f"{model.__name__}.{name}"
        for model in [
            BuildSettings,
            *(field.annotation for field in BuildSettings.model_fields.values()),
        ]
        if hasattr(model, "model_fields")
        for name, field in model.model_fields.items()
        if not field.description and not hasattr(field.annotation, "model_fields")
    ]
    assert undocumented == []
