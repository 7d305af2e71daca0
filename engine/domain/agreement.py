"""How far two texts agree in their wording, as a number that anybody can recompute.

Wording is not meaning: "It is Paris" and "It is Lyon" agree in most of their bytes.

1. Runs of white space become one space, outer ones go, the rest is UTF-8, of which the first COMPARED_BYTES_MAX count.
2. A text becomes the sequence of its GRAM_BYTES byte strings, one starting at each byte (a shorter text is one string).
3. agreement = length of the longest common subsequence of both sequences / length of the longer one.

It is symmetric, in [0, 1], 1 exactly for equal texts of step 1, and 1 − agreement is a metric (Bakkelund, An LCS-based
string metric, 2009). Single bytes would not do: any two English texts have a third or more of their letters in the same
order by chance. With four bytes at once unrelated English texts stay below 0.1, no script needs borders of words, and
one changed letter costs four places.

The subsequence is found bit by bit in one large integer (Hyyrö, Bit-parallel LCS-length computation revisited, 2004):
as many steps as one text has bytes, each over as many bits as the other has. Two texts of COMPARED_BYTES_MAX take
about 1 ms.
"""

from __future__ import annotations

import os.path
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

COMPARED_BYTES_MAX: Final = 2_048  # of each text, about 500 tokens; the time goes with its square
GRAM_BYTES: Final = 4
AGREED_BYTES_MIN: Final = 64  # a short sentence; openings such as "Sure! Here is" are shorter

_SENTENCE_END: Final = re.compile(r"""[.!?…]["')\]»”’]*(?=\s)|[。！？]""")  # "3." may still become 3.5


def agreement(one: str, other: str) -> float:
    """Share of wording in common, in [0, 1], as the module says. Two empty texts agree."""
    return agreement_of_grams(grams(one), grams(other))


def grams(text: str) -> list[bytes]:
    """What of a text is compared: steps 1 and 2 of the module."""
    data = _utf8(_one_spaced(text))[:COMPARED_BYTES_MAX]
    starts = max(1, len(data) - GRAM_BYTES + 1) if data else 0
    return [data[start : start + GRAM_BYTES] for start in range(starts)]


def agreement_of_grams(one: Sequence[bytes], other: Sequence[bytes]) -> float:
    """`agreement` of two texts of which the `grams` are at hand."""
    if one == other:
        return 1.0
    return _common_length(one, other) / max(len(one), len(other))


def is_cut(text: str) -> bool:
    """True when the text is longer than what is compared of it."""
    return len(_utf8(_one_spaced(text))) > COMPARED_BYTES_MAX


def agreed(texts_so_far: Sequence[str]) -> bool:
    """True when all have said the same so far: their texts (white space as in the module) begin with the same
    AGREED_BYTES_MIN bytes or more, up to and with the end of a sentence. Fewer than two texts agree on nothing.

    Once true it stays true while the texts grow, and it does not promise that they end alike: it is a reason to let one
    member go on and to end the others, never an answer. Takes time in proportion to the shortest text; the end of a
    sentence beyond COMPARED_BYTES_MAX characters is not looked for.
    """
    if len(texts_so_far) < 2:
        return False
    shared = os.path.commonprefix([_one_spaced(text)[:COMPARED_BYTES_MAX] for text in texts_so_far])
    return any(len(_utf8(shared[: end.end()])) >= AGREED_BYTES_MIN for end in _SENTENCE_END.finditer(shared))


def decided(finished_texts: Sequence[str], members: int) -> bool:
    """True when consensus is settled, whatever the rest will say: more than half of all `members` have ended with the
    same words (white space aside). As 1 − agreement is a metric, no other text can then be nearer to all.

    `members` counts those who have answered and those who still may.
    """
    counts = Counter(_one_spaced(text) for text in finished_texts if text.strip())
    return any(2 * count > members for count in counts.values())


def _one_spaced(text: str) -> str:
    return " ".join(text.split())


def _utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # half of a pair is odd, but is no reason to fail


def _common_length(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Length of the longest common subsequence. Bit i of `open_` is 0 once `other[i]` is where a longer common
    subsequence was reached."""
    places: dict[bytes, int] = {}
    known = set(one)
    for place, gram in enumerate(other):
        if gram in known:
            places[gram] = places.get(gram, 0) | 1 << place
    everywhere = (1 << len(other)) - 1
    open_ = everywhere
    for gram in one:
        if gram in places:
            reached = open_ & places[gram]
            open_ = (open_ + reached | open_ - reached) & everywhere
    return len(other) - open_.bit_count()
