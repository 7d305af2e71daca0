"""The trace of a request at the lens: the runtimes hear of it, and the client hears which span was ours."""

from __future__ import annotations

import secrets
from typing import Final

from quart import Blueprint, g, request

from policies.trace import ONWARD, Trace, trace_of

SPAN_BYTES: Final = 8


def traced(routes: Blueprint) -> Blueprint:
    """`routes`, with every call to a runtime on behalf of a request carrying its trace and its id."""

    @routes.before_request
    async def begin() -> None:
        state = ",".join(request.headers.getlist("tracestate"))
        trace = trace_of(request.headers.get("traceparent", ""), state, secrets.token_hex(SPAN_BYTES))
        g.trace = trace
        ONWARD.set(trace.onward(g.request_id))

    return routes


def trace_headers() -> dict[str, str]:
    """For the reply to the request at hand."""
    trace: Trace = g.get("trace") or Trace()
    return {"traceparent": trace.traceparent} if trace.traceparent else {}
