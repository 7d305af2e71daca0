"""Disagreement DI of several models, from the distributions of their tokens or, where there are none, from their pace.

    DI = JSD / log2 M          JSD = H2(Σ P_m / M) − Σ H2(P_m) / M          over M ≥ 2 models
    DI = CV / (1 + CV)         CV = standard deviation / mean of the models' mean Δt  (timing)

P_m is a top list of model m. What the list leaves uncovered is one symbol, `other`, which all models share, so equal
lists give exactly 0. A symbol that one list has and another lacks counts as impossible in the other: short lists with
much uncovered mass can therefore say more disagreement than there is. Nothing here keeps state.
"""

from __future__ import annotations

import functools
import itertools
import math
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.domain.energy import clamp
from engine.domain.generation import TopEntry

WORD_STARTS: Final = "Ġ▁ "  # how tokenizers mark the start of a word: GPT-2's bytes, SentencePiece, decoded text
_SPACES: Final = str.maketrans("Ġ▁", "  ")
_BLENDINGS_KEPT: Final = 16  # sizes of councils
_TINY: Final = 1e-300  # added to a mass it changes nothing but 0, whose logarithm there is none of


@attrs.frozen(eq=False)
class Table:
    """Distributions over symbols. `masses` has one column per list and one row per symbol that any of them has, in the
    order of `symbols`, below row 0, `other`: the mass that no symbol covers. Each column sums to 1. `lists` says of
    which list each column is: one that carries no mass (it is empty, or its entries are no log-probabilities) has none.
    """

    masses: NDArray[np.float64]
    symbols: Sequence[str]
    lists: Sequence[int]


@attrs.frozen
class Comparison:
    """What the distributions of M models say together. `di` in [0, 1]: 0 when all are equal, 1 when no two share a
    symbol. `mixture_uncertainty` = 1 − the largest symbol of their average, `other` not counted. `agreement` = 1 − JSD
    of each pair, in the order of itertools.combinations."""

    di: float
    mixture_uncertainty: float
    agreement: tuple[float, ...]


def symbol(text: str) -> str:
    """The token's text as models are compared by it: one word-start marker dropped from its front, NFC. A token of
    nothing but markers and spaces stays that many spaces."""
    if text[:1] in WORD_STARTS:
        text = text[1:] if text.strip(WORD_STARTS) else text.translate(_SPACES)
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def tabulate(lists: Sequence[Sequence[TopEntry]], top_k: int) -> Table:
    """The `top_k` most probable entries of each list as a distribution; entries of one symbol are added up. All lists
    in one pass, since this is most of what a frame of a council costs."""
    count, rows = len(lists), dict[str, int]()
    masses = array("d", bytes(8 * count * (1 + sum(map(len, lists)))))  # as if no two had a symbol in common
    with_mass: list[int] = []
    for column, entries in enumerate(lists):
        covered = 0.0
        for entry in entries if len(entries) <= top_k else _most_probable(entries, top_k):
            logprob = entry.logprob
            if logprob > -math.inf:  # which NaN is not either
                mass = math.exp(logprob) if logprob < 0.0 else 1.0
                covered += mass
                masses[rows.setdefault(symbol(entry.token), len(rows) + 1) * count + column] += mass
        if covered > 1.0:  # rounding, or a runtime that does not normalise
            for place in range(column, len(masses), count):
                masses[place] /= covered
        elif covered > 0.0:
            masses[column] = 1.0 - covered
        if covered > 0.0:
            with_mass.append(column)
    table = np.frombuffer(masses).reshape(-1, count)[: len(rows) + 1]
    return Table(table if len(with_mass) == count else table[:, with_mass], tuple(rows), with_mass)


def _most_probable(entries: Iterable[TopEntry], top_k: int) -> list[TopEntry]:
    usable = [entry for entry in entries if entry.logprob > -math.inf]
    return sorted(usable, key=_logprob, reverse=True)[:top_k]


def _logprob(entry: TopEntry) -> float:
    return entry.logprob


def compare(table: Table) -> Comparison:
    """All figures of one aligned window at once. Raises ValueError with fewer than two distributions."""
    count = len(table.lists)
    if count < 2:
        raise ValueError("disagreement needs two distributions or more")
    blends = table.masses @ _blending(count)
    entropy = (blends * np.log2(blends + _TINY)).sum(axis=0).tolist()  # negative, in bits
    own, whole, paired = entropy[:count], entropy[count], entropy[count + 1 :]
    pairs = zip(itertools.combinations(own, 2), paired, strict=True)
    agreement = [clamp(1.0 + both - (one + other) / 2) for (one, other), both in pairs]
    jsd = 0.0 if min(agreement) == 1.0 else sum(own) / count - whole
    return Comparison(
        di=clamp(jsd / math.log2(count)),
        mixture_uncertainty=clamp(1.0 - max(blends[1:, count].tolist())),
        agreement=tuple(agreement),
    )


def timing_disagreement(mean_delta_ms: Sequence[float]) -> float | None:
    """DI from the models' mean Δt alone, in [0, 1). None with fewer than two, or when they took no time at all."""
    count = len(mean_delta_ms)
    mean = math.fsum(mean_delta_ms) / count if count else 0.0
    if count < 2 or mean <= 0.0:
        return None
    cv = math.sqrt(math.fsum((delta - mean) ** 2 for delta in mean_delta_ms) / count) / mean
    return cv / (1.0 + cv)


@functools.lru_cache(_BLENDINGS_KEPT)
def _blending(count: int) -> NDArray[np.float64]:
    """What makes of `count` distributions, the columns of a table: themselves, their average, and that of each pair."""
    pairs = np.zeros((count, math.comb(count, 2)))
    for column, pair in enumerate(itertools.combinations(range(count), 2)):
        pairs[pair, column] = 0.5
    return np.concatenate((np.eye(count), np.full((count, 1), 1 / count), pairs), axis=1)
