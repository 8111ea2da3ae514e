"""The log of a flow run keeps the trace of what nobody expected, and no other."""

from __future__ import annotations

import logging
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger

from earwitness.errors import ShardFailedError
from tasks.telling import plainly


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
