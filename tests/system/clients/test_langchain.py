"""LangChain's classes for Ollama, with nothing but their address changed."""

from __future__ import annotations

import gc

import ollama
import pydantic
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM

from tests.system.clients.lens import (
    ANSWER,
    ANSWER_TOKENS,
    BROKEN,
    EMBEDDED,
    MODELS,
    SCRIPTED,
    STEADY,
    TEXTS,
    THOUGHT,
)


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """The weather of a city now."""
    return city


@pytest.fixture
def made(lens):
    """`made(model, kind=ChatOllama, **more)`: one of LangChain's objects for a model. They have no way to close their
    connections, so these are closed here."""
    objects = []

    def make(model, kind=ChatOllama, **more):
        objects.append(kind(model=model, base_url=lens.url, sync_client_kwargs={"verify": False}, **more))
        return objects[-1]

    yield make
    for one in objects:
        one._client.close()


@pytest.mark.parametrize("model", MODELS)
def test_invoking_and_streaming_say_the_same(made, model):
    chat = made(model, seed=7, num_predict=12)
    whole = chat.invoke("What is a glacier? F")
    chunks = list(chat.stream("What is a glacier? F"))
    assert "".join(chunk.content for chunk in chunks) == whole.content != ""
    assert len(chunks) > 5
    assert whole.response_metadata["done_reason"] == "length"
    usage = whole.usage_metadata
    assert (usage["output_tokens"], usage["total_tokens"]) == (12, 12 + usage["input_tokens"])
    assert made(model, OllamaLLM, seed=7, num_predict=12).invoke("What is a glacier? F") == whole.content


def test_thinking_is_told_apart(made):
    message = made(SCRIPTED, reasoning=True).invoke("B")
    assert (message.content, message.additional_kwargs["reasoning_content"]) == (ANSWER, THOUGHT)


def test_a_schema_becomes_an_object(made):
    chat = made(SCRIPTED, temperature=0).with_structured_output(Weather)
    assert chat.invoke("C") == Weather(city="Oslo", degrees=7)


@pytest.mark.parametrize(("model", "city"), [("mock:tools", "Oslo"), (SCRIPTED, "Tromsø")])
def test_a_tool_is_called_and_its_result_answered(made, model, city):
    question = HumanMessage("How is the weather? D")
    called = made(model).bind_tools([get_weather]).invoke([question])
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": city})
    after = made(model).invoke([question, called, ToolMessage("cold F", tool_call_id=call["id"])])
    assert not after.tool_calls
    assert after.content == TEXTS["F"] if model == SCRIPTED else after.content


def test_log_probabilities_and_stop_strings(made):
    metadata = made(SCRIPTED, logprobs=True, top_logprobs=2, num_predict=3).invoke("F").response_metadata
    assert [len(entry["top_logprobs"]) for entry in metadata["logprobs"]] == [2, 2, 2]
    assert made(SCRIPTED, stop=["halt"]).invoke("F").content == "one two three "


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_model_is_checked_before_it_is_asked(made):
    assert made(EMBEDDED, validate_model_on_init=True)
    with pytest.raises(ValueError, match="nope"):
        made("nope", validate_model_on_init=True)
    gc.collect()  # an object that fails to be made leaves its connection open


def test_refusals_are_the_clients_own_errors(made):
    for call, status, words in (
        (lambda: made("nope").invoke("hi"), 404, "nope"),
        (lambda: made(EMBEDDED, format="json").invoke("hi"), 400, "^format: "),
        (lambda: made(EMBEDDED).bind_tools([get_weather]).invoke("hi"), 400, "^tools: "),
        (lambda: made(EMBEDDED, OllamaEmbeddings).embed_query("hi"), 400, "makes no embeddings"),
    ):
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            call()
        assert caught.value.status_code == status


@pytest.mark.parametrize("model", BROKEN)
def test_an_answer_that_breaks_off_raises(made, model):
    with pytest.raises(ollama.ResponseError, match=r"broke|cannot be read"):
        made(model).invoke("hi")


def test_leaving_a_stream_aborts_its_session(lens, made):
    with lens.expect_abort(SCRIPTED):
        stream = made(SCRIPTED).stream("G")
        for _ in range(5):
            next(stream)
        lens.assert_running(SCRIPTED, "ollama")
        stream.close()


def test_the_environment_is_all_it_takes(lens, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", lens.url)
    chat = ChatOllama(model=STEADY)
    assert chat.invoke("hi").usage_metadata["output_tokens"] == ANSWER_TOKENS
    chat._client.close()


def test_embeddings(made):
    one = made(STEADY, OllamaEmbeddings)
    river, prices = one.embed_documents(["river and sea", "prices"])
    assert len(river) == len(prices) == 64
    assert one.embed_query("prices") == pytest.approx(prices)
