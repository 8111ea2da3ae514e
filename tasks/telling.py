"""States that say what happened, for the people who watch runs."""

from __future__ import annotations

import inspect
import logging
import re
from functools import cache, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.runtime import deployment
from prefect.states import Completed, Failed
from pydantic import BaseModel

from earwitness.errors import EarwitnessError
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("earwitness.run")


def _unexpected(record: logging.LogRecord) -> bool:
    """False for the trace of an error that the run's state says already."""
    return not (record.exc_info and isinstance(record.exc_info[1], EarwitnessError))


# where the engine logs whatever a flow run's process ends with
logging.getLogger("prefect.flow_runs").addFilter(_unexpected)

_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")


@cache
def _form_fields() -> dict[str, str]:
    """The name that a setting has in a form, by its option's name on the command line."""
    found = {"engine": "engine.url", "format": "layout.formats", "reason": "reason"}
    for name, field in BuildSettings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            inner = {one.replace("_", "-"): f"{name}.{one}" for one in group.model_fields}
            found = {**inner, **found}
        else:
            found[name.replace("_", "-")] = name
    return found


def in_form_words(text: str) -> str:
    """A message that names settings as a form does, and not as options of the command line.

    Args:
        text: A message of an error.
    """
    fields = _form_fields()
    return _OPTION.sub(lambda found: fields.get(found[1], found[0]), text)


P = ParamSpec("P")
T = TypeVar("T")


def told(result: T, message: str, name: str | None = None) -> T:
    """Complete a task with a message.

    Args:
        result: What the task gives.
        message: What the run's state says.
        name: Another name for the state, such as `Cached`.

    Returns:
        A completed state; Prefect hands its caller the result in it.
    """
    return cast("T", Completed(name=name, message=message, data=result))


def run_log() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """The log of the current run, as its page shows it; outside of a run an ordinary one."""
    try:
        return get_run_logger()
    except MissingContextError:
        return _log


def plainly(work: Callable[P, T]) -> Callable[P, T]:
    """Have a run that fails for a known reason say that reason alone.

    Prefect puts the error's class before the message and a traceback into the log. Both are kept
    for errors that nobody expected.

    Args:
        work: The function of a task or a flow.

    Returns:
        The function; where it raises an error of ours, it gives a failed state that holds it.
            Prefect raises that error for its caller, and retries a task as it would have.
    """

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except EarwitnessError as error:
            message = in_form_words(str(error)) if deployment.id else str(error)
            return cast("T", Failed(message=message, data=error))

    # Prefect reads the types of parameters where the function is: that would be here
    run.__signature__ = inspect.signature(work, eval_str=True)  # type: ignore[attr-defined]
    return run
