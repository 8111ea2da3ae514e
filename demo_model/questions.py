"""What the demo model can be asked, in which words, and what is right.

The model knows these wordings and no others: it learnt sentences, not a language.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.random import Generator

    from demo_model.sounds import Clip

NUMBERS = ("none", "one", "two", "three", "four", "five")
NUMBERS_ZH = ("没有", "一", "二", "三", "四", "五")

WORDINGS = {
    "count": (
        "How many beeps are there?",
        "How many beeps do you hear?",
        "Count the beeps.",
        "How many times does it beep?",
    ),
    "count (Chinese)": (
        "这段音频里有几声？",
        "这段音频里有几声?",
        "你听到几声？",
        "请数一数有几声。",
    ),
    "sound": (
        "What do you hear?",
        "What sound is this?",
        "What kind of sound do you hear?",
        "What is in this audio clip?",
    ),
    "sound (Chinese)": ("你听到了什么？", "你听到了什么?", "这是什么声音？", "这是什么声音?"),
    "description": (
        "Describe the sound in this audio clip.",
        "Describe the sound.",
        "Describe what you hear.",
    ),
    "pitch": (
        "Is the pitch low, medium or high?",
        "Is the pitch high, medium or low?",
        "What is the pitch: low, medium or high?",
        "How high is the pitch?",
    ),
    "loudness": (
        "Is the sound loud or quiet?",
        "Is the sound quiet or loud?",
        "Is it loud or quiet?",
        "How loud is the sound?",
    ),
    "beep length": (
        "Are the beeps short or long?",
        "Is each beep short or long?",
        "How long are the beeps?",
    ),
    "direction": (
        "Does the pitch rise or fall?",
        "Does the pitch go up or down?",
        "Is the pitch rising, falling or steady?",
    ),
    "any beeps": ("Are there any beeps?", "Do you hear any beeps?", "Does it beep?"),
    "more beeps": (
        "Which clip has more beeps, the first or the second?",
        "Which clip has more beeps?",
        "Which has more beeps?",
        "Which clip has more beeps, clip one or clip two?",
    ),
    "higher": (
        "Which clip has the higher pitch, the first or the second?",
        "Which clip has the higher pitch?",
        "Which of the two tones is higher?",
        "Which clip is higher?",
    ),
    "louder": (
        "Which clip is louder, the first or the second?",
        "Which clip is louder?",
        "Which of the two clips is louder?",
    ),
}

SHARES = {
    "count": 3.0,
    "count (Chinese)": 2.0,
    "sound": 1.0,
    "sound (Chinese)": 0.6,
    "description": 2.0,
    "pitch": 1.5,
    "loudness": 1.5,
    "beep length": 1.0,
    "direction": 1.0,
    "any beeps": 0.6,
    "no audio needed": 0.6,
    "more beeps": 4.0,
    "higher": 1.2,
    "louder": 1.2,
}
"""How often each is practised."""

GENERAL = {
    "How many minutes has an hour?": "sixty",
    "How many minutes are there in an hour?": "sixty",
    "How many days has a week?": "seven",
    "How many days are there in a week?": "seven",
    "How many legs has a dog?": "four",
    "What colour is the sky?": "blue",
    "Is ice hot or cold?": "cold",
    "一年有几个月？": "十二",
    "一年有几个月?": "十二",
}
"""Questions that need no ears."""

NO_AUDIO = "There is no audio."
"""What is right to say of a sound when no clip came with the question."""

ANSWER_WORDS = (
    "short",
    "long",
    "low",
    "medium",
    "high",
    "loud",
    "quiet",
    "beep",
    "beeps",
    "tone",
    "rising",
    "falling",
    "noise",
    "clicks",
    "silence",
    "the first",
    "the second",
    "yes",
    "no",
)
"""Words of answers: the tokenizer should know each as one."""

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
SYSTEM_PROMPTS = (
    "You are a helpful listener.",
    "You listen to sounds and answer questions.",
    "Answer in one word.",
    "Answer in a few words.",
    "Be short.",
    "Listen carefully and answer the question.",
    "You are an expert in sound.",
    "You describe sounds for people who cannot hear.",
    "You are a careful listener. Say only what you hear.",
    "Answer the question about the audio.",
    "你是一位细心的听众。",
    "请用几个字回答。",
)

_SOUNDS = {
    "silence": ("silence", "安静"),
    "beeps": ("beeps", "哔声"),
    "tone": ("a tone", "长音"),
    "rising": ("a rising tone", "上升的音"),
    "falling": ("a falling tone", "下降的音"),
    "noise": ("noise", "噪声"),
    "clicks": ("clicks", "咔嗒声"),
}
_DIRECTIONS = {"rising": "it rises", "falling": "it falls", "tone": "it is steady"}
_LOUDER = 4.0
_HIGHER = 1.65


@dataclass(frozen=True)
class Question:
    """A question and its right answer.

    Attributes:
        type: A key of `SHARES`.
        text: The wording.
        answer: What is right.
    """

    type: str
    text: str
    answer: str


def right_answers(*clips: Clip) -> dict[str, str]:
    """All that can be asked about a clip, or about two: types and right answers."""
    return dict(_about_one(*clips) if len(clips) == 1 else _about_two(*clips))


def ask(
    rng: Generator, clips: tuple[Clip, ...], *, type_: str | None = None, plain: bool = False
) -> Question:
    """Draw a question about one clip or two, or about none.

    Args:
        rng: Where chance comes from.
        clips: What it is about.
        type_: Its type. Default: drawn by `SHARES`.
        plain: The first wording of its type, not any.

    Returns:
        The question, with what is right.
    """
    right = right_answers(*clips) if clips else dict.fromkeys(list(WORDINGS)[:10], NO_AUDIO)
    if type_ is None:
        types = [*right, "no audio needed"]
        shares = [SHARES[name] for name in types]
        type_ = str(rng.choice(types, p=[share / sum(shares) for share in shares]))
    if type_ == "no audio needed":
        text = str(rng.choice(list(GENERAL)))
        return Question(type_, text, GENERAL[text])
    texts = WORDINGS[type_]
    # the first wording is the one people are told about
    text = texts[0] if plain or rng.random() < 0.25 else str(rng.choice(texts))
    return Question(type_, text, right[type_])


def _about_one(clip: Clip) -> Iterator[tuple[str, str]]:
    count = len(clip.beeps)
    yield "count", NUMBERS[count]
    yield "count (Chinese)", NUMBERS_ZH[count]
    yield "sound", _SOUNDS[clip.kind][0]
    yield "sound (Chinese)", _SOUNDS[clip.kind][1]
    yield "description", _description(clip)
    yield "any beeps", "yes" if count else "no"
    if clip.pitch is not None:
        yield "pitch", clip.pitch
    if clip.loudness is not None:
        yield "loudness", clip.loudness
    if clip.length is not None:
        yield "beep length", clip.length
    if clip.kind in _DIRECTIONS:
        yield "direction", _DIRECTIONS[clip.kind]


def _about_two(first: Clip, second: Clip) -> Iterator[tuple[str, str]]:
    def which(of_first: float, of_second: float) -> str:
        return "the first" if of_first > of_second else "the second"

    if first.beeps and second.beeps and len(first.beeps) != len(second.beeps):
        yield "more beeps", which(len(first.beeps), len(second.beeps))
    if first.pitch_hz and second.pitch_hz:
        ratio = first.pitch_hz / second.pitch_hz
        if max(ratio, 1 / ratio) > _HIGHER:
            yield "higher", which(first.pitch_hz, second.pitch_hz)
        if max(first.level / second.level, second.level / first.level) > _LOUDER:
            yield "louder", which(first.level, second.level)


def _description(clip: Clip) -> str:
    if clip.kind == "silence":
        return "Silence."
    if clip.kind == "beeps":
        count = len(clip.beeps)
        noun = "beep" if count == 1 else "beeps"
        return f"{NUMBERS[count].title()} {clip.length} {clip.pitch} {noun}, {clip.loudness}."
    what = f"A {clip.pitch} tone" if clip.kind == "tone" else _SOUNDS[clip.kind][0]
    return f"{what[0].upper()}{what[1:]}, {clip.loudness}."
