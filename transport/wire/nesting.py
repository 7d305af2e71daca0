"""How deep JSON from a caller is nested, known before anything decodes it. Without IO."""

from __future__ import annotations

from typing import Final

import numpy as np

from engine.domain.errors import InvalidRequest

NESTING_MAX: Final = 64  # arrays and objects within each other
_QUOTE: Final = ord('"')
_STEPS: Final = np.zeros(256, np.int8)  # by byte: what it does to the depth, outside of strings
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def depth(data: bytes) -> int:
    """The most arrays and objects that are open at once. Linear in `data`, whatever is in it; for what is no JSON the
    figure says nothing.

    Escaped quotes go first, so that each quote that is left begins or ends a string: a run of backslashes begins an
    escape, and is taken in pairs from there."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    codes = np.frombuffer(data, np.uint8)
    within = np.cumsum(codes == _QUOTE, dtype=np.uint8) & 1  # odd: in a string; it may overflow, the last bit is right
    steps = _STEPS[codes][within == 0]
    depths = np.cumsum(steps[steps != 0], dtype=np.int32)
    return max(0, int(depths.max(initial=0)))


def refuse_deep(data: bytes) -> None:
    """Raises InvalidRequest for what is nested deeper than NESTING_MAX. Most bodies have too few brackets for that, and
    counting them costs next to nothing."""
    if data.count(b"[") + data.count(b"{") > NESTING_MAX and depth(data) > NESTING_MAX:
        raise InvalidRequest(f"the JSON is nested too deeply: more than {NESTING_MAX} levels", limit=NESTING_MAX)
