"""Records on the wire, in Ollama's order of fields. Zero and empty mean absent, as with Go's `omitempty`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import attrs
import msgspec

from engine.domain.generation import TokenKind, TokenLogprob
from transport.mock_ollama.requests import Kind
from transport.mock_ollama.script import Done, Fail, Progress, Say, ToolCall

NS_PER_S: Final = 1_000_000_000


class _Candidate(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class _Logprob(msgspec.Struct, omit_defaults=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[_Candidate] = []


class _Function(msgspec.Struct):
    index: int
    name: str
    arguments: dict[str, Any]


class _ToolCall(msgspec.Struct):
    id: str
    function: _Function


class _Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: list[_ToolCall] = []


class _Tail(msgspec.Struct, omit_defaults=True, kw_only=True):
    done: bool
    done_reason: str = ""
    context: list[int] = []
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    logprobs: list[_Logprob] = []


class _Generate(msgspec.Struct, omit_defaults=True):
    model: str
    created_at: str
    response: str
    thinking: str = ""


class _Chat(msgspec.Struct):
    model: str
    created_at: str
    message: _Message


class _Progress(msgspec.Struct, omit_defaults=True):
    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


@attrs.frozen
class Durations:
    """Nanoseconds, for the terminal record."""

    total: int = 0
    load: int = 0
    prefill: int = 0
    eval: int = 0


def rfc3339(at_ns: int) -> str:
    """A moment (Unix time, ns) as Go writes it: UTC, no zeros at the end of the fraction."""
    seconds, fraction = divmod(at_ns, NS_PER_S)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def say_record(kind: Kind, model: str, say: Say, at_ns: int) -> bytes:
    """One record of a stream, without its line feed."""
    thinking = say.kind is TokenKind.THINKING
    head = _head(kind, model, at_ns, "" if thinking else say.text, say.text if thinking else "", say.tool_calls)
    return _merged(head, _Tail(done=False, logprobs=_logprobs(say.logprobs)))


def done_record(kind: Kind, model: str, done: Done, at_ns: int, durations: Durations) -> bytes:
    """The terminal record, or the only one of an answer that is not streamed."""
    head = _head(kind, model, at_ns, done.text, done.thinking, done.tool_calls)
    tail = _Tail(done=True, done_reason=done.reason)
    if done.eval_count is not None:
        tail = _Tail(
            done=True,
            done_reason=done.reason,
            context=list(done.context),
            total_duration=durations.total,
            load_duration=durations.load,
            prompt_eval_count=done.prompt_eval_count or 0,
            prompt_eval_duration=durations.prefill,
            eval_count=done.eval_count,
            eval_duration=durations.eval,
            logprobs=_logprobs(done.logprobs),
        )
    return _merged(head, tail)


def fail_record(fail: Fail) -> bytes:
    return msgspec.json.encode({"error": fail.message})


def progress_record(progress: Progress) -> bytes:
    return msgspec.json.encode(_Progress(progress.status, progress.digest, progress.total, progress.completed))


def _head(
    kind: Kind, model: str, at_ns: int, text: str, thinking: str, calls: tuple[ToolCall, ...]
) -> _Generate | _Chat:
    if kind is Kind.GENERATE:
        return _Generate(model, rfc3339(at_ns), text, thinking)
    tool_calls = [_ToolCall(call.id, _Function(i, call.name, call.arguments)) for i, call in enumerate(calls)]
    return _Chat(model, rfc3339(at_ns), _Message("assistant", text, thinking, tool_calls))


def _merged(head: _Generate | _Chat, tail: _Tail) -> bytes:
    """One object of two: both calls end in the same fields."""
    return msgspec.json.encode(head)[:-1] + b"," + msgspec.json.encode(tail)[1:]


def _logprobs(entries: Iterable[TokenLogprob]) -> list[_Logprob]:
    return [
        _Logprob(
            entry.token,
            entry.logprob,
            list(entry.token.encode()),
            [_Candidate(top.token, top.logprob, list(top.token.encode())) for top in entry.top],
        )
        for entry in entries
    ]
