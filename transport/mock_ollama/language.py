"""A language of twenty words: each has a distribution over the next one, in closed form, that sums to 1."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from random import Random
from typing import Final

from engine.domain.generation import TokenLogprob, TopEntry

# As many as a client may ask alternatives for, so that `top_logprobs: 20` shows the whole distribution. Some take more
# than one byte per character.
_TEXT: Final = "the signal and a river of light moves under naïve glass while 光 holds every tone in größe until dawn"
WORDS: Final = tuple(f" {word}" for word in _TEXT.split())
SURE: Final = 3.0  # spread of the weights' logarithms: a clear favourite
UNSURE: Final = 0.4  # nearly even
EVEN: Final = (1.5,)
MOODY: Final = (SURE, UNSURE)
MOOD_TOKENS: Final = 16


def tokens(seed: str, moods: tuple[float, ...] = EVEN) -> Iterator[TokenLogprob]:
    """The endless text of a seed: every token with the whole distribution it was drawn from, likeliest first. The
    spread goes round through `moods`, MOOD_TOKENS tokens each."""
    random = Random(f"{seed}/text")
    before = WORDS[0]
    for position in itertools.count():
        mood = moods[position // MOOD_TOKENS % len(moods)]
        top = next_words(seed, mood)[before]
        drawn = random.choices(top, [math.exp(entry.logprob) for entry in top])[0]
        before = drawn.token
        yield TokenLogprob(drawn.token, drawn.logprob, top)


@functools.lru_cache(maxsize=64)
def next_words(seed: str, spread: float) -> dict[str, tuple[TopEntry, ...]]:
    """For every word, all words with their log-probability after it, likeliest first."""
    random = Random(f"{seed}/words/{spread}")
    return {before: _distribution(random, spread) for before in WORDS}


def _distribution(random: Random, spread: float) -> tuple[TopEntry, ...]:
    logits = [random.gauss(0, spread) for _ in WORDS]
    norm = math.log(math.fsum(math.exp(logit) for logit in logits))
    entries = [TopEntry(word, logit - norm) for word, logit in zip(WORDS, logits, strict=True)]
    return tuple(sorted(entries, key=lambda entry: entry.logprob, reverse=True))
