"""How deep JSON is nested: against a reader that goes byte by byte, and at the bound."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest
from transport.wire.commands import parse_command
from transport.wire.dialects import anthropic, ollama, openai
from transport.wire.nesting import NESTING_MAX, depth, refuse_deep
from web.schemas import GenerateBody, decode


def read(data: bytes) -> int:
    """The depth, as a reader of one character after the other finds it."""
    most = now = 0
    within = escaped = False
    for char in data.decode():
        if within:
            within = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            within = True
        elif char in "[{":
            now += 1
            most = max(most, now)
        elif char in "]}":
            now -= 1
    return most


texts = st.text(st.sampled_from('"\\[]{}u\n é,:0') | st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=30,
)


@given(values, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 9))
@example(["\\", '\\"', '"\\\\"', "[[["], True, None, 1)
@example({"\\": [{"]": "\\\\"}]}, False, 1, 2)
@example(["x"] * 300, False, None, 1000)
def test_it_is_what_a_reader_finds(value, ascii_only, indent, piece_bytes):
    data = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert depth(data) == depth(data, piece_bytes) == read(data)


@given(st.lists(st.sampled_from([b'"', b"\\", b"[", b"]", b"{", b"}", b"a", b"\xff", b""]), max_size=40).map(b"".join))
def test_whatever_comes_it_ends_in_a_figure(data):
    assert 0 <= depth(data) <= len(data)


@given(st.integers(0, 200), st.integers(0, 300))
def test_many_that_stand_side_by_side_are_not_deep(deep, beside):
    data = b'{"a":' + b"[" * deep + b"]" * deep + b',"b":[' + b",".join([b'{"x":[]}'] * beside) + b"]}"
    assert depth(data) == 1 + max(deep, 3 if beside else 1)
    if depth(data) <= NESTING_MAX:
        refuse_deep(data)
    else:
        with pytest.raises(InvalidRequest) as refusal:
            refuse_deep(data)
        assert refusal.value.details == {"limit": 64}


def nested(levels: int, body: str) -> bytes:
    """`body`, an object, with a field in it so that the whole is nested this deep."""
    return body.removesuffix("}").encode() + b',"x":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


MESSAGES = '"messages":[{"role":"user","content":"hi"}]}'
WAYS = {
    "/api/chat": (ollama.parse, '{"model":"m",' + MESSAGES),
    "/api/generate": (ollama.parse, '{"model":"m","prompt":"hi"}'),
    "/v1/chat/completions": (openai.parse, '{"model":"m",' + MESSAGES),
    "/v1/completions": (openai.parse, '{"model":"m","prompt":"hi"}'),
    "/v1/responses": (openai.parse, '{"model":"m","input":"hi"}'),
    "/v1/messages": (anthropic.parse, '{"model":"m","max_tokens":1,' + MESSAGES),
}


@pytest.mark.parametrize("levels", [65, 500, 900, 5_000])
@pytest.mark.parametrize("path", WAYS)
def test_every_dialect_refuses_what_is_too_deep_and_takes_what_is_not(path, levels):
    parse, body = WAYS[path]
    assert parse(path, nested(NESTING_MAX, body)).model == "m"
    with pytest.raises(InvalidRequest, match="more than 64 levels"):
        parse(path, nested(levels, body))


@pytest.mark.parametrize("levels", [65, 500, 900, 5_000])
def test_native_bodies_and_messages_of_a_websocket_too(levels):
    with pytest.raises(InvalidRequest, match="more than 64 levels"):
        decode(nested(levels, '{"model":"m","prompt":"hi"}'), GenerateBody)
    with pytest.raises(InvalidRequest, match="more than 64 levels"):
        parse_command(nested(levels, '{"type":"ping"}'))
