"""A runtime's own whole answer of the OpenAI dialect, less what only our asking caused."""

from __future__ import annotations

import json

import attrs
import pytest

from engine.domain.errors import UpstreamProtocolError, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason
from tests.transport.wire.dialects.openai_replies import CHAT, COMPLETIONS, FACTS, asked, ended
from transport.wire.dialects import openai
from transport.wire.dialects.openai_asks import AS_ONE
from transport.wire.dialects.openai_native import NativeBody

TOPS = [{"token": text, "logprob": -1.5} for text in "abc"]
BODY = {
    "choices": [{"index": 0, "message": {"content": "hi"}, "logprobs": {"content": [{"token": "h", "odd": 1}]}}],
    "model": "own",
    "usage": {"completion_tokens": 1},
    "odd": [1.5, None],
}


def asked_as_one(path=CHAT, **fields):
    found = asked(path, **fields)
    return attrs.evolve(found, options=found.options | {AS_ONE})


def answered(body, path=CHAT, **fields):
    reply = openai.reply_for(asked_as_one(path, **fields), True, FACTS)
    assert isinstance(reply, NativeBody)
    data = json.dumps(body).encode()
    assert reply.feed(Chunk("h", 7, raw=data)) + reply.feed(Chunk("i", 7)) == b""
    return json.loads(reply.finish(ended()))


@pytest.mark.parametrize("top", [0, 1, 2, 3, 5])
def test_alternatives_are_as_many_as_the_client_wants(top):
    entry = {"token": "h", "logprob": -0.5, "top_logprobs": TOPS}
    body = BODY | {"choices": [{"index": 0, "logprobs": {"content": [entry]}, "finish_reason": "stop"}]}
    sent = answered(body, logprobs=True, top_logprobs=top)
    assert sent["choices"][0]["logprobs"]["content"] == [entry | {"top_logprobs": TOPS[:top]}]
    assert answered(body, logprobs=True)["choices"] == body["choices"]  # as many as the server gives by itself


def test_everything_else_is_as_it_was_order_included():
    sent = answered(BODY, logprobs=True, top_logprobs=2)
    assert json.dumps(sent) == json.dumps(BODY | {"model": FACTS.model})


def test_text_completions_have_lists():
    scored = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -2.0, "c": -3.0}]}
    body = {"choices": [{"text": "a", "index": 0, "logprobs": scored, "finish_reason": "length"}]}
    sent = answered(body, COMPLETIONS, logprobs=2)
    assert sent["choices"][0]["logprobs"] == scored | {"top_logprobs": [{"a": -1.0, "b": -2.0}]}


def test_one_that_was_stopped_before_it_came_is_empty():
    reply = openai.reply_for(asked_as_one(logprobs=True), True, FACTS)
    sent = json.loads(reply.finish(ended(EndReason.ABORTED)))
    assert sent["choices"][0]["message"]["content"] == ""
    assert sent["object"] == "chat.completion"


def test_parts_that_cannot_be_read():
    with pytest.raises(UpstreamProtocolError):
        answered({"choices": [{"index": 0, "logprobs": {"content": [{"top_logprobs": [1]}]}}, 5]}, logprobs=True)


def test_what_goes_wrong_is_said_in_the_dialect():
    reply = openai.reply_for(asked_as_one(logprobs=True), True, FACTS)
    assert "broke off" in json.loads(reply.fail(UpstreamTruncated("it broke off")))["error"]["message"]


def test_a_translated_reply_is_made_from_chunks_all_the_same():
    assert not isinstance(openai.reply_for(asked_as_one(logprobs=True), False, FACTS), NativeBody)


@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}])
def test_the_request_is_sent_on_without_a_stream(stream):
    found = asked_as_one(logprobs=True, top_logprobs=3, **stream)
    body = json.loads(openai.forward_body(found, "own"))
    own = json.loads(found.body)
    assert body == own | {"model": "own", "top_logprobs": 10}
