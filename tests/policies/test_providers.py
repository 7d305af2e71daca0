"""Providers as the configuration names them."""

from __future__ import annotations

import pytest

from policies.providers import (
    Dialect,
    HubModel,
    HuggingFaceSpec,
    huggingface_spec,
    preloaded,
    provider_specs,
    refused_format,
)
from policies.schema import Misfit


def spec_of(name, **entry):
    return provider_specs({name: entry})[name]


def test_the_known_providers_are_satellites_at_their_own_addresses():
    found = {name: spec_of(name) for name in ("openai", "anthropic", "openrouter")}
    assert {name: spec.host for name, spec in found.items()} == {
        "openai": "api.openai.com", "anthropic": "api.anthropic.com", "openrouter": "openrouter.ai",
    }  # fmt: skip
    assert all(spec.satellite and spec.port == 443 and spec.timeout_s == 30 for spec in found.values())
    assert found["anthropic"].dialect is Dialect.ANTHROPIC
    assert found["openrouter"].dialect is Dialect.OPENAI


def test_any_other_name_is_an_openai_compatible_server():
    here = spec_of("vllm", base_url="http://127.0.0.1:8000", preferred_models=["a"], auto_discovery=False)
    assert (here.satellite, here.dialect, here.preferred_models, here.auto_discovery) == (
        False, Dialect.OPENAI, ("a",), False,
    )  # fmt: skip
    there = spec_of("mistral", base_url="https://api.mistral.ai:8443/v1", timeout_seconds=5)
    assert (there.satellite, there.host, there.port, there.timeout_s) == (True, "api.mistral.ai", 8443, 5)
    assert not spec_of("openai", base_url="http://localhost:1").satellite


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"vllm": {}}, ("providers", "vllm", "base_url")),
        ({"vllm": {"base_url": "ftp://x"}}, ("providers", "vllm", "base_url")),
        ({"vllm": {"base_url": "https://user:pw@x"}}, ("providers", "vllm", "base_url")),
        ({"box": {"base_url": "http://10.0.0.2:1"}}, ("providers", "box", "base_url")),  # not encrypted
        ({"ollama": {"base_url": "https://10.0.0.2"}}, ("providers", "ollama", "base_url")),
        ({"anthropic": {"base_url": "http://127.0.0.1:1"}}, ("providers", "anthropic", "base_url")),
        ({"openai": {"timeout_seconds": 0}}, ("providers", "openai", "timeout_seconds")),
        ({"openai": {"timeout_seconds": True}}, ("providers", "openai", "timeout_seconds")),
        ({"openai": {"preferred_models": ["../x"]}}, ("providers", "openai", "preferred_models", 0)),
        ({"openai": {"auto_discovery": 1}}, ("providers", "openai", "auto_discovery")),
        ({"ollama": {"preload": 1}}, ("providers", "ollama", "preload")),
        ({"openai": {"preload": True}}, ("providers", "openai", "preload")),  # nothing of it comes into memory here
        ({"vllm": {"base_url": "http://127.0.0.1:1", "preload": True}}, ("providers", "vllm", "preload")),
        ({"openai": {"api_key": "sk-secret"}}, ("providers", "openai")),
        ({"openai": None}, ("providers", "openai")),
        ({"embedded": {"base_url": "http://127.0.0.1:1"}}, ("providers", "embedded")),
        ({"Open AI": {}}, ("providers", "Open AI")),
        ({f"p{n}": {"base_url": "http://127.0.0.1:1"} for n in range(17)}, ("providers",)),
    ],
)
def test_what_is_wrong_is_named(data, path):
    with pytest.raises(Misfit) as caught:
        provider_specs(data)
    assert caught.value.within == path
    assert "sk-secret" not in f"{caught.value} {caught.value.shown}"


def test_hugging_face():
    entry = {
        "cache_dir": "~/models",
        "device": "cuda",
        "models": [{"name": "org/model-GGUF:Q4_K_M"}, {"name": "mine", "local_path": "/models/mine.gguf"}],
    }
    assert huggingface_spec({"huggingface": entry}) == HuggingFaceSpec(
        "~/models", "cuda", (HubModel("org/model-GGUF:Q4_K_M"), HubModel("mine", "/models/mine.gguf"))
    )
    assert huggingface_spec({}) is None
    assert provider_specs({"huggingface": entry}) == {}


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"device": "tpu"}, ("providers", "huggingface", "device")),
        ({"models": [{"name": "mine"}]}, ("providers", "huggingface", "models", 0, "name")),
        (
            {"models": [{"name": "a", "local_path": "/x.safetensors"}]},
            ("providers", "huggingface", "models", 0, "local_path"),
        ),
        ({"models": "x"}, ("providers", "huggingface", "models")),
        ({"token": "hf_x"}, ("providers", "huggingface")),
    ],
)
def test_what_is_wrong_with_hugging_face_is_named(entry, path):
    with pytest.raises(Misfit) as caught:
        huggingface_spec({"huggingface": entry})
    assert caught.value.within == path


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("m.safetensors", "safetensors"),
        ("M.BIN", "pickles"),
        ("m.onnx", "ONNX"),
        ("m.ggml", "GGUF"),
        ("m.txt", "nothing"),
    ],
)
def test_other_formats_are_refused_by_name(path, word):
    assert word in refused_format(path)
    assert refused_format("m.GGUF") is None


def test_what_is_preloaded_are_preferred_models_of_this_machine():
    ollama = {"preferred_models": ["b", "hf.co/org/model:Q4_K_M"]}
    hub = {"models": [{"name": "org/model-GGUF:Q4_K_M"}, {"name": "mine", "local_path": "/mine.gguf"}]}
    assert preloaded({"ollama": ollama, "huggingface": hub, "openai": {"preferred_models": ["x"]}}) == ()
    assert preloaded({"ollama": ollama | {"preload": True}, "huggingface": hub | {"preload": True}}) == (
        "ollama/b", "hf.co/org/model:Q4_K_M",  # a name has at most three parts
        "llama_cpp/org/model-GGUF:Q4_K_M", "llama_cpp/mine",
    )  # fmt: skip
    with pytest.raises(Misfit):
        preloaded({"huggingface": hub | {"preload": "yes"}})
