"""The mock Ollama's vectors: made up, but as a client of Ollama expects them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.mock_server import MockClient, running_mock
from transport.mock_ollama.embedding import DIMENSIONS, vector_of


def likeness(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


async def said(client: MockClient, path: str, body: Any) -> Any:
    answer = await client.post(path, body)
    assert answer.status == 200
    return msgspec.json.decode(answer.body)


@given(st.text(max_size=60), st.none() | st.integers(-1, DIMENSIONS + 1))
def test_vectors_have_the_length_1_and_the_dimensions_asked_for(text: str, dimensions: int | None):
    vector = vector_of(text, dimensions)
    assert len(vector) == (dimensions if dimensions is not None and 0 < dimensions < DIMENSIONS else DIMENSIONS)
    assert math.hypot(*vector) == pytest.approx(1)
    assert vector == vector_of(text, dimensions)


def test_texts_with_words_in_common_lie_near():
    about = vector_of("the river runs to the sea")
    assert likeness(about, vector_of("a river and the sea")) > 0.4 > likeness(about, vector_of("prices fell again"))


async def test_several_texts_or_one(autojump_clock):
    async with running_mock() as client:
        several = await said(client, "/api/embed", {"model": "mock:steady", "input": ["a b", "c"]})
        assert several["model"] == "mock:steady"
        assert several["embeddings"] == [vector_of("a b"), vector_of("c")]
        assert several["prompt_eval_count"] == 3
        one = await said(client, "/api/embed", {"model": "mock:steady", "input": "c", "dimensions": 8})
        assert one["embeddings"] == [vector_of("c", 8)]
        assert (await said(client, "/api/embed", {"model": "mock:steady", "input": []}))["embeddings"] == []
        assert client.mock.loaded == ("mock:steady",)


async def test_the_older_call(autojump_clock):
    async with running_mock() as client:
        body = {"model": "mock:steady", "prompt": "a b", "keep_alive": 0}
        assert await said(client, "/api/embeddings", body) == {"embedding": vector_of("a b")}
        assert await said(client, "/api/embeddings", body | {"prompt": ""}) == {"embedding": []}
        assert client.mock.loaded == ()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "nope", "input": "a"}, 404, "model 'nope' not found"),
        ({"input": "a"}, 404, "not found"),
        ({"model": "mock:missing", "input": "a"}, 404, "not found"),
        ({"model": "mock:steady", "input": {}}, 400, "json: "),
        ({"model": "mock:steady", "input": "a", "keep_alive": "soon"}, 400, "invalid duration"),
    ],
)
async def test_refusals(body, status, words, autojump_clock):
    async with running_mock() as client:
        answer = await client.post("/api/embed", body)
        assert answer.status == status
        assert words in msgspec.json.decode(answer.body)["error"]
