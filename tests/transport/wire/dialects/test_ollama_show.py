"""Ollama's lists, `show`, `pull` and embeddings."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from engine.domain.errors import InvalidRequest, NotFound
from engine.domain.models import Capability, ModelInfo
from engine.domain.runtime import Embeddings, EmbedRequest
from tests.fakes.ollama import capture
from transport.wire.dialects import ollama_show
from transport.wire.dialects.ollama_show import NEVER, UNKNOWN_DIGEST, Resident

DETAILS = {
    "format": "gguf",
    "family": "llama",
    "parameter_size": "1.06M",
    "quantization_level": "unknown",
    "context_length": 2048,
    "embedding_length": 416,
    "capabilities": ["completion", "tools", "thinking"],
}
INFO = ModelInfo(
    "scripted:latest",
    "ollama",
    4265302,
    modified_at="2026-11-20T10:29:12.440762431Z",
    digest="9c83787d2c44a3a91c997c9a5fceb33ca42e45e7b17c3e99c4726cb973fecce6",
    details=DETAILS,
)
BARE = ModelInfo("local", "llama_cpp", None, capabilities=(Capability.COMPLETION, Capability.CHAT))


def exact(body: bytes) -> list[tuple[str, object]]:
    return list(json.loads(body).items())


def test_tags_are_those_of_the_real_thing():
    expected = json.loads(capture("tags")[1])["models"][0]
    (found,) = json.loads(ollama_show.tags([INFO]))["models"]
    assert json.dumps(found) == json.dumps(expected)


def test_ps_is_that_of_the_real_thing():
    expected = json.loads(capture("ps")[1])["models"][1]
    info = ModelInfo(INFO.name, "ollama", 1, digest=expected["digest"], details=DETAILS)
    resident = Resident(info, size_bytes=15749610, vram_bytes=0, expires_at="2026-11-20T10:34:13.202047403Z")
    (found,) = json.loads(ollama_show.ps([resident]))["models"]
    assert json.dumps(found) == json.dumps(expected)


def test_version():
    assert ollama_show.version("0.33.0-rc2") == capture("version")[1].strip()
    assert json.loads(ollama_show.version())["version"] == ollama_show.API_VERSION


def test_what_a_runtime_does_not_say_has_the_types_that_clients_expect():
    listed = json.loads(ollama_show.tags([BARE, ModelInfo("other", "llama_cpp", None)]))["models"]
    found = listed[0]
    assert ("size" in found, found["capabilities"]) == (False, ["completion"])
    assert listed[1]["capabilities"] == []
    assert datetime.fromisoformat(found["modified_at"]).year == 1
    assert found["details"] == {
        "parent_model": "", "format": "", "family": "", "families": [], "parameter_size": "", "quantization_level": "",
    }  # fmt: skip
    assert found["digest"] == UNKNOWN_DIGEST
    (loaded,) = json.loads(ollama_show.ps([Resident(BARE)]))["models"]
    assert not {"size", "size_vram", "context_length"} & set(loaded)  # a zero would be taken for a measurement
    assert loaded["expires_at"] == NEVER
    assert loaded["digest"] == found["digest"]


def test_show():
    found = json.loads(ollama_show.show(INFO, template="{{ .Prompt }}"))
    assert found["model_info"] == {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "llama.embedding_length": 416,
    }
    assert found["capabilities"] == ["completion", "tools", "thinking"]
    assert found["template"] == "{{ .Prompt }}"
    assert found["details"]["families"] == ["llama"]
    assert "license" not in found
    assert "system" not in found
    assert json.loads(ollama_show.show(BARE))["model_info"] == {}


def test_who_asks_to_be_shown_a_model():
    assert ollama_show.parse_show(b'{"model":"m","verbose":true}') == ollama_show.ShowAsked("m", True)
    assert ollama_show.parse_show(b'{"name":"m"}') == ollama_show.ShowAsked("m", False)
    with pytest.raises(InvalidRequest, match="model is required"):
        ollama_show.parse_show(b"{}")


@pytest.mark.parametrize(
    ("path", "body", "request_"),
    [
        ("/api/embed", {"input": "a"}, EmbedRequest("", ("a",))),
        ("/api/embed",
         {"input": ["a", ""], "truncate": False, "dimensions": 8, "keep_alive": "5m", "options": {"x": 1}},
         EmbedRequest("", ("a", ""), False, 8, "5m")),
        ("/api/embed", {"input": "", "dimensions": 0}, EmbedRequest("", ())),
        ("/api/embed", {}, EmbedRequest("", ())),
        ("/api/embeddings", {"prompt": "a", "keep_alive": 0}, EmbedRequest("", ("a",), keep_alive=0)),
        ("/api/embeddings", {"prompt": ""}, EmbedRequest("", ())),
    ],
)  # fmt: skip
def test_requests_for_vectors(path: str, body: dict[str, object], request_: EmbedRequest):
    found = ollama_show.parse_embed(path, json.dumps({"model": "m"} | body).encode())
    assert (found.model, found.path, found.request) == ("m", path, request_)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": [1]}, r"input"),
        ({"input": {"a": 1}}, r"input"),
        ({"input": "a", "dimensions": -1}, r"dimensions"),
        ({"input": "a", "keep_alive": "x"}, "keep_alive"),
    ],
)
def test_bad_requests_for_vectors(body: dict[str, object], says: str):
    with pytest.raises(InvalidRequest, match=says):
        ollama_show.parse_embed("/api/embed", json.dumps({"model": "m"} | body).encode())
    with pytest.raises(NotFound):
        ollama_show.parse_embed("/api/chat", b'{"model":"m"}')


def test_vectors():
    found = Embeddings(((0.5, -1.0), (0.25, 2.0)), prompt_tokens=4)
    many = ollama_show.parse_embed("/api/embed", b'{"model":"m","input":["a","b"]}')
    assert exact(ollama_show.embed_body(many, found, total_ms=1.5)) == [
        ("model", "m"),
        ("embeddings", [[0.5, -1.0], [0.25, 2.0]]),
        ("total_duration", 1_500_000),
        ("prompt_eval_count", 4),
    ]
    one = ollama_show.parse_embed("/api/embeddings", b'{"model":"m","prompt":"a"}')
    assert ollama_show.embed_body(one, Embeddings(((0.5, -1.0),))) == b'{"embedding":[0.5,-1.0]}'
    assert ollama_show.embed_body(one, Embeddings(())) == b'{"embedding":[]}'
