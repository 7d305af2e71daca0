"""Embeddings and lists of models in the OpenAI dialect."""

from __future__ import annotations

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import InvalidRequest
from engine.domain.models import ModelInfo
from engine.domain.runtime import Embeddings, EmbedRequest
from transport.wire.dialects import openai_models as models

FOUND = Embeddings(((0.5, -1.0), (0.0, 2.0)), prompt_tokens=7)


def parsed(**fields):
    return models.parse_embeddings(json.dumps({"model": "e", **fields}).encode())


@pytest.mark.parametrize("given", ["one", ["one"]])
def test_one_text(given):
    assert parsed(input=given) == models.EmbedAsked("e", EmbedRequest("", ("one",)), "float")


def test_several_texts():
    asked = parsed(input=["a", "b"], dimensions=2, encoding_format="base64", user="u")
    assert asked == models.EmbedAsked("e", EmbedRequest("", ("a", "b"), dimensions=2), "base64")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": 5}, "input"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
    ],
)
def test_what_is_refused(fields, field):
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    assert caught.value.details["field"] == field


def test_vectors_as_numbers():
    assert json.loads(models.embeddings_body(parsed(input=["a", "b"]), FOUND)) == {
        "object": "list",
        "data": [
            {"object": "embedding", "embedding": [0.5, -1.0], "index": 0},
            {"object": "embedding", "embedding": [0.0, 2.0], "index": 1},
        ],
        "model": "e",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=8))
def test_vectors_as_base64_are_the_same_numbers(vector):
    body = models.embeddings_body(parsed(input="a", encoding_format="base64"), Embeddings((tuple(vector),)))
    (item,) = json.loads(body)["data"]
    data = base64.b64decode(item["embedding"])
    assert list(struct.unpack(f"<{len(vector)}f", data)) == vector


def test_lists_of_models():
    info = ModelInfo("llama3.1:8b", "ollama", 5, modified_at="2026-11-20T10:13:47.846577855+01:00")
    entry = {"id": "gpt-4o-mini", "object": "model", "created": 1795166027, "owned_by": "ollama"}
    assert json.loads(models.model_body("gpt-4o-mini", info)) == entry
    assert json.loads(models.models_body([("gpt-4o-mini", info)])) == {"object": "list", "data": [entry]}
    assert json.loads(models.models_body([])) == {"object": "list", "data": []}


@pytest.mark.parametrize("modified_at", [None, "yesterday", "2026-13-45T00:00:00Z"])
def test_a_model_of_unknown_age(modified_at):
    info = ModelInfo("m", "embedded", None, modified_at=modified_at)
    assert json.loads(models.model_body("m", info))["created"] == 0
