"""OpenAI's own Python client, with nothing but its address changed."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

from tests.system.clients.lens import (
    ANSWER,
    ANSWER_TOKENS,
    BROKEN,
    EMBEDDED,
    MODELS,
    PARAMETERS,
    PIXEL,
    SAID_BEFORE,
    SCHEMA,
    SCRIPTED,
    STEADY,
    TEXTS,
    THOUGHT,
)

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "now", "parameters": PARAMETERS}}
FLAT_TOOL = {"type": "function", "name": "get_weather", "description": "now", "parameters": PARAMETERS}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
CALLERS = ("mock:tools", SCRIPTED)
CITIES = {"mock:tools": "Oslo", SCRIPTED: "Tromsø"}


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


@pytest.fixture(scope="module")
def client(lens):
    with openai.OpenAI(base_url=f"{lens.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def chat(client):
    """`chat(model, text, **more)`: a chat with one message."""

    def create(model, text="What is a glacier? F", **more):
        return client.chat.completions.create(**{"model": model, "messages": asked(text)} | more)

    return create


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def told(chunks, field: str = "content") -> str:
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    return "".join(getattr(delta, field, None) or "" for delta in deltas)


# ── models ──


def test_models_of_every_runtime_are_listed_and_found(client, lens):
    def listed() -> list[str]:
        return [model.id for model in client.models.list()]

    lens.engine.wait_for(lambda: set(MODELS) <= set(listed()))  # a runtime may be late once, on a busy machine
    names = listed()
    assert len(names) == len(set(names))
    for name in MODELS:
        assert client.models.retrieve(name).id == name
    assert client.models.retrieve(EMBEDDED).owned_by == "embedded"


def test_an_unknown_model_is_not_found(client, chat):
    for call in (
        lambda: chat("nope"),
        lambda: chat("nope", stream=True),
        lambda: client.completions.create(model="nope", prompt="hi"),
        lambda: client.responses.create(model="nope", input="hi"),
        lambda: client.embeddings.create(model="nope", input="hi"),
        lambda: client.models.retrieve("nope"),
    ):
        with pytest.raises(openai.NotFoundError, match="no model nope") as caught:
            call()
        assert (caught.value.code, caught.value.type) == ("model_not_found", "not_found_error")
        assert caught.value.request_id


# ── chats ──


@pytest.mark.parametrize("model", MODELS)
def test_a_chat_is_the_same_in_pieces_and_in_one(chat, model):
    seeded = {"seed": 7, "max_tokens": 12}
    whole = chat(model, **seeded)
    (choice,) = whole.choices
    chunks = list(chat(model, stream=True, stream_options={"include_usage": True}, **seeded))
    assert told(chunks) == choice.message.content != ""
    assert len(chunks) > 5
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [c.choices[0].delta.role for c in chunks if c.choices and c.choices[0].delta.role] == ["assistant"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert choice.finish_reason == "length"
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    for usage in (whole.usage, chunks[-1].usage):
        assert usage.prompt_tokens > 0
        assert usage.completion_tokens == 12
        assert usage.total_tokens == usage.prompt_tokens + 12
    assert choice.logprobs is None
    assert not [c for c in chunks if c.choices and c.choices[0].logprobs]


@pytest.mark.parametrize("model", MODELS)
def test_counts_that_nobody_asked_for_are_not_sent(chat, model):
    chunks = list(chat(model, stream=True, max_tokens=3))
    assert [chunk for chunk in chunks if chunk.usage or not chunk.choices] == []


@pytest.mark.parametrize("model", [EMBEDDED, STEADY])
def test_the_seed_decides(chat, model):
    said = [chat(model, seed=seed, max_tokens=12).choices[0].message.content for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_characters_of_many_bytes_and_emoji_come_whole(client, chat):
    assert told(chat(SCRIPTED, "A", stream=True)) == TEXTS["A"] == chat(SCRIPTED, "A").choices[0].message.content
    assert client.completions.create(model=SCRIPTED, prompt="A").choices[0].text == TEXTS["A"]
    assert client.responses.create(model=SCRIPTED, input="A").output_text == TEXTS["A"]


def test_thinking_is_told_apart(chat):
    chunks = list(chat(SCRIPTED, "B", stream=True))
    assert told(chunks, "reasoning_content") == THOUGHT
    assert told(chunks) == ANSWER
    message = chat(SCRIPTED, "B").choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHT, ANSWER)


def test_the_thinking_of_ollama_is_told_in_this_dialect(chat):
    thought = chat("mock:thinking", reasoning_effort="high", max_tokens=20)
    assert thought.choices[0].message.reasoning
    assert thought.choices[0].message.content
    assert 0 < thought.usage.completion_tokens_details.reasoning_tokens < thought.usage.completion_tokens == 20
    assert told(chat("mock:thinking", reasoning_effort="high", max_tokens=20, stream=True), "reasoning")
    plain = chat("mock:thinking", reasoning_effort="none").choices[0].message
    assert getattr(plain, "reasoning", None) is None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_there_when_asked_for(chat, model, stream):
    answer = chat(model, logprobs=True, top_logprobs=3, max_tokens=4, stream=stream)
    choices = [choice for part in (answer if stream else [answer]) for choice in part.choices]
    found = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or ()]
    assert len(found) == 4
    for entry in found:
        assert entry.logprob <= 0
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
    text = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
    assert "".join(entry.token for entry in found) == text


@pytest.mark.parametrize("model", MODELS)
def test_stop_strings_end_an_answer_and_are_not_said(chat, model):
    full = chat(model, seed=3, max_tokens=16).choices[0].message.content
    stop = full.split()[3]
    choice = chat(model, seed=3, max_tokens=16, stop=["\x00", stop]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (full.partition(stop)[0], "stop")


def test_json_comes_from_who_can(client, chat):
    for wanted in ({"type": "json_object"}, JSON_SCHEMA):
        message = chat(SCRIPTED, "C", response_format=wanted, temperature=0).choices[0].message
        assert json.loads(message.content) == {"city": "Oslo", "degrees": 7}
    parsed = client.chat.completions.parse(model=SCRIPTED, messages=asked("C"), response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(city="Oslo", degrees=7)


# ── text completions and responses ──


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_is_completed(client, model):
    arguments = {"model": model, "prompt": "What is a glacier? F", "seed": 7, "max_tokens": 12}
    whole = client.completions.create(**arguments)
    chunks = list(client.completions.create(**arguments, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text != ""
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].logprobs is None


@pytest.mark.parametrize("model", MODELS)
def test_a_response_is_the_same_in_events_and_in_one(client, model):
    arguments = {"model": model, "input": "What is a glacier? F", "max_output_tokens": 12, "extra_body": {"seed": 7}}
    whole = client.responses.create(**arguments)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 12
    assert whole.usage.total_tokens == whole.usage.input_tokens + 12
    events = list(client.responses.create(**arguments, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    assert events[-1].response.output_text == whole.output_text != ""


def test_a_response_thinks_and_is_read_as_a_schema(client):
    with client.responses.stream(model=SCRIPTED, input="B") as stream:
        final = stream.until_done().get_final_response()
    reasoning, message = final.output
    assert (reasoning.type, reasoning.summary[0].text) == ("reasoning", THOUGHT)
    assert message.content[0].text == ANSWER
    assert final.status == "completed"
    parsed = client.responses.parse(model=SCRIPTED, input="C", text_format=Weather)
    assert parsed.output_parsed == Weather(city="Oslo", degrees=7)


# ── tools ──


@pytest.mark.parametrize("model", CALLERS)
def test_a_tool_is_called_and_its_result_answered(chat, model):
    question = asked("How is the weather? D")
    choice = chat(model, messages=question, tools=[TOOL]).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": CITIES[model]})
    result = {"role": "tool", "tool_call_id": call.id, "content": "cold F"}
    after = chat(model, messages=[*question, choice.message, result]).choices[0]
    assert after.finish_reason == "stop"
    assert after.message.tool_calls is None
    assert after.message.content == TEXTS["F"] if model == SCRIPTED else after.message.content


@pytest.mark.parametrize("model", CALLERS)
def test_a_call_is_put_together_from_its_pieces(client, model):
    with client.chat.completions.stream(model=model, messages=asked("weather? D"), tools=[TOOL]) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": CITIES[model]}
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", CALLERS)
def test_a_response_calls_a_tool(client, model):
    question = {"role": "user", "content": "How is the weather? D"}
    response = client.responses.create(model=model, input=[question], tools=[FLAT_TOOL])
    (call,) = response.output
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "get_weather",
        {"city": CITIES[model]},
    )
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "cold F"}
    after = client.responses.create(model=model, input=[question, call, result])
    assert after.output_text == TEXTS["F"] if model == SCRIPTED else after.output_text


# ── refusals ──


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("format", {"response_format": {"type": "json_object"}}),
        ("format", {"response_format": JSON_SCHEMA}),
        ("tools", {"tools": [TOOL]}),
        ("reasoning_effort", {"reasoning_effort": "high"}),
        ("images", {"messages": [{"role": "user", "content": [IMAGE]}]}),
        ("logit_bias", {"logit_bias": {"1": 1}}),
        ("n", {"n": 2}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_built_in_models_cannot_do_is_refused_by_name(chat, field, more, stream):
    with pytest.raises(openai.BadRequestError, match=f"{field}: ") as caught:
        chat(EMBEDDED, stream=stream, **more)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("coding", ["float", "base64"])
def test_embeddings_are_made_by_an_ollama(client, coding):
    found = client.embeddings.create(model=STEADY, input=["river and sea", "prices"], encoding_format=coding)
    assert [one.index for one in found.data] == [0, 1]
    assert found.usage.prompt_tokens == 4
    again = client.embeddings.create(model=STEADY, input="prices")  # the client asks for base64 and decodes it itself
    assert len(again.data[0].embedding) == 64
    if coding == "float":
        assert again.data[0].embedding == pytest.approx(found.data[1].embedding, abs=1e-6)


@pytest.mark.parametrize(("model", "words"), [(EMBEDDED, "makes no embeddings"), (SCRIPTED, "not support embeddings")])
def test_embeddings_are_refused_in_words(client, model, words):
    with pytest.raises(openai.BadRequestError, match=words):
        client.embeddings.create(model=model, input="a text")


def test_an_image_by_address_is_not_fetched(chat):
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/cat.png"}}
    with pytest.raises(openai.BadRequestError, match="nothing is fetched"):
        chat(STEADY, messages=[{"role": "user", "content": [image]}])


@pytest.mark.parametrize("model", BROKEN)
def test_an_answer_that_breaks_off_raises(client, chat, model):
    for stream in (
        chat(model, stream=True),
        client.completions.create(model=model, prompt="hi", stream=True),
    ):
        said = []
        with pytest.raises(openai.APIError, match=r"broke|cannot be read"):
            said.extend(chunk.choices[0].finish_reason for chunk in stream)
        assert set(said) == {None}
    with pytest.raises(openai.InternalServerError, match=r"broke|cannot be read") as caught:
        chat(model)
    assert caught.value.status_code == 502


@pytest.mark.parametrize("model", BROKEN)
def test_a_response_that_breaks_off_says_so_last(client, model):
    """This client raises for an `error` event only before a response began; then a response fails."""
    events = list(client.responses.create(model=model, input="hi", stream=True))
    assert len([event for event in events if event.type == "response.output_text.delta"]) >= SAID_BEFORE
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert events[-1].response.error.message


# ── the one thing to change ──


def test_the_environment_is_all_it_takes(lens, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{lens.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    with openai.OpenAI() as client:
        answer = client.chat.completions.create(model=STEADY, messages=asked("hi"))
    assert answer.usage.completion_tokens == ANSWER_TOKENS


# ── byte for byte ──


def test_in_passive_mode_the_reply_is_the_runtimes_own(lens):
    """What llama.cpp adds to the API comes through, and nothing of ours does."""
    headers = {"x-wf-lens": "passive"}
    asking = {"model": SCRIPTED, "messages": asked("F"), "max_tokens": 5, "logprobs": True, "stream": True}
    replies = []
    for url in (lens.server.url, lens.url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", default_headers=headers) as client:
            chunks = list(client.chat.completions.create(**asking))
        assert chunks[-1].timings["predicted_n"] == 5
        replies.append([chunk.model_dump(exclude={"id", "created", "timings"}) for chunk in chunks])
    assert replies[0] == replies[1]
