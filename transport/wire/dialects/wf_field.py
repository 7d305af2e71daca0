"""What the engine itself has to say inside a reply: a field `wf` in one of its records, whatever the dialect. Clients
pass over fields that they do not know. Without IO."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine.domain.generation import Seam

# Records begin a line, behind `data: ` in event streams; their strings hold no line ends.
_OBJECT: Final = re.compile(rb"^(?:data: )?\{(?!\})", re.MULTILINE)


def has_record(data: bytes) -> bool:
    """Whether `data` (frames of a stream, or a whole body) has a record that can carry the field."""
    return _OBJECT.search(data) is not None


def with_wf(data: bytes, fields: Mapping[str, Any], *, last: bool = False) -> bytes:
    """`data` with `fields` as the field `wf` of its first record, or of its last one; as it is where there is none."""
    found = [match.end() for match in _OBJECT.finditer(data)]
    if not found:
        return data
    at = found[-1] if last else found[0]
    return b"".join((data[:at], b'"wf":', msgspec.json.encode(fields), b",", data[at:]))


def seam_fields(seam: Seam) -> dict[str, Any]:
    """A seam as clients read it; `offset` in bytes of UTF-8, `position` in tokens."""
    return {
        "stream_id": seam.stream_id,
        "model": seam.model,
        "position": seam.position,
        "offset": seam.offset,
        "reason": seam.reason,
        "attempt": seam.attempt,
    }
