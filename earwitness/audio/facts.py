"""What a build makes of a clip's facts: its sound under the settings, or why it is rejected.

Facts are kept between builds; limits are held against them anew in each build, so that a changed
limit costs no download and no request for the clips that it does not concern.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from earwitness.records import ClipFacts, Reason, Rejection, Stage
from earwitness.settings import Silence, TooLong

if TYPE_CHECKING:
    from earwitness.records import HeardSound
    from earwitness.settings import AudioSettings

DEFAULT_MAX_DURATION_S = 30.0
"""What Whisper-style encoders (Qwen2-Audio's among them) hear at most; used where neither settings
nor the model name a limit."""
FACTS_VERSION = 1
"""Version of how a container is read that `FACTS_VERSIONS` does not name."""
FACTS_VERSIONS: dict[str, int] = {}
"""By container. Raised when a decoder is mended: clips of that container are decoded once more, and
only those that sound different now are asked again. `""`: files that no decoder opened."""


def facts_version(container: str) -> int:
    """The version of how a container is read now."""
    return FACTS_VERSIONS.get(container, FACTS_VERSION)


def are_current(facts: ClipFacts) -> bool:
    """True for facts that would be found the same way now."""
    return facts.version == facts_version(facts.container)


def faulty(rejection: Rejection) -> ClipFacts:
    """The facts of a clip that cannot be decoded."""
    return ClipFacts("", facts_version(""), fault=rejection)


def max_duration_s(policy: AudioSettings) -> float:
    """The longest clip the model hears under this policy."""
    return policy.max_duration_s or DEFAULT_MAX_DURATION_S


def sound_of(facts: ClipFacts, policy: AudioSettings) -> HeardSound | None:
    """The sound that a clip has under a policy; None: it was not made yet."""
    if facts.duration_s is None:
        return None
    limit_s = max_duration_s(policy)
    cut_s = limit_s if facts.duration_s > limit_s else None
    wanted = (policy.sample_rate_hz, cut_s)
    return next((one for one in facts.sounds if (one.rate_hz, one.cut_s) == wanted), None)


def with_earlier_sounds(facts: ClipFacts, earlier: ClipFacts | None) -> ClipFacts:
    """Facts found now, with the sounds that an earlier build made of the same bytes."""
    if earlier is None or not are_current(earlier) or facts.fault is not None:
        return facts
    made = {(one.rate_hz, one.cut_s) for one in facts.sounds}
    kept = [one for one in earlier.sounds if (one.rate_hz, one.cut_s) not in made]
    return replace(facts, sounds=(*facts.sounds, *kept))


def judge(facts: ClipFacts, policy: AudioSettings) -> Rejection | None:
    """Hold a clip's facts against a policy.

    Args:
        facts: What is known of the clip.
        policy: Limits, and what to do with long and with silent clips.

    Returns:
        Why the clip is rejected: its fault, `clip_too_short`, `clip_too_long` or `silent`; None:
        nothing that is known speaks against it.
    """
    if facts.fault is not None:
        return facts.fault
    return _judge_duration(facts, policy) or _judge_level(facts, policy)


def _judge_duration(facts: ClipFacts, policy: AudioSettings) -> Rejection | None:
    longest_s = max_duration_s(policy)
    reject = policy.too_long is TooLong.REJECT
    lasts_s = facts.duration_s
    if lasts_s is None:
        if reject and facts.longer_than_s >= longest_s:
            return _rejected(Reason.CLIP_TOO_LONG, f"the clip lasts longer than {longest_s:g} s")
        return None
    if lasts_s < policy.min_duration_s or lasts_s == 0:
        detail = f"the clip lasts {lasts_s:g} s, and the shortest allowed is "
        return _rejected(Reason.CLIP_TOO_SHORT, f"{detail}{policy.min_duration_s:g} s")
    if reject and lasts_s > longest_s:
        detail = f"the clip lasts {lasts_s:g} s, and the model hears at most {longest_s:g} s"
        return _rejected(Reason.CLIP_TOO_LONG, detail)
    return None


def _judge_level(facts: ClipFacts, policy: AudioSettings) -> Rejection | None:
    sound = sound_of(facts, policy)
    if sound is None or policy.silence is Silence.KEEP:
        return None
    if sound.peak >= 10 ** (policy.silence_dbfs / 20):
        return None
    level = f"{20 * math.log10(sound.peak):.1f} dBFS" if sound.peak > 0 else "digital silence"
    detail = f"the clip is silent: its peak is {level}, below the threshold of "
    return Rejection(Stage.DECODE, Reason.SILENT, f"{detail}{policy.silence_dbfs:g} dBFS")


def _rejected(reason: Reason, detail: str) -> Rejection:
    return Rejection(Stage.VALIDATE, reason, detail)
