"""A bare client: sends ready 16 kHz files to an engine, so many in flight, and nothing else.

    python -m benchmarks.bare_client http://127.0.0.1:8000/v1 FOLDER --in-flight 141

What a build is held against: no manifest, no decoding, no retries, no outcome is kept. It asks
with the very bodies that earwitness sends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from earwitness.engine.wire import AskRequest
from earwitness.records import AudioPart, Message, TextPart
from earwitness.settings import DEFAULT_SYSTEM_PROMPT, SamplingSettings

QUESTION = "What do you hear?"


def asked_about(
    clip: Path, texts: tuple[str, ...] = (QUESTION,), seed: int | None = None
) -> AskRequest:
    """A question about a clip, as a record of a manifest would ask it."""
    audio = [AudioPart(type="audio", clip=0)]
    parts: list[TextPart | AudioPart] = [*audio, *(TextPart(type="text", text=t) for t in texts)]
    system = TextPart(type="text", text=DEFAULT_SYSTEM_PROMPT)
    messages = (
        Message(role="system", content=[system]),
        Message(role="user", content=parts),
    )
    return AskRequest(messages, (clip,), SamplingSettings(), max_tokens=256, seed=seed)


async def ask_all(
    url: str, bodies: list[Any], *, in_flight: int, api_key: str = ""
) -> dict[str, Any]:
    """Ask all of it, so many at once.

    Args:
        url: The engine's address, with `/v1`.
        bodies: Calls that make a request's body when its turn comes.
        in_flight: Requests at once.
        api_key: Sent along; empty: none.

    Returns:
        Seconds, the seconds until the first answer, tokens, and what the answers ended with.
    """
    turns = iter(bodies)
    told: Counter[str] = Counter()
    answered_s: list[float] = []
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def endpoint(session: aiohttp.ClientSession) -> None:
        for body in turns:
            async with session.post(f"{url}/chat/completions", data=body()) as reply:
                said = json.loads(await reply.read())
            if "choices" not in said:
                raise SystemExit(f"the engine refused: {said}")
            choice = said["choices"][0]
            told[choice["finish_reason"]] += 1
            told["tokens"] += said["usage"]["completion_tokens"]
            answered_s.append(time.perf_counter())

    connector = aiohttp.TCPConnector(limit=0)
    started_s = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:
        await asyncio.gather(*(endpoint(session) for _ in range(in_flight)))
    wall_s = time.perf_counter() - started_s
    return {"wall_s": wall_s, "first_s": answered_s[0] - started_s, **told}


def main() -> None:
    """Read the command line, ask, print what it took as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path, help="every WAV file below it is asked about once")
    parser.add_argument("--model", default="stand-in")
    parser.add_argument("--in-flight", type=int, default=141)
    parser.add_argument("--inline", action="store_true", help="clips inside the requests")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--api-key", default="")
    options = parser.parse_args()
    bodies = []
    for clip in sorted(options.folder.rglob("*.wav")):
        ask = replace(asked_about(clip), max_tokens=options.max_tokens)
        bodies.append(lambda ask=ask: ask.encoded(options.model, inline=options.inline))
    work = ask_all(options.url, bodies, in_flight=options.in_flight, api_key=options.api_key)
    print(json.dumps(asyncio.run(work)))


if __name__ == "__main__":
    main()
