"""Conversations as manifests write them, and as an engine is asked them."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from earwitness.errors import BadRecordError
from earwitness.escaping import counted
from earwitness.manifest.parse import json_kind
from earwitness.records import Message, Reason, Rejection, Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from earwitness.records import AudioPart, Json, TextPart


MARK = "<audio>"
"""Where a clip goes inside a text."""

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_AUDIO_PARTS = frozenset({"audio", "audio_url", "input_audio"})

# the pieces of a turn: a text, or None for the place of a clip
_Pieces = list[str | None]
_Turn = tuple[Literal["system", "user", "assistant"], _Pieces]


def render(
    conversation: Any,
    clips: int,
    *,
    system_prompt: str,
    question: str | None = None,
    field: str = "conversation",
) -> tuple[Message, ...]:
    """What will be asked about a record's clips.

    Args:
        conversation: The record's conversation, in the `from`/`value` form or OpenAI's.
        clips: How many clips the record has.
        system_prompt: Put before conversations whose system turn is missing or empty; empty: none.
        question: Asked where the record brings no conversation.
        field: The field's name, for the rejection's detail.

    Returns:
        The messages, every clip in its place exactly once.

    Raises:
        BadRecordError: The conversation breaks a rule; its rejection says which.
    """
    text = lone_question(conversation)
    if text is not None:
        return ask_text(text, clips, system_prompt)
    if asks_nothing(conversation):
        if question is None:
            state = "missing" if conversation is None else "empty"
            _reject(
                Reason.NO_CONVERSATION,
                f"field {field!r} is {state}, and there is no --question to ask instead",
            )
        turns: list[_Turn] = [("user", _split_marks(question))]
    else:
        turns = _read_turns(conversation, field)
        _check_order(turns)
    _place_clips(turns, clips)
    # an empty system turn is no system turn; all others are not empty
    turns = [turn for turn in turns if turn[1]]
    if system_prompt and turns[0][0] != "system":
        turns.insert(0, ("system", [system_prompt]))
    return _messages(turns)


def asks_nothing(conversation: Any) -> bool:
    """Whether a record brings no conversation: it is missing, or empty but for system turns.

    Args:
        conversation: A record's conversation, None where it has none.
    """
    if not conversation or not isinstance(conversation, list):
        # pandas writes NaN for a field that is missing
        missing = conversation is None or (isinstance(conversation, float) and isnan(conversation))
        return missing or conversation in ([], "")
    first = conversation[0]
    if isinstance(first, dict) and "system" not in (first.get("from"), first.get("role")):
        return False  # nearly all are told by their first turn
    try:
        return not any(role != "system" or said for role, said in _read_turns(conversation, ""))
    except BadRecordError:
        return False


def lone_question(conversation: Any) -> str | None:
    """The text of the commonest conversation, one question without marks; None for all others.

    Most manifests have nothing else: this keeps planning near the cost of parsing.

    Args:
        conversation: A record's conversation.
    """
    if not isinstance(conversation, list) or len(conversation) != 1:
        return None
    turn = conversation[0]
    if not isinstance(turn, dict) or len(turn) != 2 or turn.get("from") not in ("human", "user"):  # noqa: PLR2004 - `from` and `value`
        return None
    text = turn.get("value")
    if not isinstance(text, str) or MARK in text or not text or text.isspace():
        return None
    return text


def ask_text(text: str, clips: int, system_prompt: str) -> tuple[Message, ...]:
    """The messages of a lone question: all clips, then the text.

    Args:
        text: What is asked.
        clips: How many clips there are.
        system_prompt: Put before the question; empty: none.
    """
    places: list[TextPart | AudioPart] = [{"type": "audio", "clip": clip} for clip in range(clips)]
    places.append({"type": "text", "text": text})
    question: Message = {"role": "user", "content": places}
    if not system_prompt:
        return (question,)
    system: list[TextPart | AudioPart] = [{"type": "text", "text": system_prompt}]
    return ({"role": "system", "content": system}, question)


def _read_turns(conversation: Any, field: str) -> list[_Turn]:
    if not isinstance(conversation, list):
        kind = json_kind(conversation)
        _reject(Reason.BAD_CONVERSATION, f"field {field!r} is {kind}, not a list of turns")
    form = None
    turns = []
    for number, turn in enumerate(conversation, 1):
        if not isinstance(turn, dict):
            _reject(Reason.BAD_CONVERSATION, f"turn {number} is {json_kind(turn)}, not an object")
        # null counts as absent: Parquet gives every turn the keys of all turns
        speaker, value = turn.get("from"), turn.get("value")
        role, content = turn.get("role"), turn.get("content")
        plain = speaker is not None or value is not None
        openai = role is not None or content is not None
        if plain and openai:
            _reject(
                Reason.BAD_CONVERSATION,
                f"turn {number} has both from/value and role/content; use one form",
            )
        if not plain and not openai:
            _reject(
                Reason.BAD_CONVERSATION, f"turn {number} has neither from/value nor role/content"
            )
        if form is not None and form is not plain:
            _reject(
                Reason.BAD_CONVERSATION,
                f"turn {number} does not use the same field names as the turns before it",
            )
        form = plain
        by = _role(speaker if plain else role, number)
        pieces = _text_pieces(value, number) if plain else _content_pieces(content, number)
        if not pieces and by != "system":
            _reject(Reason.EMPTY_TURN, f"turn {number} is empty")
        turns.append((by, pieces))
    return turns


def _role(name: Any, number: int) -> Literal["system", "user", "assistant"]:
    if name is None:
        _reject(Reason.UNKNOWN_ROLE, f"turn {number} has no role")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        known = ", ".join(ROLES)
        _reject(
            Reason.UNKNOWN_ROLE,
            f"turn {number} has the role {str(name)[:80]!r}; the known roles are {known}",
        )
    return role


def _text_pieces(value: Any, number: int) -> _Pieces:
    if value is None:
        return []
    if not isinstance(value, str):
        _reject(Reason.BAD_CONVERSATION, f"turn {number} is {json_kind(value)}, not a text")
    return _split_marks(value)


def _content_pieces(content: Any, number: int) -> _Pieces:
    """The pieces of an OpenAI `content`: a text, or a list of text and audio parts."""
    if not isinstance(content, list):
        return _text_pieces(content, number)
    pieces: _Pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.extend(_split_marks(part["text"]))
        elif isinstance(kind, str) and kind in _AUDIO_PARTS:
            pieces.append(None)
        else:
            name = repr(str(kind)[:80]) if kind is not None else "no type"
            _reject(
                Reason.BAD_CONVERSATION,
                f"turn {number} has a part of {name}; only text and audio are read",
            )
    return pieces


def _split_marks(text: str) -> _Pieces:
    """Cut a text at its marks; pieces that are only white space fall away."""
    if MARK not in text:
        return [text] if text and not text.isspace() else []
    pieces: _Pieces = []
    segments = text.split(MARK)
    for position, segment in enumerate(segments):
        # manifests in LLaVA's style put marks on lines of their own: that newline is no text
        cut = segment
        if position:
            pieces.append(None)
            cut = cut.removeprefix("\n")
        if position < len(segments) - 1:
            cut = cut.removesuffix("\n")
        if cut and not cut.isspace():
            pieces.append(cut)
    return pieces


def _check_order(turns: list[_Turn]) -> None:
    spoken = [(number, role) for number, (role, pieces) in enumerate(turns, 1) if pieces]
    if spoken[0][1] == "system":
        del spoken[0]
    for position, (number, role) in enumerate(spoken):
        expected = "assistant" if position % 2 else "user"
        if role != expected:
            _reject(
                Reason.TURN_ORDER,
                f"turn {number} has the role {role}, but the {expected} has to speak there",
            )
    last = spoken[-1][1] if spoken else "system"
    if last != "user":
        _reject(
            Reason.NO_QUESTION,
            f"the last turn has the role {last}; it has to be the user's question",
        )


def _place_clips(turns: list[_Turn], clips: int) -> None:
    marks = 0
    for number, (role, pieces) in enumerate(turns, 1):
        if None in pieces:
            if role != "user":
                _reject(
                    Reason.AUDIO_MARK_MISMATCH,
                    f"turn {number} has the role {role} and {MARK}; only a user's turn may have it",
                )
            marks += pieces.count(None)
    if marks == 0:
        first = next(index for index, (role, _) in enumerate(turns) if role == "user")
        turns[first] = ("user", [*[None] * clips, *turns[first][1]])
    elif marks != clips:
        _reject(
            Reason.AUDIO_MARK_MISMATCH,
            f"the conversation has {counted(marks, f'{MARK} mark')}, "
            f"but the record has {counted(clips, 'clip')}",
        )


def _messages(turns: list[_Turn]) -> tuple[Message, ...]:
    messages: list[Message] = []
    clip = 0
    for role, pieces in turns:
        content: list[TextPart | AudioPart] = []
        for piece in pieces:
            if piece is None:
                content.append({"type": "audio", "clip": clip})
                clip += 1
            else:
                content.append({"type": "text", "text": piece})
        messages.append({"role": role, "content": content})
    return tuple(messages)


def _reject(reason: Reason, detail: str) -> NoReturn:
    raise BadRecordError(Rejection(Stage.PLAN, reason, detail))


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

    from earwitness.manifest.schema import common_type

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
