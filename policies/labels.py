"""Which label a model answered with, and how probable the labels were to it. Pure.

The probability of a label is read off the answer's own log-probabilities: at every position up to the one where the
label is settled, a candidate that makes the answer begin as only one label does adds its probability (times that of
what was said before it) to that label. So the numbers are the model's probabilities of *beginning* so; they never sum
to more than 1, and a label that no candidate led to has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import attrs

from engine.domain.generation import TokenLogprob

PREFIX_CHARS_MIN: Final = 3  # fewer letters of a label are also the beginning of any other word
ALTERNATIVES_MAX: Final = 20  # candidates looked at per position; runtimes give no more
_LEADING: Final = " \t\r\n\"'`*_#:.-([{<>"  # what models put before an answer
_GAPS: Final = re.compile(r"[\s-]+")
_PREAMBLE: Final = re.compile(r"(?:the\s+)?(?:answer|label|domain|task|method)(?:\s+is)?\s*:?\s+", re.IGNORECASE)


@attrs.frozen
class Reading:
    """`label`: what the answer says, None when that is no label. `probabilities` (0–1) of the labels that were led to;
    None when the runtime gave no log-probabilities."""

    label: str | None
    probabilities: dict[str, float] | None

    def ranked(self) -> list[tuple[str, float | None]]:
        """The answer's own label first, then the others by falling probability."""
        known = self.probabilities or {}
        first = [] if self.label is None else [(self.label, known.get(self.label))]
        others = ((label, chance) for label, chance in known.items() if label != self.label)
        return [*first, *sorted(others, key=lambda pair: -pair[1])]


def read_label(tokens: Sequence[TokenLogprob], text: str, labels: Sequence[str]) -> Reading:
    """What an answer says. `tokens` are its log-probabilities (none where the runtime gives none), `text` its text."""
    said = "".join(token.token for token in tokens) if tokens else text
    label, start = _find(said, labels)
    if not tokens:
        return Reading(label, None)
    return Reading(label, _probabilities(tokens, start, label, labels))


def _find(said: str, labels: Sequence[str]) -> tuple[str | None, int]:
    """The label and where it begins. At the beginning of the answer in any case; later only in capitals, as it was
    asked for: `law` in a sentence is a word, `LAW` is an answer. Without one: where the answer begins."""
    start = len(said) - len(said.lstrip(_LEADING))
    preamble = _PREAMBLE.match(said, start)
    for at in (start, start if preamble is None else _skip(said, preamble.end())):
        key = _key(said[at:])
        whole = [label for label in labels if _begins(key, label)]
        if whole:
            return max(whole, key=len), at
    pattern = "|".join(re.escape(label).replace("_", r"[ _-]") for label in sorted(labels, key=len, reverse=True))
    found = re.search(rf"(?<![A-Za-z0-9_])(?:{pattern})(?![A-Za-z0-9_])", said)
    return (None, start) if found is None else (_key(found[0]), found.start())


def _skip(said: str, at: int) -> int:
    return len(said) - len(said[at:].lstrip(_LEADING))


def _probabilities(
    tokens: Sequence[TokenLogprob], start: int, label: str | None, labels: Sequence[str]
) -> dict[str, float]:
    found: dict[str, float] = {}
    reach, prefix, at = 1.0, "", 0
    for token in tokens:
        at += len(token.token)
        if at <= start:
            continue  # what stands before the label
        for text, logprob in _alternatives(token):
            led = _led_to(prefix + text, labels)
            if led is not None:
                found[led] = found.get(led, 0.0) + reach * math.exp(min(0.0, logprob))
        reach *= math.exp(min(0.0, token.logprob))
        prefix += token.token
        settled = _led_to(prefix, labels)
        if settled is not None:
            if settled == label:  # else it began like one and went on as something else
                found[settled] = found.get(settled, 0.0) + reach
            break
        if not _possible(prefix, labels):
            break
    return {name: min(1.0, chance) for name, chance in found.items()}


def _alternatives(token: TokenLogprob) -> list[tuple[str, float]]:
    """The candidates that were not taken, once each."""
    others = {entry.token: entry.logprob for entry in token.top[:ALTERNATIVES_MAX] if entry.token != token.token}
    return list(others.items())


def _led_to(partial: str, labels: Sequence[str]) -> str | None:
    """The one label that an answer beginning with `partial` can be."""
    key = _key(partial.lstrip(_LEADING))
    whole = [label for label in labels if _begins(key, label)]
    if whole:
        return max(whole, key=len)
    within = [label for label in labels if label.startswith(key)]
    return within[0] if len(within) == 1 and len(key) >= PREFIX_CHARS_MIN else None


def _possible(partial: str, labels: Sequence[str]) -> bool:
    key = _key(partial.lstrip(_LEADING))
    return any(label.startswith(key) for label in labels)


def _begins(key: str, label: str) -> bool:
    """Whether `key` is `label`, whatever follows it."""
    return key.startswith(label) and not key[len(label) :][:1].isalnum()


def _key(text: str) -> str:
    return _GAPS.sub("_", text.upper())
