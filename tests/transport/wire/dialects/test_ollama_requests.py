"""What clients send to Ollama's calls, understood; and what of it goes on to the runtime."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest, NotFound
from engine.domain.generation import Dialect, Message, Parameters, Tool, ToolCall
from tests.fakes.ollama import CAPTURES
from tests.fakes.streams import json_values
from transport.wire.dialects import ollama
from transport.wire.dialects.ollama_request import keep_alive
from transport.wire.dialects.reply import Asked, needs

SECRET = "my darkest secret"


def asked(path: str, **fields: Any) -> Asked:
    return ollama.parse(path, json.dumps({"model": "m"} | fields).encode())


def chat(**fields: Any) -> Asked:
    return asked("/api/chat", **({"messages": [{"role": "user", "content": "hi"}]} | fields))


def generate(**fields: Any) -> Asked:
    return asked("/api/generate", **({"prompt": "hi"} | fields))


def refusal(call: Any, *args: Any, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **fields)
    assert SECRET not in f"{caught.value.message} {caught.value.details}"
    assert caught.value.status == 400
    return caught.value


# ── what is understood ──


def test_a_chat_of_every_kind_of_message():
    messages = [
        {"role": "System", "content": "be brief"},
        {"role": "user", "content": "what is it?", "images": ["aGk="]},
        {
            "role": "assistant",
            "content": None,
            "thinking": "hm",
            "tool_calls": [{"id": "call_1", "function": {"index": 0, "name": "look", "arguments": {"at": "it"}}}],
        },
        {"role": "tool", "content": "a cat", "tool_name": "look", "tool_call_id": "call_1"},
    ]
    found = chat(messages=messages)
    assert found.dialect is Dialect.OLLAMA
    assert (found.model, found.stream, found.load_only) == ("m", True, False)
    assert found.request.messages == (
        Message("system", "be brief"),
        Message("user", "what is it?", images=("aGk=",)),
        Message("assistant", "", thinking="hm", tool_calls=(ToolCall("look", '{"at": "it"}', "call_1"),)),
        Message("tool", "a cat", tool_call_id="call_1", tool_name="look"),
    )
    assert needs(found) == ()


def test_a_prompt_with_all_that_can_stand_beside_it():
    found = generate(system="be brief", suffix="}", images=["aGk="], stream=False)
    assert found.request.prompt == "hi"
    assert found.request.messages == ()
    assert (found.request.system, found.request.suffix, found.request.images) == ("be brief", "}", ("aGk=",))
    assert not found.stream
    assert generate(raw=True).request.raw


def test_tools():
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    found = chat(
        tools=[
            {"type": "function", "function": {"name": "weather", "description": "d", "parameters": schema}},
            {"type": "function", "function": {"name": "now", "parameters": None}},
        ]
    ).request.tools
    assert found[0].name == "weather"
    assert json.loads(found[0].parameters) == schema
    assert found[1] == Tool("now", "", "{}")
    assert chat(tools=[]).request.tools == ()


def test_options_become_parameters_and_runner_options():
    options = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40.0,
        "min_p": 0.05,
        "num_predict": 7,
        "seed": 3,
        "stop": ["\n", ""],
        "presence_penalty": -1,
        "frequency_penalty": 1,
        "repeat_penalty": 1.1,
        "num_ctx": 4096.0,
        "use_mmap": False,
        "num_gpu": None,
        "mirostat": 2,
        "whatever": {"a": [1]},
        "num_keep": 4,
        "typical_p": 1.0,
    }
    found = generate(options=options)
    assert found.request.parameters == Parameters(
        temperature=0.0,
        top_p=0.5,
        top_k=40,
        max_tokens=7,
        seed=3,
        stop=("\n",),
        min_p=0.05,
        presence_penalty=-1.0,
        frequency_penalty=1.0,
        repeat_penalty=1.1,
    )
    assert found.request.runner_options == {"num_ctx": 4096, "use_mmap": False}
    assert needs(found) == ()


@pytest.mark.parametrize("options", [{"num_predict": -1}, {"num_predict": -2}, {"seed": -1}, {}, None])
def test_options_that_mean_the_runtime_s_own(options: dict[str, int] | None):
    found = generate(options=options)
    assert found.request.parameters == Parameters()
    assert needs(found) == ()


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"template": "{{ .Prompt }}"}, ("template",)),
        ({"context": [1, 2]}, ("context",)),
        ({"truncate": False, "shift": False}, ("shift", "truncate")),
        ({"options": {"typical_p": 0.9}}, ("options.typical_p",)),
        ({"options": {"temperature": 2.5, "top_k": 0, "num_predict": 0}},
         ("options.num_predict", "options.temperature", "options.top_k")),
        ({"options": {"stop": [str(n) for n in range(11)]}}, ("options.stop",)),
        ({"options": {"repeat_last_n": 8, "repeat_penalty": 1.2}}, ("options.repeat_last_n",)),
        ({"options": {"repeat_last_n": 8}}, ()),
        ({"template": "", "context": [], "truncate": True, "shift": None}, ()),
    ],
)  # fmt: skip
def test_what_only_a_runtime_of_this_dialect_can_heed(fields: dict[str, Any], needed: tuple[str, ...]):
    found = generate(**fields)
    assert needs(found) == needed
    assert found.options == {f"needs:{field}" for field in needed}


def test_a_load_needs_nothing():
    found = asked("/api/generate", template="x")
    assert (needs(found), found.load_only) == (("template",), True)


def test_a_role_that_only_the_runtime_knows():
    found = chat(messages=[{"role": "control", "content": "thinking"}])
    assert needs(found) == ("messages[0].role",)


@pytest.mark.parametrize(
    ("value", "format_"),
    [("json", "json"), ("", None), (None, None), ({"type": "object"}, '{"type": "object"}')],
)
def test_format(value: object, format_: str | None):
    assert chat(format=value).request.format == format_


@pytest.mark.parametrize("think", [True, False, "low", "max", None])
def test_think(think: bool | str | None):
    assert chat(think=think).request.think == think


def test_log_probabilities_are_the_client_s_wish_and_ours():
    found = chat()
    assert (found.logprobs, found.top_logprobs, found.request.top_logprobs) == (False, 0, 10)
    found = chat(logprobs=True, top_logprobs=15)
    assert (found.logprobs, found.top_logprobs, found.request.top_logprobs) == (True, 15, 15)
    found = chat(top_logprobs=15)
    assert (found.logprobs, found.top_logprobs, found.request.top_logprobs) == (False, 0, 10)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/generate", {}),
        ("/api/generate", {"prompt": ""}),
        ("/api/generate", {"prompt": None, "stream": False}),
        ("/api/chat", {"messages": []}),
        ("/api/chat", {}),
    ],
)
def test_nothing_asked_loads(path: str, fields: dict[str, Any]):
    assert asked(path, **fields).load_only
    assert asked(path, **fields, keep_alive=0).request.keep_alive == 0


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (None, None), (0, 0), (0.0, 0), ("0", 0), ("0s", 0), ("-0m", 0), ("500ms", 0), ("0.5s", 0), ("0h0m0.9s", 0),
        (0.4, 0), (300, 300), (300.0, 300), (1.5, "1.5s"), ("5m", "5m"), ("1h30m", "1h30m"), ("+2s", "+2s"),
        (-1, -1), (-0.5, -1), (-300, -1), ("-1m", -1), ("-1ns", -1), ("1000ms", "1000ms"),
    ],
)  # fmt: skip
def test_keep_alive(value: str | int | float | None, kept: str | int | None):
    assert keep_alive(value) == kept
    assert type(keep_alive(value)) is type(kept)


def test_habits_of_real_clients():
    litellm = ollama.parse("/api/generate", b'{"name": "m", "prompt": "hi", "options": {}, "images": []}')
    assert litellm.model == "m"
    stray = chat(max_output_tokens=5, think=False, tools=[], options={}, keep_alive=None, metadata={"user": "u"})
    assert needs(stray) == ()
    assert stray.request.think is False
    images = chat(messages=[{"role": "user", "content": "hi", "images": []}])
    assert images.request.messages[0].images == ()
    text_arguments = [{"function": {"name": "f", "arguments": '{"a": 1}'}}]
    called = chat(messages=[{"role": "assistant", "content": "", "tool_calls": text_arguments}])
    assert called.request.messages[0].tool_calls == (ToolCall("f", '{"a": 1}'),)


def test_the_requests_of_the_captures_are_understood():
    seen = 0
    for file in sorted(CAPTURES.glob("*.txt")):
        head, body = file.read_bytes().split(b"\n", 2)[:2]
        path = head.split()[1].decode()
        if path not in ("/api/generate", "/api/chat") or file.stem == "err-400":
            continue
        found = ollama.parse(path, body)
        assert found.stream is json.loads(body).get("stream", True)
        assert found.load_only is (file.stem in ("load", "unload"))
        assert needs(found) == ()
        seen += 1
    assert seen == 12


# ── what is refused ──


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": ""}, "model is required"),
        ({"model": 7}, "model"),
        ({"messages": SECRET}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": SECRET}]}]}, "messages[0].content"),
        ({"messages": [{"content": SECRET}]}, "role"),
        ({"messages": [{"role": "user", "images": [f"data:image/png;base64,{SECRET}"]}]}, "messages[0].images"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f", "arguments": [SECRET]}}]}]},
         "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f", "arguments": SECRET}}]}]},
         "messages[0].tool_calls"),
        ({"tools": [{"function": {}}]}, "name"),
        ({"options": {"seed": SECRET}}, "options.seed"),
        ({"options": {"temperature": True}}, "options.temperature"),
        ({"options": {"num_ctx": 1e300}}, "options.num_ctx"),
        ({"options": {"stop": SECRET}}, "options.stop"),
        ({"stream": "yes"}, "stream"),
        ({"format": SECRET}, "format"),
        ({"format": 3}, "format"),
        ({"think": SECRET}, "think"),
        ({"keep_alive": "abc"}, "keep_alive"),
        ({"keep_alive": "5"}, "keep_alive"),
        ({"keep_alive": "1" * 90 + "s"}, "keep_alive"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        ({"_debug_render_only": True}, "_debug_render_only"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_and_nothing_that_was_said(fields: dict[str, Any], says: str):
    assert says in refusal(chat, **fields).message


def test_a_raw_prompt_has_nothing_beside_it():
    assert refusal(generate, raw=True, system="x").message == "raw mode does not support template, system, or context"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "missing request body"),
        (b"  \n", "missing request body"),
        (b"[]", "must be an object"),
        (b"{", "not valid JSON"),
        (b'{"model": "m", "x": "\xff"}', "UTF-8"),
        (b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    ],
)
def test_a_body_that_is_none(body: bytes, says: str):
    assert says in refusal(ollama.parse, "/api/chat", body).message


def test_another_path():
    with pytest.raises(NotFound):
        ollama.parse("/api/tags", b"{}")


FIELDS = st.sampled_from(
    "model name messages role content images tools tool_calls function arguments options seed stop keep_alive think "
    "format logprobs top_logprobs prompt context raw".split()
)


@given(json_values(FIELDS), st.sampled_from(["/api/chat", "/api/generate"]))
def test_whatever_comes_is_understood_or_refused(value: object, path: str):
    body = json.dumps(value | {"model": "m"} if isinstance(value, dict) else value).encode()
    try:
        found = ollama.parse(path, body)
    except InvalidRequest:
        return
    assert json.loads(ollama.forward_body(found, "real"))["model"] == "real"


# ── what goes on ──


def test_a_forwarded_body_is_the_client_s_own_with_our_wishes():
    body = (
        b'{"stream":false,"zz":{"deep":[1.50,"\\u00e9"]},"model":"alias","messages":[{"role":"user","content":"hi"}]}'
    )
    found = ollama.parse("/api/chat", body)
    assert ollama.forward_body(found, "llama3.1:8b") == (
        b'{"stream":true,"zz":{"deep":[1.50,"\\u00e9"]},"model":"llama3.1:8b",'
        b'"messages":[{"role":"user","content":"hi"}],"logprobs":true,"top_logprobs":10}'
    )
    assert ollama.forward_body(found, "llama3.1:8b", logprobs=False) == (
        b'{"stream":true,"zz":{"deep":[1.50,"\\u00e9"]},"model":"llama3.1:8b",'
        b'"messages":[{"role":"user","content":"hi"}]}'
    )


@pytest.mark.parametrize(("wanted", "sent"), [(3, 10), (20, 20)])
def test_more_alternatives_are_asked_for_never_fewer(wanted: int, sent: int):
    forwarded = json.loads(ollama.forward_body(chat(logprobs=True, top_logprobs=wanted), "m"))
    assert (forwarded["logprobs"], forwarded["top_logprobs"]) == (True, sent)


def test_a_load_goes_on_as_it_is():
    found = ollama.parse("/api/generate", b'{"name":"alias","keep_alive":0}')
    assert ollama.forward_body(found, "real") == b'{"model":"real","keep_alive":0}'


def test_only_the_name_is_changed_and_only_if_it_must():
    body = b'{ "model": "m", "input": ["a"] }'
    assert ollama.renamed(body, "m") is body
    assert ollama.renamed(body, "n") == b'{"model":"n","input":["a"]}'


@pytest.mark.parametrize("key", ["Model", "STREAM", "Top_Logprobs"])
def test_a_field_of_ours_in_another_case_cannot_slip_by(key: str):
    found = chat(**{key: "x:cloud"})
    assert key.lower() in refusal(ollama.forward_body, found, "m").message
