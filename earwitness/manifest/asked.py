"""What `--question` asked, as the conversation that the record would have brought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from earwitness.manifest.conversation import asks_nothing

if TYPE_CHECKING:
    import pyarrow as pa

    from earwitness.records import Json


class Asked(NamedTuple):
    """The conversation of records that brought none.

    Attributes:
        column: The field it belongs in.
        turns: The conversation.
    """

    column: str
    turns: list[Json]

    def complete(self, record: Json) -> Json:
        """A record with the conversation it was asked: its own, else this one."""
        if asks_nothing(record.get(self.column)):
            return {**record, self.column: self.turns}
        return record


def asked_turns(question: str, kind: pa.DataType | None) -> list[Json]:
    """A question as a conversation in the form of the manifest's others.

    Args:
        question: What is asked.
        kind: The type of the manifest's conversations; None: it has none, or of several forms.
    """
    import pyarrow as pa

    turn = _turn_fields(kind)
    if "role" not in turn or "from" in turn:
        return [{"from": "human", "value": question}]
    if pa.types.is_nested(turn.get("content", pa.string())):
        return [{"role": "user", "content": [{"type": "text", "text": question}]}]
    return [{"role": "user", "content": question}]


def type_with(turns: list[Json], kind: pa.DataType | None) -> pa.DataType | None:
    """The type of a column of conversations that this one is added to.

    Args:
        turns: The conversation that is added.
        kind: The column's type without it; None: there is no such column.

    Returns:
        A type that holds all of them; None where there is none.
    """
    import pyarrow as pa

    from earwitness.manifest.arrow_types import common_type

    own: pa.DataType = pa.array([turns]).type
    if kind is None or not _turn_fields(kind):
        return own  # records with anything but a list of turns were rejected
    if _holds(kind, turns):
        return kind
    try:
        wider: pa.DataType = common_type(kind, own)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return wider if _holds(wider, turns) else None


def _turn_fields(kind: Any) -> dict[str, Any]:
    """Names and types of the fields of turns; empty where a type has no turns."""
    import pyarrow as pa

    turn = getattr(kind, "value_type", None)
    if turn is None or not pa.types.is_struct(turn):
        return {}
    return {turn.field(index).name: turn.field(index).type for index in range(turn.num_fields)}


def _holds(kind: pa.DataType, turns: list[Json]) -> bool:
    """Whether a type keeps every field of a conversation."""
    import pyarrow as pa

    try:
        column: Any = pa.array([turns], kind)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return all(
        turn == {name: kept[name] for name in turn if name in kept}
        for turn, kept in zip(turns, column.to_pylist()[0], strict=True)
    )
