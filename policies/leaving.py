"""What happens to an answer whose client has left. Pure."""

from __future__ import annotations

import re
from typing import Final

CONTINUE_MAX_S: Final = 3600
LEAVE_PATTERN: Final = r"cancel|continue|continue_for=(?:[0-9]{1,3}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s"
LEAVE_WORDS: Final = f"cancel, continue or continue_for=30s (at most {CONTINUE_MAX_S}s)"


def leave_after_s(text: str) -> float | None:
    """How long it goes on without its client, in seconds: 0 for `cancel`, None (to its end) for `continue`. Raises
    ValueError for a text outside LEAVE_PATTERN."""
    if re.fullmatch(LEAVE_PATTERN, text) is None:
        raise ValueError(LEAVE_WORDS)
    if text == "continue":
        return None
    return float(text.removeprefix("continue_for=").removesuffix("s")) if text != "cancel" else 0.0
