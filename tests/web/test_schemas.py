from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest
from engine.domain.generation import Message, Parameters
from web.schemas import (
    MAX_TOKENS_MAX,
    SEED_MAX,
    GenerateBody,
    LoadBody,
    ParametersBody,
    StopBody,
    UnloadBody,
    decode,
    generation_request,
)

BODIES = [GenerateBody, LoadBody, UnloadBody, StopBody]
BASE = b'{"model":"a","prompt":"x"'
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
almost_bodies = st.dictionaries(
    st.sampled_from(["model", "mode", "prompt", "messages", "parameters", "stream", "name", "session_id", "more"]),
    json_values | st.fixed_dictionaries({"temperature": json_values, "stop": json_values}),
)


def refused(body: bytes, cls: type[msgspec.Struct] = GenerateBody) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(body, cls)
    assert caught.value.message.isprintable()
    return caught.value.message


def with_parameter(name: str, value: str) -> bytes:
    return BASE + f',"parameters":{{"{name}":{value}}}}}'.encode()


@given(st.binary(max_size=200) | almost_bodies.map(msgspec.json.encode), st.sampled_from(BODIES))
@example(b"", GenerateBody)
@example(b"\xef\xbb\xbf{}", GenerateBody)
@example(b'{"name":"\\ud800"}', LoadBody)
def test_anything_is_a_body_or_refused(data, cls):
    try:
        body = decode(data, cls)
    except InvalidRequest:
        return
    assert isinstance(body, cls)


# every number, its ends, and just beyond them
LIMITS = [
    ("temperature", ("0", "2", "1.5"), ("-0.001", "2.001", "1e400", '"1"', "true")),
    ("top_p", ("0", "1"), ("-0.1", "1.1")),
    ("top_k", ("1", "100"), ("0", "101", "1.5")),
    ("max_tokens", ("1", str(MAX_TOKENS_MAX)), ("0", "-1", str(MAX_TOKENS_MAX + 1), "9" * 400)),
    ("seed", ("0", str(SEED_MAX)), ("-1", str(SEED_MAX + 1))),
]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, good, _ in LIMITS for v in (*good, "null")])
def test_a_parameter_within_its_range_is_taken(name, value):
    body = decode(with_parameter(name, value), GenerateBody)
    assert getattr(body.parameters, name) == msgspec.json.decode(value)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, _, bad in LIMITS for v in bad])
def test_a_parameter_beyond_its_range_is_refused_by_name(name, value):
    assert f"parameters.{name}" in refused(with_parameter(name, value))


@pytest.mark.parametrize(("name", "limit"), [("temperature", "2"), ("top_k", "100"), ("top_p", "1")])
def test_a_refusal_tells_the_limit(name, limit):
    assert f"<= {limit}" in refused(with_parameter(name, "1000"))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "nan", "01", "1.", ".5", "0x1"])
def test_what_is_no_json_number_is_refused(number):
    assert "not valid JSON" in refused(with_parameter("temperature", number))


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model":' + b"[" * 100_000,
        b'{"model":"a","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"model":"a","prompt":"x","more":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_nesting_without_end_is_refused(bomb):
    refused(bomb)


@pytest.mark.parametrize(("cls", "body"), [
    (GenerateBody, b'{"model":"a","prompt":"x","more":1}'),
    (GenerateBody, b'{"model":"a","prompt":"x","parameters":{"more":1}}'),
    (GenerateBody, b'{"model":"a","messages":[{"role":"user","content":"x","more":1}]}'),
    (LoadBody, b'{"name":"a","more":1}'),
    (UnloadBody, b'{"name":"a","more":1}'),
    (StopBody, b'{"session_id":"a","more":1}'),
])  # fmt: skip
def test_unknown_fields_are_refused_by_name(cls, body):
    said = refused(body, cls)
    assert said.partition(": ")[0].rpartition(".")[2] == "more"
    assert said.endswith("more: there is no such field")


NO_SUCH_VALUE = "is none of the values it may have"
TOLD = {"mode": NO_SUCH_VALUE, "messages[0].role": NO_SUCH_VALUE, "messages[0].content": "is missing"}


@pytest.mark.parametrize(("body", "field"), [
    (b'{"model":"a","models":"b","prompt":"x"}', "models"),
    (b'{"models":[],"mode":"council","prompt":"x"}', "models"),
    (b'{"model":"","prompt":"x"}', "model"),
    (b'{"model":"' + b"a" * 331 + b'","prompt":"x"}', "model"),
    (BASE + b',"mode":"choir"}', "mode"),
    (BASE + b',"stream":1}', "stream"),
    (b'{"model":"a","messages":[]}', "messages"),
    (b'{"model":"a","messages":[{"role":"tool","content":"x"}]}', "messages[0].role"),
    (b'{"model":"a","messages":[{"role":"user"}]}', "messages[0].content"),
    (b'{"model":"a","messages":[' + b",".join([b'{"role":"user","content":""}'] * 1025) + b"]}", "messages"),
    (with_parameter("stop", "[" + ",".join(['"x"'] * 11) + "]"), "parameters.stop"),
    (with_parameter("stop", '[""]'), "parameters.stop[0]"),
    (with_parameter("stop", '["' + "x" * 257 + '"]'), "parameters.stop[0]"),
])  # fmt: skip
def test_a_refusal_names_the_field(body, field):
    assert refused(body).startswith(f"{field}: must be " if field not in TOLD else f"{field}: {TOLD[field]}")


def test_the_least_that_can_be_asked():
    body = decode(BASE + b"}", GenerateBody)
    assert (body.mode, body.stream, body.parameters) == ("single", False, ParametersBody())
    asked = generation_request(body, "runtime's own name")
    assert (asked.model, asked.prompt, asked.messages) == ("runtime's own name", "x", ())
    assert asked.parameters == Parameters()


def test_everything_that_can_be_asked():
    parameters = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_tokens": 7, "seed": 3, "stop": ["\n", "END"]}
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": "hi"}]
    data = msgspec.json.encode({"model": "a", "mode": "single", "messages": messages, "parameters": parameters})
    asked = generation_request(decode(data, GenerateBody), "a")
    assert asked.prompt is None
    assert asked.messages == (Message("system", "short"), Message("user", "hi"))
    assert asked.parameters == Parameters(0.5, 0.9, 40, 7, 3, ("\n", "END"))


@pytest.mark.parametrize("body", [b'{"model":"a"}', BASE + b',"messages":[{"role":"user","content":"x"}]}'])
def test_exactly_one_of_prompt_and_messages(body):
    with pytest.raises(InvalidRequest, match="exactly one"):
        generation_request(decode(body, GenerateBody), "a")


def test_an_empty_prompt_is_a_prompt():
    assert generation_request(decode(b'{"model":"a","prompt":""}', GenerateBody), "a").prompt == ""


@pytest.mark.parametrize("text", ["\U0001f642", "\u2028", "\x00", "\r\n", '"\\'])
def test_a_prompt_arrives_as_it_was(text):
    data = msgspec.json.encode({"model": "a", "prompt": text})
    assert generation_request(decode(data, GenerateBody), "a").prompt == text
