"""Replies of chats and text completions made from the chunks of any runtime."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest, ModelNotFound, Overloaded, Unauthorized, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason, TokenKind, TokenLogprob, ToolCallPart, TopEntry
from tests.transport.wire.dialects.openai_replies import (
    CHAT,
    COMPLETIONS,
    DONE,
    called,
    data_of,
    deltas,
    ended,
    logprob,
    reply,
    said,
    streamed,
    thought,
    whole,
)
from transport.wire.dialects import openai

HEAD = {"id": "chatcmpl-4f", "object": "chat.completion.chunk", "created": 1795170586, "model": "my/model"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def entry(token, value=-0.5, *top):
    return {**bare(token, value), "top_logprobs": [bare(*one) for one in top]}


def bare(token, value):
    return {"token": token, "logprob": value, "bytes": list(token.encode())}


# ── chats ──


def test_a_stream_has_its_role_first_and_its_reason_alone():
    sent = streamed(reply(stream=True), [said("Hé"), said(""), said("llo")])
    choices = [
        {"index": 0, "delta": {"role": "assistant", "content": "Hé"}, "finish_reason": None},
        {"index": 0, "delta": {"content": "llo"}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    assert sent == [*(HEAD | {"choices": [choice]} for choice in choices), DONE]


def test_counts_come_last_when_they_are_asked_for():
    sent = streamed(reply(stream=True, stream_options={"include_usage": True}), [said("x")])
    assert sent[-2:] == [HEAD | {"choices": [], "usage": USAGE}, DONE]


def test_our_own_count_stands_where_the_runtime_has_none():
    body = whole(reply(), [said("x")], ended(prompt=None, generated=None))
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 7, "total_tokens": 7}


def test_an_empty_answer_still_has_a_role():
    role, reason, done = streamed(reply(stream=True), [])
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (reason["choices"][0]["finish_reason"], done) == ("stop", DONE)
    assert whole(reply(), [])["choices"][0]["message"] == {"role": "assistant", "content": ""}


def test_thinking_goes_by_both_names_and_is_counted():
    chunks = [thought("so "), thought("what", logprob("wh"), logprob("at")), said("42")]
    sent = streamed(reply(stream=True, stream_options={"include_usage": True}), chunks)
    assert deltas(sent, "reasoning") == deltas(sent, "reasoning_content") == "so what"
    assert deltas(sent, "content") == "42"
    assert sent[-2]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    message = whole(reply(), chunks)["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": "42",
        "reasoning": "so what",
        "reasoning_content": "so what",
    }


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (EndReason.FINISHED, "stop"),
        (EndReason.STOP, "stop"),
        (EndReason.LENGTH, "length"),
        (EndReason.TRUNCATED, "length"),
    ],
)
def test_how_it_ended(reason, word):
    for path in (CHAT, COMPLETIONS):
        assert streamed(reply(path, stream=True), [said("x")], ended(reason))[-2]["choices"][0]["finish_reason"] == word
        assert whole(reply(path), [said("x")], ended(reason))["choices"][0]["finish_reason"] == word


# ── calls ──

CALLS = [
    called(ToolCallPart(0, "look", '{"at"', "call_a")),
    called(ToolCallPart(0, arguments=":1}"), ToolCallPart(3, "wait")),
]


def test_calls_in_a_stream_begin_once_and_go_on_by_index():
    sent = streamed(reply(stream=True), CALLS)
    pieces = [call for value in sent[:-2] for call in value["choices"][0]["delta"]["tool_calls"]]
    assert pieces == [
        {
            "index": 0,
            "id": "call_a",
            "type": "function",
            "function": {"name": "look", "arguments": '{"at"'},
        },
        {"index": 0, "function": {"arguments": ":1}"}},
        {
            "index": 1,
            "id": "call_4f_1",
            "type": "function",
            "function": {"name": "wait", "arguments": ""},
        },
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert sent[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_in_one_body():
    (choice,) = whole(reply(), CALLS)["choices"]
    calls = [("call_a", "look", '{"at":1}'), ("call_4f_1", "wait", "{}")]
    assert choice["message"]["tool_calls"] == [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name, arguments in calls
    ]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")


def test_calls_cut_short_end_with_length():
    assert streamed(reply(stream=True), CALLS, ended(EndReason.LENGTH))[-2]["choices"][0]["finish_reason"] == "length"


# ── log-probabilities ──

SCORED = [
    thought("hm", logprob("hm")),
    said("é", logprob("é", -0.25, a=-3.0, é=-0.25, b=-2.0)),
    Chunk("", 7, kind=TokenKind.TOOL, logprobs=(logprob("{"),)),
]


def test_log_probabilities_stand_with_what_they_spell():
    sent = streamed(reply(stream=True, logprobs=True, top_logprobs=2), SCORED)
    assert [value["choices"][0].get("logprobs") for value in sent[:-1]] == [
        {"content": [], "reasoning": [entry("hm")]},
        {"content": [entry("é", -0.25, ("é", -0.25), ("b", -2.0))]},
        {"content": [], "tool_calls": [entry("{")]},
        None,
    ]
    assert whole(reply(logprobs=True), SCORED)["choices"][0]["logprobs"] == {
        "content": [entry("é", -0.25)],
        "reasoning": [entry("hm")],
        "tool_calls": [entry("{")],
    }


def test_log_probabilities_nobody_asked_for_are_not_shown():
    assert b"logprobs" not in b"".join(map(reply(stream=True).feed, SCORED))
    assert whole(reply(), SCORED)["choices"][0]["logprobs"] is None
    assert b"".join(map(reply(stream=True).feed, SCORED[2:])) == b""


# ── text completions ──


def test_a_text_completion_in_a_stream():
    head = HEAD | {"id": "cmpl-4f", "object": "text_completion"}
    sent = streamed(reply(COMPLETIONS, stream=True, stream_options={"include_usage": True}), [said("a"), said("b")])
    texts = [("a", None), ("b", None), ("", "stop")]
    choices = [{"text": text, "index": 0, "logprobs": None, "finish_reason": reason} for text, reason in texts]
    assert sent == [*(head | {"choices": [one]} for one in choices), head | {"choices": [], "usage": USAGE}, DONE]


def test_the_lists_of_a_text_completion():
    chunks = [
        thought("hm", logprob("hm")),
        said("é!", logprob("é", -0.25, a=-3.0, b=-2.0), logprob("!")),
        said("?", logprob("?")),
    ]
    sent = streamed(reply(COMPLETIONS, stream=True, logprobs=1), chunks)
    assert sent[0]["choices"] == [
        {"text": "", "index": 0, "logprobs": None, "finish_reason": None, "reasoning": "hm"},
    ]
    assert [value["choices"][0]["logprobs"]["text_offset"] for value in sent[1:3]] == [[0, 1], [2]]
    (choice,) = whole(reply(COMPLETIONS, logprobs=1), chunks)["choices"]
    assert (choice["text"], choice["reasoning"]) == ("é!?", "hm")
    assert choice["logprobs"] == {
        "tokens": ["é", "!", "?"],
        "token_logprobs": [-0.25, -0.5, -0.5],
        "top_logprobs": [{"b": -2.0, "é": -0.25}, {"!": -0.5}, {"?": -0.5}],
        "text_offset": [0, 1, 2],
    }
    assert whole(reply(COMPLETIONS, logprobs=0), chunks)["choices"][0]["logprobs"]["top_logprobs"] is None


# ── errors ──


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_stream_that_fails_ends_with_the_error(path):
    failing = reply(path, stream=True)
    *_, last = data_of(failing.feed(said("x")) + failing.fail(UpstreamTruncated("it broke off")))
    item = {"message": "it broke off", "type": "server_error", "param": None, "code": "upstream_truncated"}
    assert last == {"error": item}
    assert json.loads(reply(path).fail(UpstreamTruncated("it broke off"))) == {"error": item}


@pytest.mark.parametrize(
    ("error", "kind", "param"),
    [
        (InvalidRequest("n: only 1", field="n"), "invalid_request_error", "n"),
        (Unauthorized("no"), "authentication_error", None),
        (ModelNotFound("model 'nope' not found"), "not_found_error", None),
        (Overloaded("busy"), "server_error", None),
    ],
)
def test_errors_before_the_reply(error, kind, param):
    item = json.loads(openai.error_body(error))["error"]
    assert list(item) == ["message", "type", "param", "code"]
    assert (item["message"], item["type"], item["param"]) == (error.message, kind, param)


def test_content_types():
    for native in (False, True):
        for path in (CHAT, COMPLETIONS):
            assert reply(path, native, stream=True).content_type == "text/event-stream"
            assert reply(path, native).content_type == "application/json"


# ── anything ──

tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(list(TokenKind)[:2]), st.lists(tokens, max_size=3)), max_size=8))
def test_the_bytes_of_the_tokens_spell_the_text(parts):
    chunks = [said("".join(some), *(logprob(one) for one in some), kind=kind) for kind, some in parts]
    texts = {kind: "".join(chunk.text for chunk in chunks if chunk.kind is kind) for kind in TokenKind}
    sent = streamed(reply(stream=True, logprobs=True), chunks)
    shown = [value["choices"][0].get("logprobs") or {} for value in sent[:-1]]
    for kind, name in ((TokenKind.ANSWER, "content"), (TokenKind.THINKING, "reasoning")):
        assert deltas(sent, name) == texts[kind]
        assert (
            bytes(byte for one in shown for entry in one.get(name, []) for byte in entry["bytes"])
            == texts[kind].encode()
        )
    (choice,) = whole(reply(logprobs=True), chunks)["choices"]
    assert choice["message"]["content"] == texts[TokenKind.ANSWER]
    spelled = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
    assert spelled == texts[TokenKind.ANSWER].encode()


@given(st.lists(st.lists(tokens, max_size=3), max_size=8))
def test_offsets_point_at_their_tokens(parts):
    chunks = [said("".join(some), *(logprob(one) for one in some)) for some in parts]
    (choice,) = whole(reply(COMPLETIONS, logprobs=0), chunks)["choices"]
    shown = choice["logprobs"]
    for token, offset in zip(shown["tokens"], shown["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    sent = streamed(reply(COMPLETIONS, stream=True, logprobs=0), chunks)
    lists = [value["choices"][0]["logprobs"] for value in sent[:-2]]
    assert [offset for one in lists if one for offset in one["text_offset"]] == shown["text_offset"]


@given(st.lists(st.floats(-50, 0), max_size=12), st.integers(0, 20))
def test_the_best_alternatives_come_first(values, count):
    token = TokenLogprob("x", -1.0, tuple(TopEntry(f"t{n}", value) for n, value in enumerate(values)))
    (choice,) = whole(reply(logprobs=True, top_logprobs=count), [said("x", token)])["choices"]
    got = [one["logprob"] for one in choice["logprobs"]["content"][0]["top_logprobs"]]
    assert got == sorted(values, reverse=True)[:count]
