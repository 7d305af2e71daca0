"""How deep JSON from a caller is nested, known before anything decodes it. Without IO."""

from __future__ import annotations

from typing import Final

import numpy as np

from engine.domain.errors import InvalidRequest

NESTING_MAX: Final = 64  # arrays and objects within each other
PIECE_BYTES: Final = 256 * 1024  # looked at together: more would only take more memory
_QUOTE: Final = 2
_MEANS: Final = bytes({ord("["): 1, ord("{"): 1, ord("]"): 255, ord("}"): 255}.get(byte, _QUOTE) for byte in range(256))
_NOTHING: Final = bytes(byte for byte in range(256) if byte not in b'[]{}"')


def depth(data: bytes, piece_bytes: int = PIECE_BYTES) -> int:
    """The most arrays and objects that are open at once. Linear in `data`, whatever is in it; for what is no JSON the
    figure says nothing.

    Escaped quotes go first, so that each quote that is left begins or ends a string: a run of backslashes begins an
    escape, and is taken in pairs from there."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = np.frombuffer(data.translate(_MEANS, _NOTHING), np.int8)
    most = now = within = 0
    for at in range(0, len(marks), piece_bytes):
        piece = marks[at : at + piece_bytes]
        quotes = piece == _QUOTE
        inside = (np.cumsum(quotes, dtype=np.uint8) + within) & 1  # the last bit stays right when it overflows
        depths = np.cumsum(np.where(quotes | (inside == 1), 0, piece), dtype=np.int32)
        most = max(most, now + int(depths.max()))
        now, within = now + int(depths[-1]), int(inside[-1])
    return most


def refuse_deep(data: bytes) -> None:
    """Raises InvalidRequest for what is nested deeper than NESTING_MAX. Most bodies have too few brackets for that, and
    counting them costs next to nothing."""
    if data.count(b"[") + data.count(b"{") > NESTING_MAX and depth(data) > NESTING_MAX:
        raise InvalidRequest(f"the JSON is nested too deeply: more than {NESTING_MAX} levels", limit=NESTING_MAX)
