"""What the runtimes hear of a trace: W3C Trace Context (https://www.w3.org/TR/trace-context/, level 1) and the
request's id. Which headers go on is decided here; they travel as a context variable, which tasks inherit from the one
that starts them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

import attrs

TRACESTATE_CHARS_MAX: Final = 512  # more need not be carried on
TRACESTATE_MEMBERS_MAX: Final = 32

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY: Final = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER: Final = re.compile(rf"({_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_KNOWN_FLAGS: Final = 0x03  # sampled, random trace id; the others must go on as zero

# Headers of calls to runtimes on behalf of the request at hand.
ONWARD: Final[ContextVar[Mapping[str, str]]] = ContextVar("wf_onward_headers", default=MappingProxyType({}))


@attrs.frozen
class Trace:
    """`traceparent` with a span of our own in place of the caller's, empty when it sent none that is valid; its
    `tracestate`, empty when it is none."""

    traceparent: str = ""
    tracestate: str = ""

    def onward(self, request_id: str) -> dict[str, str]:
        """The headers for the runtimes."""
        found = {"traceparent": self.traceparent, "tracestate": self.tracestate, "x-request-id": request_id}
        return {name: value for name, value in found.items() if value}


def trace_of(traceparent: str, tracestate: str, span_id: str) -> Trace:
    """The caller's trace with `span_id` (16 lower-case hex digits) as the parent of what comes next. Without a valid
    `traceparent` there is no trace; a `tracestate` that is not valid, or is too long, is left out."""
    found = _PARENT.fullmatch(traceparent)
    if found is None or found[1] == "ff" or not found[2].strip("0") or not found[3].strip("0"):
        return Trace()
    if found[1] == "00" and found[5] is not None:
        return Trace()
    flags = int(found[4], 16) & _KNOWN_FLAGS
    return Trace(f"00-{found[2]}-{span_id}-{flags:02x}", _valid_state(tracestate))


def _valid_state(tracestate: str) -> str:
    members = [part.strip(" \t") for part in tracestate.split(",")]
    members = [part for part in members if part]  # empty ones are allowed and say nothing
    joined = ",".join(members)
    if len(members) > TRACESTATE_MEMBERS_MAX or len(joined) > TRACESTATE_CHARS_MAX:
        return ""
    matches = [_MEMBER.fullmatch(part) for part in members]
    keys = {match[1] for match in matches if match is not None}
    return joined if len(keys) == len(members) else ""
