"""Replies of runtimes that speak the OpenAI dialect: as recorded, less what the client did not ask for."""

from __future__ import annotations

import json
from contextlib import suppress
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import UpstreamProtocolError, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason
from tests.fakes.ollama import capture
from tests.fakes.streams import json_values
from tests.transport.wire.dialects.openai_replies import (
    CHAT,
    COMPLETIONS,
    DONE,
    data_of,
    decoded,
    ended,
    events,
    reply,
    streamed,
    whole,
)

USAGE = {"prompt_tokens": 56, "completion_tokens": 3, "total_tokens": 59}
SCORES = {"logprobs": True, "top_logprobs": 2}


def recorded(name, model="my/model"):
    """The values of a recorded stream, under the name that the client used."""
    return [value if value == DONE else value | {"model": model} for value in data_of(capture(name)[1])]


def chunks_of(name):
    return decoded(capture(name)[1])


# ── Ollama ──


def test_what_was_asked_for_is_handed_on_as_it_is():
    chat = reply(native=True, stream=True, stream_options={"include_usage": True}, **SCORES)
    sent = streamed(chat, chunks_of("openai-chat-logprobs"))
    assert json.dumps(sent) == json.dumps(recorded("openai-chat-logprobs"))  # order of fields included


def test_what_was_not_asked_for_is_gone_and_nothing_else():
    expected = recorded("openai-chat-logprobs")
    for value in expected[:4]:
        value["choices"][0].pop("logprobs", None)
    del expected[4]  # the counts
    sent = streamed(reply(native=True, stream=True), chunks_of("openai-chat-logprobs"))
    assert json.dumps(sent) == json.dumps(expected)


@pytest.mark.parametrize("top", [0, 1])
def test_alternatives_beyond_what_was_asked_are_gone(top):
    expected = recorded("openai-chat-logprobs")
    for value in expected[:3]:
        (entry,) = value["choices"][0]["logprobs"]["content"]
        entry["top_logprobs"] = entry["top_logprobs"][:top]
        if not top:
            del entry["top_logprobs"]  # as Ollama does
    del expected[4]
    chat = reply(native=True, stream=True, logprobs=True, top_logprobs=top)
    assert json.dumps(streamed(chat, chunks_of("openai-chat-logprobs"))) == json.dumps(expected)


def test_thinking_and_a_call_are_handed_on_as_they_are():
    sent = streamed(reply(native=True, stream=True), chunks_of("openai-think-tools"))
    assert json.dumps(sent) == json.dumps(recorded("openai-think-tools"))


def test_one_body_of_ollama_with_log_probabilities():
    entries = [entry for value in recorded("openai-chat-logprobs")[:3] for entry in scores_of(value)]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": " the model is"},
        "finish_reason": "length",
        "logprobs": {"content": entries},
    }
    expected = {
        "id": "chatcmpl-587",
        "object": "chat.completion",
        "created": 1795170586,
        "model": "my/model",
        "system_fingerprint": "fp_ollama",
        "choices": [choice],
        "usage": USAGE,
    }
    assert json.dumps(whole(reply(native=True, **SCORES), chunks_of("openai-chat-logprobs"))) == json.dumps(expected)
    del choice["logprobs"]
    assert json.dumps(whole(reply(native=True), chunks_of("openai-chat-logprobs"))) == json.dumps(expected)


def scores_of(value):
    return value["choices"][0]["logprobs"]["content"]


def test_one_body_of_ollama_with_thinking_and_a_call():
    (choice,) = whole(reply(native=True), chunks_of("openai-think-tools"))["choices"]
    function = {"name": "get_weather", "arguments": '{"city":"Oslo"}'}
    message = {
        "role": "assistant",
        "content": "",
        "reasoning": "The user wants the weather, so call the tool.",
        "tool_calls": [{"id": "call_49yu8k70", "index": 0, "type": "function", "function": function}],
    }
    assert json.dumps(choice) == json.dumps({"index": 0, "message": message, "finish_reason": "tool_calls"})


def test_a_record_that_only_our_asking_caused_leaves_its_role_behind():
    scored = {"content": [{"token": "<think>", "logprob": -0.1, "bytes": []}]}
    first = ollama({"role": "assistant", "content": ""}, logprobs=scored)
    values = [first, ollama({"content": ""}, logprobs=scored), ollama({"content": "hi"}), ollama({}, "stop")]
    sent = streamed(reply(native=True, stream=True), decoded(events(*values)))
    assert [value["choices"][0]["delta"] for value in sent[:-1]] == [{"role": "assistant", "content": "hi"}, {}]
    assert len(streamed(reply(native=True, stream=True, **SCORES), decoded(events(*values)))) == 5


