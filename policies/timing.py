"""Whether the times at which tokens arrived are the model's own, or those of a buffer between it and us.

A proxy or a server that buffers holds tokens back and lets many go at once. Their arrivals then say how large the
buffer is, and nothing of how fast the model was. What gives it away: many tokens that arrive together, faster than any
model makes them, after a silence that one can see, and this for most of the answer.

What is not taken for it:

- a fast model: its tokens have no visible silences between them;
- several tokens in a record at a steady pace (speculative decoding): they are few;
- a model that stalls: what comes after the silence comes at a model's pace;
- one late read of ours: it is not most of the answer.

A buffer so small, or a model so fast, that no silence lasts longer than a frame is not noticed: nobody could see the
difference. Nor is one that lets go of at most DRAFT_TOKENS_MAX tokens, for that is how speculative decoding looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

PAUSE_US: Final = 25_000  # one and a half frames at 60 Hz; scheduling and loopback stay below it
FASTEST_TOKEN_US: Final = 100  # 10,000 tokens a second for one stream; the smallest models reach about 7,000
DRAFT_TOKENS_MAX: Final = 8  # what speculative decoding brings at once, with room: 2 to 4 are common
HELD_SHARE_MAX: Final = 0.5  # of the tokens; with more of them held back, the pace is the buffer's

Timing = Literal["measured", "untrusted"]


def timing_of(arrivals_us: Sequence[int], tokens_per_read: Sequence[int]) -> Timing:
    """What the arrivals of one answer are worth: `arrivals_us` is when each read of the socket returned (not falling),
    `tokens_per_read` how many tokens it brought (≥ 0). An answer without tokens is measured. Takes time in proportion
    to the reads. Raises ValueError when there is not one count per read."""
    tokens = held = 0
    for burst_tokens, burst_us in _bursts(arrivals_us, tokens_per_read):
        tokens += burst_tokens
        if burst_tokens > DRAFT_TOKENS_MAX and burst_us < burst_tokens * FASTEST_TOKEN_US:
            held += burst_tokens
    return "untrusted" if held > tokens * HELD_SHARE_MAX else "measured"


def _bursts(arrivals_us: Sequence[int], tokens_per_read: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The tokens between two pauses, and the time from the first read of them to the last. Reads without tokens count
    for nothing."""
    tokens = began_us = last_us = 0
    for t_us, count in zip(arrivals_us, tokens_per_read, strict=True):
        if not count:
            continue
        if tokens and t_us - last_us >= PAUSE_US:
            yield tokens, last_us - began_us
            tokens = 0
        if not tokens:
            began_us = t_us
        tokens += count
        last_us = t_us
    if tokens:
        yield tokens, last_us - began_us
