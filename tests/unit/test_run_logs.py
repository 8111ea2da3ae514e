"""What the states and logs of runs say."""

from __future__ import annotations

import logging
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger

from earwitness.builds.failures import check_storage
from earwitness.errors import ShardFailedError
from tasks.telling import in_form_words, plainly


@pytest.mark.parametrize(("error", "kept"), [(ShardFailedError("gone"), 0), (KeyError("x"), 1)])
def test_only_an_unexpected_error_leaves_its_trace(
    error: Exception, kept: int, caplog: pytest.LogCaptureFixture
):
    log = flow_run_logger(FlowRun(id=uuid4(), flow_id=uuid4()))
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(caplog.handler)
    log.error("Engine execution exited with unexpected exception", exc_info=error)
    logger.removeHandler(caplog.handler)
    assert len({id(record) for record in caplog.records}) == kept


def test_an_expected_error_becomes_the_whole_message_of_the_state():
    @plainly
    def work() -> None:
        raise ShardFailedError("the storage is gone")

    state = work()
    assert state.is_failed()
    assert state.message == "the storage is gone"


def test_an_unexpected_error_is_raised():
    @plainly
    def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        work()


def test_in_a_form_a_message_names_settings_as_the_form_does():
    said = "allow more with --max-rejected, correct --audio-root, add --engine, or use --new"
    told = "allow more with max_rejected, correct input.audio_root, add engine.url, or use --new"
    assert in_form_words(said) == told


@pytest.mark.parametrize("why", ["HTTP 503", "http://host/{}.wav: HTTP 503"])
def test_a_shard_whose_storage_is_down_says_once_which_clip_and_why(why: str):
    failed = {f"http://host/{number}.wav": why.format(number) for number in range(10)}
    with pytest.raises(ShardFailedError) as caught:
        check_storage(failed, 13)
    assert "10 of 13 clips could not" in str(caught.value)
    assert "for example http://host/0.wav: HTTP 503; none" in str(caught.value)