def ollama(delta, reason=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": reason, **more}
    return {"id": "c", "model": "m", "system_fingerprint": "fp_ollama", "choices": [choice]}


# ── llama.cpp ──

TIMINGS = {"predicted_n": 2, "predicted_ms": 0.4}


def llama(delta, reason=None, *tokens, **more):
    """A record in the order of fields that llama.cpp has."""
    choice = {"finish_reason": reason, "index": 0, "delta": delta}
    if tokens:
        choice["logprobs"] = {"content": [llama_entry(token) for token in tokens]}
    return llama_record([choice], **more)


def llama_entry(token):
    top = {"id": 7, "token": token, "bytes": list(token.encode()), "logprob": -0.1}
    return {**top, "top_logprobs": [top, top | {"id": 8, "logprob": -9.5}]}


def llama_record(choices, object_="chat.completion.chunk", **more):
    head = {"created": 1795274467, "id": "chatcmpl-x", "model": "my/model", "system_fingerprint": "b0-unknown"}
    return {"choices": choices, **head, "object": object_, **more}


ASKED_OF_LLAMA = [
    llama({"role": "assistant", "content": None}, None, "<th"),
    llama({"reasoning_content": "so"}, None, "so"),
    llama({"content": "An "}, None, "An "),
    llama({"content": "end"}, None, "end"),
    llama({}, "stop"),
    llama_record([], usage=USAGE, timings=TIMINGS),
]
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": "{"}}
CALLS_OF_LLAMA = [
    llama({"role": "assistant", "content": None}),
    llama({"tool_calls": [CALL]}),
    llama({"tool_calls": [{"index": 0, "function": {"arguments": '"at":1}'}}]}),
    llama({}, "tool_calls"),
    llama_record([], usage=USAGE, timings=TIMINGS),
]


def test_the_extras_of_the_last_record_move_when_the_counts_go():
    expected = deepcopy(ASKED_OF_LLAMA[:5])
    for value in expected[:4]:
        del value["choices"][0]["logprobs"]
    expected[4]["timings"] = TIMINGS
    sent = streamed(reply(native=True, stream=True), decoded(events(*ASKED_OF_LLAMA)))
    assert json.dumps(sent) == json.dumps([*expected, DONE])


def test_one_body_of_llama_cpp_has_its_order_of_fields():
    sent = whole(reply(native=True), decoded(events(*ASKED_OF_LLAMA)))
    message = {"role": "assistant", "content": "An end", "reasoning_content": "so"}
    expected = {
        "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
        "created": 1795274467,
        "model": "my/model",
        "system_fingerprint": "b0-unknown",
        "object": "chat.completion",
        "usage": USAGE,
        "id": "chatcmpl-x",
        "timings": TIMINGS,
    }
    assert json.dumps(sent) == json.dumps(expected)


def test_one_body_of_llama_cpp_with_a_call_in_pieces():
    (choice,) = whole(reply(native=True), decoded(events(*CALLS_OF_LLAMA)))["choices"]
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at":1}'}, "id": "c1"}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert json.dumps(choice) == json.dumps({"finish_reason": "tool_calls", "index": 0, "message": message})


def text_record(text, reason=None, logprobs=None, **more):
    choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}
    return llama_record([choice], "text_completion", **more)


COMPLETED = [
    text_record("ma", None, {"content": [llama_entry("ma")]}),
    text_record("", None, {"content": [llama_entry("")]}),
    text_record("", "stop", usage=USAGE, timings=TIMINGS),
]


def test_text_completions_keep_a_null_where_log_probabilities_would_stand():
    expected = deepcopy(COMPLETED)
    for value in expected:
        value["choices"][0]["logprobs"] = None
    sent = streamed(reply(COMPLETIONS, native=True, stream=True), decoded(events(*COMPLETED)))
    assert json.dumps(sent) == json.dumps([*expected, DONE])  # counts included: they are no record of their own
    (choice,) = whole(reply(COMPLETIONS, native=True), decoded(events(*COMPLETED)))["choices"]
    assert choice == {"text": "ma", "index": 0, "logprobs": None, "finish_reason": "stop"}


def test_lists_of_log_probabilities_are_cut_to_what_was_asked():
    lists = {
        "tokens": ["ma"],
        "token_logprobs": [-3.0],
        "top_logprobs": [{"mo": -0.5, "mi": -1.0, "ma": -3.0}],
        "text_offset": [0],
    }
    values = [text_record("ma", None, lists), text_record("", "stop")]
    sent = streamed(reply(COMPLETIONS, native=True, stream=True, logprobs=1), decoded(events(*values)))
    assert sent[0]["choices"][0]["logprobs"] == lists | {"top_logprobs": [{"mo": -0.5, "ma": -3.0}]}


def test_a_record_in_several_lines_becomes_one():
    laid_out = b"".join(
        b"data: " + line.encode() + b"\n" for line in json.dumps(llama({"content": "a"}), indent=1).splitlines()
    )
    sent = streamed(reply(native=True, stream=True), decoded(laid_out + b"\n" + events(llama({}, "stop"))))
    assert sent == [llama({"content": "a"}), llama({}, "stop"), DONE]


def test_a_record_that_cannot_be_taken_apart_is_handed_on_as_it_is():
    odd = llama({"content": "a"}) | {"model": "theirs"}
    odd["choices"].append(
        {"index": 1, "delta": {"content": "b"}, "logprobs": {"content": [{"token": "b", "logprob": -1}]}}
    )
    raw = json.dumps(odd).replace('"logprob": -1', '"logprob": -1, "x": "\\ud800"').encode()
    chat = reply(native=True, stream=True, **SCORES)
    assert chat.feed(Chunk("a", 7, raw=raw)) == b"data: " + raw + b"\n\n"
    with pytest.raises(UpstreamProtocolError):
        reply(native=True, **SCORES).feed(Chunk("a", 7, raw=raw))


# ── ends ──


def test_a_stopped_stream_still_says_how_it_ended():
    body = events(*ASKED_OF_LLAMA[:3]).removesuffix(b"data: [DONE]\n\n")
    chat = reply(native=True, stream=True, stream_options={"include_usage": True})
    *_, last, counts, done = streamed(chat, decoded(body), ended(EndReason.STOP))
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert (counts["choices"], counts["usage"]["total_tokens"], done) == ([], 8, DONE)
    assert {last["id"], counts["id"]} == {"chatcmpl-x"}


def test_one_stopped_body_still_says_how_it_ended():
    body = events(*ASKED_OF_LLAMA[:3]).removesuffix(b"data: [DONE]\n\n")
    sent = whole(reply(native=True), decoded(body), ended(EndReason.STOP))
    assert sent["choices"][0]["finish_reason"] == "stop"
    assert sent["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_reply_without_a_record_is_one_of_ours(path):
    first, done = streamed(reply(path, native=True, stream=True), [], ended(EndReason.STOP))
    assert (first["choices"][0]["finish_reason"], first["model"], done) == ("stop", "my/model", DONE)
    assert whole(reply(path, native=True), [], ended(EndReason.STOP))["choices"][0]["finish_reason"] == "stop"


def test_a_broken_stream_ends_with_an_error_and_without_a_done():
    chat = reply(native=True, stream=True)
    sent = b"".join(map(chat.feed, chunks_of("crash-openai"))) + chat.fail(UpstreamTruncated("it broke off"))
    *_, last, error = data_of(sent)
    assert last["model"] == "my/model"  # Ollama's own last record has none
    item = {"message": "it broke off", "type": "server_error", "param": None, "code": "upstream_truncated"}
    assert error == {"error": item}


def test_a_done_is_not_sent_before_it_is_known_how_it_ended():
    chat = reply(native=True, stream=True)
    assert b"[DONE]" not in b"".join(map(chat.feed, chunks_of("openai-chat-logprobs")))


# ── anything ──

names = st.sampled_from(
    "choices index delta text content role tool_calls function name arguments logprobs tokens token_logprobs token"
    " top_logprobs logprob bytes finish_reason usage model system_fingerprint reasoning object id".split()
)


@given(st.lists(st.dictionaries(names, json_values(names), max_size=5), max_size=4), st.booleans(), st.booleans())
def test_whatever_the_runtime_says_the_reply_ends(values, scores, text):
    path = COMPLETIONS if text else CHAT
    fields = {"logprobs": 1} if scores and text else SCORES if scores else {}
    choices = [{"choices": [{"index": 0, **value}], **value} for value in values]
    try:
        chunks = decoded(events(*values, *choices))
    except UpstreamProtocolError:
        return
    assert streamed(reply(path, native=True, stream=True, **fields), chunks)[-1] == DONE
    with suppress(UpstreamProtocolError):
        assert whole(reply(path, native=True, **fields), chunks)["choices"]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(st.lists(texts, max_size=8), st.booleans(), st.booleans())
def test_any_split_of_a_text_is_the_same_text(pieces, scores, unknown):
    values = [llama({"content": piece}, None, *([piece] if scores else [])) for piece in pieces]
    if unknown:
        values = [value | {"x-new": {"of": "tomorrow"}} for value in values]
    chunks = decoded(events(*values, llama({}, "stop")))
    sent = streamed(reply(native=True, stream=True), chunks)
    got = "".join(value["choices"][0]["delta"].get("content", "") for value in sent[:-1])
    assert got == "".join(pieces)
    assert whole(reply(native=True), chunks)["choices"][0]["message"]["content"] == "".join(pieces)
    assert not any("logprobs" in value["choices"][0] for value in sent[:-1])
    assert all("x-new" in value for value in sent[:-2]) == unknown or not sent[:-2]
