"""What the form of a deployment asks: the parameters that people decide, and no others.

Prefect reads a form from a flow's signature. A deployment's engines belong to its workers, so that
the form has nothing of them; who calls the flow, or starts a run through the API, may still give
every parameter.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

if TYPE_CHECKING:
    from collections.abc import Collection

    from prefect import Flow

Text = str | SkipJsonSchema[None]
"""An optional text: a plain box in the form, where an empty one means that nothing is said."""
Defaults = Annotated[None, Field(title="Defaults")]
"""Beside a group of settings: the form shows the group closed, until a person opens it."""


def shape_form(
    flow: Flow[..., Any], *, hidden: Collection[str] = (), required: Collection[str] = ()
) -> None:
    """Decide what the form of a flow's deployments asks, and what the flow's page says.

    Args:
        flow: The flow.
        hidden: Parameters that are not on the form.
        required: Parameters that must be filled in, though callers may leave them out.
    """
    known = inspect.signature(flow.fn, eval_str=True)
    asked = [
        one.replace(default=one.empty) if one.name in required else one
        for one in known.parameters.values()
        if one.name not in hidden
    ]
    # its parameters have their own descriptions
    flow.description = inspect.cleandoc(flow.fn.__doc__ or "").partition("\n\nArgs:")[0]
    # what `inspect.signature` gives for the flow, and so what Prefect makes its schema from
    flow.__signature__ = known.replace(parameters=asked)  # type: ignore[attr-defined]
