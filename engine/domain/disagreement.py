"""Disagreement DI of several models, from the distributions of their tokens or, where there are none, from their pace.

    DI = JSD / log2 M          JSD = H2(Σ P_m / M) − Σ H2(P_m) / M          over M ≥ 2 models
    DI = CV / (1 + CV)         CV = standard deviation / mean of the models' mean Δt  (timing)

P_m is a top list of model m. What the list leaves uncovered is one symbol, `other`, which all models share, so equal
lists give exactly 0. A symbol that one list has and another lacks counts as impossible in the other: short lists with
much uncovered mass can therefore say more disagreement than there is. Nothing here keeps state.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.domain.energy import clamp
from engine.domain.generation import TopEntry

WORD_STARTS: Final = "Ġ▁ "  # how tokenizers mark the start of a word: GPT-2's bytes, SentencePiece, decoded text
_SPACES: Final = str.maketrans("Ġ▁", "  ")
_PAIRINGS_KEPT: Final = 16  # sizes of councils whose index pairs are remembered


@attrs.frozen
class Distribution:
    """Probabilities by symbol, and `other`, the mass that no symbol covers. Together they are 1."""

    symbols: Mapping[str, float]
    other: float


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


def distribution(top: Iterable[TopEntry], top_k: int) -> Distribution | None:
    """The `top_k` most probable entries as a distribution; entries of one symbol are added up. None when the list
    carries no mass (it is empty, or its entries are no log-probabilities)."""
    usable = [entry for entry in top if entry.logprob > -math.inf]  # which NaN is not either
    usable.sort(key=_logprob, reverse=True)
    symbols: dict[str, float] = {}
    for entry in usable[:top_k]:
        key = symbol(entry.token)
        symbols[key] = symbols.get(key, 0.0) + math.exp(min(0.0, entry.logprob))
    mass = math.fsum(symbols.values())
    if mass <= 0.0:
        return None
    if mass > 1.0:  # rounding, or a runtime that does not normalise
        symbols = {key: p / mass for key, p in symbols.items()}
    return Distribution(symbols, max(0.0, 1.0 - mass))


def _logprob(entry: TopEntry) -> float:
    return entry.logprob


def compare(distributions: Sequence[Distribution]) -> Comparison:
    """All figures of one aligned window at once. Raises ValueError with fewer than two distributions."""
    count = len(distributions)
    if count < 2:
        raise ValueError("disagreement needs two distributions or more")
    matrix = _matrix(distributions)
    mixture = matrix.sum(axis=0) / count
    first, second = _pairing(count)
    blends = (matrix[first] + matrix[second]) / 2
    entropy = _entropy_bits(np.concatenate((matrix, mixture[None, :], blends)))
    own, whole, paired = entropy[:count], float(entropy[count]), entropy[count + 1 :]
    jsd = 0.0 if (matrix == matrix[0]).all() else whole - float(own.sum()) / count
    differing = paired - (own[first] + own[second]) / 2
    return Comparison(
        di=clamp(jsd / math.log2(count)),
        mixture_uncertainty=clamp(1.0 - float(mixture[1:].max())),
        agreement=tuple(np.clip(1.0 - differing, 0.0, 1.0).tolist()),
    )


def timing_disagreement(mean_delta_ms: Sequence[float]) -> float | None:
    """DI from the models' mean Δt alone, in [0, 1). None with fewer than two, or when they took no time at all."""
    count = len(mean_delta_ms)
    mean = math.fsum(mean_delta_ms) / count if count else 0.0
    if count < 2 or mean <= 0.0:
        return None
    cv = math.sqrt(math.fsum((delta - mean) ** 2 for delta in mean_delta_ms) / count) / mean
    return cv / (1.0 + cv)


def _matrix(distributions: Sequence[Distribution]) -> NDArray[np.float64]:
    """One row per model, one column per symbol that any of them has; column 0 is `other`."""
    columns: dict[str, int] = {}
    row_of: list[int] = []
    column_of: list[int] = []
    values: list[float] = []
    for row, given in enumerate(distributions):
        row_of.append(row)
        column_of.append(0)
        values.append(given.other)
        for key, p in given.symbols.items():
            row_of.append(row)
            column_of.append(columns.setdefault(key, len(columns) + 1))
            values.append(p)
    matrix = np.zeros((len(distributions), len(columns) + 1))
    matrix[row_of, column_of] = values
    return matrix


@functools.lru_cache(_PAIRINGS_KEPT)
def _pairing(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    first, second = np.triu_indices(count, 1)
    return first, second


def _entropy_bits(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """H2 of each row, with 0 · log 0 = 0."""
    bits: NDArray[np.float64] = -(rows * np.log2(rows + (rows == 0.0))).sum(axis=1)
    return bits
