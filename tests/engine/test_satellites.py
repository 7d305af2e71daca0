"""What the settings make of providers: runtimes of this machine, satellites, keys, and contradictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from actors.catalog import Catalog
from actors.clock import EngineClock
from actors.satellite import SatelliteRuntime
from engine.config import load_settings, policies_of
from engine.domain.errors import ConfigError
from engine.domain.models import Tier
from engine.runtimes import runtimes_for
from engine.satellites import discovered_only, fallback_rules, open_broker, with_satellites
from policies.tiers import TierChoice
from tests.fakes.runtime import ScriptedRuntime
from transport.runtimes.anthropic import AnthropicRuntime
from transport.runtimes.openai import OpenAIRuntime

KEY = "sk-this-is-secret"
HYBRID = TierChoice(Tier.HYBRID, "chosen by the test")
QUIET = "embedded: {enabled: false}\nollama: {enabled: false}\nllama_cpp: {enabled: false}\n"


async def built(tmp_path: Path, text: str, environ: dict[str, str] | None = None):
    settings = await trio.to_thread.run_sync(lambda: read(tmp_path, text))
    clock, environ = EngineClock.start(), {"WF_DATA_DIR": str(tmp_path), **(environ or {})}
    policies = policies_of(settings)
    runtimes = await runtimes_for(settings, clock, environ, policies.tiers.hybrid)
    broker = await open_broker(settings, policies, HYBRID, tmp_path)
    return await with_satellites(runtimes.by_name, settings, clock, broker, environ, tmp_path)


def read(tmp_path: Path, text: str):
    (tmp_path / "wf.yaml").write_text(QUIET + text)
    return load_settings(argv_config=None, flags={}, environ={}, cwd=tmp_path)


async def test_without_providers_there_are_none(tmp_path):
    assert await built(tmp_path, "") == {}


async def test_each_provider_is_what_its_name_and_address_make_it(tmp_path):
    text = """providers:
  vllm: {base_url: "http://127.0.0.1:8000", timeout_seconds: 3}
  openai: {preferred_models: [gpt-4o-mini], timeout_seconds: 7}
  anthropic: {preferred_models: [claude-haiku-4-5]}
  openrouter: {preferred_models: [meta/llama]}
"""
    found = await built(tmp_path, text, {"OPENAI_API_KEY": KEY})
    assert list(found) == ["vllm", "openai", "anthropic", "openrouter"]
    assert isinstance(found["vllm"], OpenAIRuntime)
    assert (found["vllm"].local, found["vllm"].hosted, found["vllm"].list_s) == (True, False, 3)
    satellites = {name: runtime for name, runtime in found.items() if isinstance(runtime, SatelliteRuntime)}
    assert {name: s.host for name, s in satellites.items()} == {
        "openai": "api.openai.com", "anthropic": "api.anthropic.com", "openrouter": "openrouter.ai",
    }  # fmt: skip
    assert isinstance(satellites["anthropic"].runtime, AnthropicRuntime)
    assert satellites["openrouter"].runtime.url == "https://openrouter.ai/api"
    assert satellites["openai"].runtime.hosted
    assert (satellites["openai"].key_problem, satellites["openai"].timeout_s) == (None, 7)
    assert "ANTHROPIC_API_KEY" in satellites["anthropic"].key_problem
    assert KEY not in repr(found)


async def test_one_name_for_two_is_refused(tmp_path):
    text = 'openai: {base_url: "http://127.0.0.1:1"}\nproviders: {openai: {}}'
    with pytest.raises(ConfigError, match="twice"):
        await built(tmp_path, text)


async def test_one_runtime_alone_has_no_satellites_beside_it(tmp_path):
    text = 'runtime: vllm\nproviders: {openai: {}, vllm: {base_url: "http://127.0.0.1:8000"}}'
    assert list(await built(tmp_path, text)) == ["vllm"]


async def test_ollama_where_the_providers_say(tmp_path):
    text = 'ollama: {enabled: true, spawn: false}\nproviders: {ollama: {base_url: "http://127.0.0.1:11500"}}'
    settings = read(tmp_path, "") and await trio.to_thread.run_sync(lambda: read_whole(tmp_path, text))
    runtimes = await runtimes_for(settings, EngineClock.start(), {}, policies_of(settings).tiers.low)
    assert runtimes.by_name["ollama"].url == "http://127.0.0.1:11500"


def read_whole(tmp_path: Path, text: str):
    (tmp_path / "wf.yaml").write_text("embedded: {enabled: false}\nllama_cpp: {enabled: false}\n" + text)
    return load_settings(argv_config=None, flags={}, environ={}, cwd=tmp_path)


async def test_files_of_hugging_face_are_models_of_llama_cpp(tmp_path):
    text = f"""providers:
  huggingface:
    cache_dir: {tmp_path}/cache
    device: cpu
    models: [{{name: org/model-GGUF:Q4_K_M}}, {{name: mine, local_path: /models/mine.gguf}}]
"""
    runtime = (await built(tmp_path, text))["llama_cpp"]
    assert [(source.name, str(source.path), source.repo) for source in runtime.models] == [
        ("org/model-GGUF:Q4_K_M", f"{tmp_path}/cache/org/model-GGUF:Q4_K_M.gguf", "org/model-GGUF"),
        ("mine", "/models/mine.gguf", None),
    ]
    assert runtime.settings.device == "cpu"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("providers: {openai: {base_url: ftp://x}}", "wf.yaml:4: providers.openai.base_url must be a URL"),
        ("providers: {hf: 1}", "providers.hf must be a mapping"),
        (
            "providers: {huggingface: {models: [{name: a, local_path: /m.safetensors}]}}",
            "must be a GGUF file (safetensors needs PyTorch",
        ),
        ("providers: {openai: {key: sk-this-is-secret}}", "providers.openai must be a mapping with no keys but"),
        ("broker: {mode: on}", "broker.mode"),
        ("fallback: {order: [a b]}", "fallback.order[0]"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert words in caught.value.message
    assert KEY not in caught.value.message


def test_rules_of_fallback(tmp_path):
    settings = read(
        tmp_path,
        "fallback: {enabled: true, order: [vllm, openai]}\ndefault_provider: ollama\nlocal_first: false\n"
        'providers: {vllm: {base_url: "http://127.0.0.1:1", preferred_models: [a], auto_discovery: false}, openai: {}}',
    )
    rules = fallback_rules(settings)
    assert (rules.enabled, rules.providers, rules.local_first) == (True, ("ollama", "vllm", "openai"), False)
    assert rules.preferred["vllm"] == ("a",)
    assert discovered_only(settings) == {"vllm": frozenset({"a"})}


async def test_a_runtime_on_another_machine_gets_a_permit_for_its_address_alone(tmp_path):
    text = 'openai: {base_url: "http://10.0.0.2:8080/v1"}\nallow_remote_runtimes: true'
    permit = (await built(tmp_path, text))["openai"].permit
    assert permit.covers("10.0.0.2", 8080, tls=False)
    assert not permit.covers("10.0.0.3", 8080, tls=False)
    assert (await built(tmp_path, 'openai: {base_url: "http://127.0.0.1:1"}'))["openai"].permit is None
    with pytest.raises(ConfigError, match="allow_remote_runtimes"):
        await built(tmp_path, text.replace("true", "false"))


async def test_models_that_are_not_to_be_discovered_are_not_listed(autojump_clock):
    runtime = ScriptedRuntime(lambda: 0)
    catalog = Catalog({"scripted": runtime}, lambda: 0, only={"scripted": frozenset({"b"})})
    await catalog.refresh()
    assert [model.name for model in catalog.models] == ["b"]
