"""What the replies of the OpenAI dialect are made of: frames, log-probabilities, counts, the words for how it ended and
for what went wrong. Without IO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs
import msgspec

from engine.domain.errors import EngineError
from engine.domain.generation import Chunk, EndReason, TokenKind, TokenLogprob, TopEntry
from transport.wire.dialects.reply import ReplyEnd

STREAM_TYPE: Final = "text/event-stream"
BODY_TYPE: Final = "application/json"
DONE_FRAME: Final = b"data: [DONE]\n\n"
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

encode: Final = msgspec.json.Encoder().encode


def frame(value: object) -> bytes:
    return b"data: " + one_line(encode(value)) + b"\n\n"


def named_frame(event: str, value: object) -> bytes:
    return b"event: " + event.encode() + b"\n" + frame(value)


def one_line(data: bytes) -> bytes:
    """JSON that is carried through may have been laid out in lines; inside its strings there are no line ends."""
    return data.replace(b"\n", b" ").replace(b"\r", b" ")


# ── errors ──


def error_item(error: EngineError) -> dict[str, Any]:
    """`param` is the field at fault, where it is known."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    field = error.details.get("field")
    return {"message": error.message, "type": kind, "param": field, "code": error.code.lower()}


def error_body(error: EngineError) -> bytes:
    return encode({"error": error_item(error)})


def error_frame(error: EngineError) -> bytes:
    return frame({"error": error_item(error)})


# ── log-probabilities ──


def best(entries: Iterable[TopEntry], count: int) -> list[TopEntry]:
    """The `count` most probable, most probable first."""
    return sorted(entries, key=lambda entry: -entry.logprob)[:count]


def entry(token: TokenLogprob, top: int) -> dict[str, Any]:
    alternatives = [_token(one.token, one.logprob) for one in best(token.top, top)]
    return {**_token(token.token, token.logprob), "top_logprobs": alternatives}


def entries(tokens: Iterable[TokenLogprob], top: int) -> list[dict[str, Any]]:
    return [entry(token, top) for token in tokens]


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def legacy_entries(tokens: Sequence[TokenLogprob], top: int, offset: int) -> dict[str, Any]:
    """The four lists of text completions. `offset` counts characters of the answer before the first of `tokens`; the
    token itself stands among its alternatives."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_alternatives(token, top) for token in tokens] if top else None,
        "text_offset": offsets,
    }


def _alternatives(token: TokenLogprob, top: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in best(token.top, top):
        found.setdefault(one.token, one.logprob)
    found.setdefault(token.token, token.logprob)
    return found


# ── the end ──


def finish_reason(reason: EndReason, called: bool) -> str:
    """What ended without being finished says `length`: there would have been more."""
    if reason is EndReason.FINISHED and called:
        return "tool_calls"
    return "stop" if reason in (EndReason.FINISHED, EndReason.STOP) else "length"


def counts(end: ReplyEnd) -> tuple[int, int]:
    """Tokens of the prompt (0 where the runtime did not say) and of the answer (our own count then)."""
    generated = end.end.eval_count
    return end.end.prompt_tokens or 0, end.tokens if generated is None else generated


def usage(end: ReplyEnd, thinking_tokens: int = 0) -> dict[str, Any]:
    prompt, generated = counts(end)
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
    if thinking_tokens:
        found["completion_tokens_details"] = {"reasoning_tokens": min(thinking_tokens, generated)}
    return found


# ── calls ──


@attrs.define(eq=False)
class Call:
    """A call of a tool, as far as it has come. `position` counts the calls of the reply."""

    position: int
    id: str
    name: str
    arguments: str = ""

    def whole(self) -> str:
        """Arguments of nothing are still an object."""
        return self.arguments or "{}"


@attrs.define(eq=False)
class Calls:
    """The calls of a reply, by the runtime's own index. `prefix` makes ids where the runtime has none."""

    prefix: str
    _by_index: dict[int, Call] = attrs.field(factory=dict, init=False)

    def __iter__(self) -> Any:
        return iter(self._by_index.values())

    def __len__(self) -> int:
        return len(self._by_index)

    def take(self, chunk: Chunk) -> list[tuple[Call, str, bool]]:
        """The calls that `chunk` goes on with: what it adds to their arguments, and whether it begins them."""
        taken = []
        for part in chunk.tool_calls:
            call = self._by_index.get(part.index)
            begins = call is None
            if call is None:
                position = len(self._by_index)
                call = Call(position, part.id or f"call_{self.prefix}_{position}", part.name)
                self._by_index[part.index] = call
            call.arguments += part.arguments
            taken.append((call, part.arguments, begins))
        return taken


def token_count(chunk: Chunk) -> int:
    """A chunk without log-probabilities counts as one token if it says anything."""
    return len(chunk.logprobs) or int(bool(chunk.text))


def is_thinking(chunk: Chunk) -> bool:
    return chunk.kind is TokenKind.THINKING
