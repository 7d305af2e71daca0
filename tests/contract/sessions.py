"""Recorded sessions: one that ends, one that is stopped, one that breaks off; as a quick client, a slow one, one at a
lower rate and the followers of event streams saw them."""

from __future__ import annotations

import math
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from engine.domain.generation import Chunk, EndReason, GenerationEnd, TokenKind, TokenLogprob
from tests.contract.recording import ChunkRuntime
from tests.fakes.api import ndjson, running_api, sse
from tests.fakes.slice import RecordingSink

PARTS = (
    (TokenKind.THINKING, ("hm", ", \n")),
    (TokenKind.ANSWER, ("Grü",)),
    (TokenKind.ANSWER, ("ße", " \U0001f642", "\u2028")),
    (TokenKind.TOOL, ('{"a":', "1}")),
    (TokenKind.ANSWER, ("\x00\x1b[31m", "</script>", "")),
    (TokenKind.THINKING, ("\u202e",)),
    (TokenKind.ANSWER, ("data: x\n\nevent: y\r\n",)),
)
LOGPROBS = (-0.1, -3.5, -math.inf, 0.0)
REPEATS = 12


def script() -> list[tuple[float, Chunk]]:
    """Kinds, sizes and gaps of all sorts; every third chunk has no log-probabilities, so it is one token."""
    chunks = []
    for number in range(REPEATS * len(PARTS)):
        kind, texts = PARTS[number % len(PARTS)]
        entries = tuple(TokenLogprob(text, LOGPROBS[number % 4]) for text in texts) if number % 3 else ()
        gap_s = (0.004, 0.0, 0.031, 0.9)[number % 4] if number % 11 == 0 else 0.0217
        chunks.append((gap_s, Chunk("".join(texts), 0, kind, entries)))
    return chunks


def whole(kind: TokenKind) -> bytes:
    return b"".join(chunk.text.encode() for _, chunk in script() if chunk.kind is kind)


@attrs.frozen
class Recorded:
    """What everybody saw. `sessions` are ids by reason of the end; `lines` are event streams of the finished one."""

    clients: dict[str, RecordingSink]
    sessions: dict[str, str]
    lines: dict[str, list[dict[str, Any]]]


async def _record() -> Recorded:
    end = (0.0, Chunk("", 0, end=GenerationEnd(EndReason.FINISHED)))
    async with running_api(lambda clock: ChunkRuntime(clock, chunks=[*script(), end], load_s=0.05)) as api:
        clients = {name: api.slice.client() for name in ("quick", "slow", "10 Hz", "with top")}
        commands = api.slice.core.hub.clients
        commands[2].receive(b'{"type":"subscribe","rate_hz":10}')
        commands[3].receive(b'{"type":"subscribe","top":true}')
        finished, aborted = await api.generate(model="a"), await api.generate(model="b")
        await trio.sleep(0.3)
        clients["slow"].reading = False
        api.slice.runtime.chunks = script()[:30]
        truncated = await api.generate(model="c")
        await trio.sleep(0.2)
        await api.post("/stop", {"session_id": aborted})
        await trio.sleep(1)
        clients["slow"].reading = True
        with_energy = await api.get(f"/stream/{finished}?energy=1")
        await trio.sleep(3)
        late = await api.get(f"/stream/{finished}")
        api.slice.runtime.chunks = [*script(), end]
        owned = await api.post("/generate?energy=1", {"model": "a", "prompt": "hello", "stream": True})
        sessions = {"finished": finished, "aborted": aborted, "truncated": truncated}
        lines = {"live": [d for _, _, d in sse(with_energy.body)], "late": [d for _, _, d in sse(late.body)]}
        return Recorded(clients, sessions, lines | {"owned": ndjson(owned.body)})


def record_sessions() -> Recorded:
    return trio.run(_record, clock=MockClock(autojump_threshold=0))
