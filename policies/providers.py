"""Providers of models as the configuration names them: `providers: {openai: {preferred_models: [gpt-4o-mini]}}`. Pure.

What a provider is follows from its name and its address. `ollama` and `huggingface` are runtimes of this machine;
`openai`, `anthropic` and `openrouter` are satellites at their own addresses; any other name is an OpenAI-compatible
server. Whatever has an address outside this machine is a satellite, and the broker alone reaches it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from engine.domain.models import is_model_name
from policies.egress import stays_here
from policies.schema import Misfit, quoted

PROVIDERS_MAX: Final = 16
MODELS_MAX: Final = 64  # of one provider
TIMEOUT_S: Final = 30.0
TIMEOUT_MAX_S: Final = 600.0
KEY_CHARS_MAX: Final = 256
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_RESERVED: Final = frozenset({"embedded", "llama_cpp", "synthetic", "council"})  # runtimes that have a table already
_URL: Final = re.compile(
    r"https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%/-]{0,256})?"
)
_PATH: Final = re.compile(r"[^\x00-\x1f]{1,1024}")
_KEYS: Final = frozenset({"base_url", "timeout_seconds", "preferred_models", "auto_discovery", "preload"})
_HUGGINGFACE_KEYS: Final = frozenset({"cache_dir", "device", "models", "preload"})
_HUGGINGFACE_RUNTIME: Final = "llama_cpp"  # what answers for its models
_URLS: Final[Mapping[str, str]] = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "openrouter": "https://openrouter.ai/api",
}
GGUF: Final = ".gguf"
# What people have on their disks, and why it cannot be used here.
_FORMATS: Final[Mapping[str, str]] = {
    ".safetensors": "safetensors needs PyTorch or a conversion (llama.cpp's convert_hf_to_gguf.py makes a GGUF of it)",
    ".bin": "PyTorch pickles can run any code when they are read",
    ".pt": "PyTorch pickles can run any code when they are read",
    ".pth": "PyTorch pickles can run any code when they are read",
    ".onnx": "ONNX needs another runtime than llama.cpp",
    ".h5": "Keras weights need TensorFlow",
    ".mlx": "MLX needs Apple's own runtime",
    ".ggml": "GGML is the format before GGUF, and llama.cpp no longer reads it",
}


class Dialect(enum.StrEnum):
    """How a provider is spoken to."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"


@attrs.frozen
class HubModel:
    """A GGUF of Hugging Face: `local_path` is a file that is there already; null: it is downloaded on request."""

    name: str
    local_path: str | None = None


@attrs.frozen
class HuggingFaceSpec:
    """`providers.huggingface`. `cache_dir` null is the engine's own folder. `preload`: its models are brought into free
    memory at the start."""

    cache_dir: str | None = None
    device: str = "auto"  # auto | cpu | cuda
    models: tuple[HubModel, ...] = ()
    preload: bool = False


@attrs.frozen
class ProviderSpec:
    """One provider. `auto_discovery`: all its models are listed, else only the preferred ones. `preload`: the preferred
    ones are brought into free memory at the start."""

    name: str
    base_url: str | None
    dialect: Dialect
    timeout_s: float = TIMEOUT_S
    preferred_models: tuple[str, ...] = ()
    auto_discovery: bool = True
    preload: bool = False

    @property
    def host(self) -> str:
        """Bare, as for a connection; empty where it has no address."""
        return urlsplit(self.base_url or "").hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.base_url or "")
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def satellite(self) -> bool:
        """It is outside this machine."""
        return self.base_url is not None and not stays_here(self.host)


def provider_specs(data: Mapping[str, Any]) -> dict[str, ProviderSpec]:
    """All but Hugging Face, by name. Raises Misfit with the path to the fault."""
    if len(data) > PROVIDERS_MAX:
        raise Misfit(f"at most {PROVIDERS_MAX} providers", str(len(data)), ("providers",))
    return {name: _provider(name, entry) for name, entry in data.items() if name != "huggingface"}


def huggingface_spec(data: Mapping[str, Any]) -> HuggingFaceSpec | None:
    """`providers.huggingface`, null where it is not configured. Raises Misfit with the path to the fault."""
    entry = data.get("huggingface")
    if entry is None:
        return None
    within = ("providers", "huggingface")
    _check_keys(entry, _HUGGINGFACE_KEYS, within)
    cache_dir, device, models = entry.get("cache_dir"), entry.get("device", "auto"), entry.get("models", [])
    if cache_dir is not None and not (isinstance(cache_dir, str) and _PATH.fullmatch(cache_dir)):
        raise Misfit("a folder", quoted(cache_dir), (*within, "cache_dir"))
    if device not in ("auto", "cpu", "cuda"):
        raise Misfit("auto, cpu or cuda", quoted(device), (*within, "device"))
    if not isinstance(models, list) or len(models) > MODELS_MAX:
        raise Misfit(f"a list of at most {MODELS_MAX} models", quoted(models), (*within, "models"))
    named = tuple(_hub_model(model, (*within, "models", at)) for at, model in enumerate(models))
    return HuggingFaceSpec(cache_dir, device, named, _switch(entry, "preload", False, within))


def preloaded(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that are to be brought into free memory at the start, by names that can only mean those of their
    provider. Raises Misfit with the path to the fault."""
    named = [
        (spec.name, model) for spec in provider_specs(data).values() if spec.preload for model in spec.preferred_models
    ]
    hub = huggingface_spec(data)
    if hub is not None and hub.preload:
        named += [(_HUGGINGFACE_RUNTIME, model.name) for model in hub.models]
    full = [(f"{provider}/{model}", model) for provider, model in named]
    return tuple(qualified if is_model_name(qualified) else model for qualified, model in full)


def check_providers(data: Mapping[str, Any]) -> None:
    """Raises Misfit with the path to the fault."""
    provider_specs(data)
    huggingface_spec(data)


def _provider(name: str, entry: Any) -> ProviderSpec:
    within = ("providers", str(name)[:40])
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise Misfit("the name of a provider: lower-case letters, digits, _ and -, and none of our own", None, within)
    _check_keys(entry, _KEYS, within)
    base_url = entry.get("base_url") or _URLS.get(name)
    if name != "ollama" and base_url is None:
        raise Misfit("given: where it is", None, (*within, "base_url"))
    if base_url is not None and not (isinstance(base_url, str) and _URL.fullmatch(base_url)):
        raise Misfit("a URL like https://api.example.com", quoted(base_url), (*within, "base_url"))
    dialect = Dialect(name) if name in ("ollama", "anthropic") else Dialect.OPENAI
    timeout_s = entry.get("timeout_seconds", TIMEOUT_S)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= TIMEOUT_MAX_S:
        raise Misfit(f"seconds, up to {TIMEOUT_MAX_S:g}", quoted(timeout_s), (*within, "timeout_seconds"))
    preferred = entry.get("preferred_models", [])
    if not isinstance(preferred, list) or len(preferred) > MODELS_MAX:
        raise Misfit(f"a list of at most {MODELS_MAX} names", quoted(preferred), (*within, "preferred_models"))
    for at, model in enumerate(preferred):
        if not isinstance(model, str) or not is_model_name(model):
            raise Misfit("a model's name", quoted(model), (*within, "preferred_models", at))
    discovers, preload = _switch(entry, "auto_discovery", True, within), _switch(entry, "preload", False, within)
    spec = ProviderSpec(name, base_url, dialect, float(timeout_s), tuple(preferred), discovers, preload)
    if spec.satellite and not str(base_url).startswith("https://"):
        raise Misfit("https: what leaves this machine is encrypted", quoted(base_url), (*within, "base_url"))
    if dialect is Dialect.ANTHROPIC and not spec.satellite:
        raise Misfit("an address outside this machine", quoted(base_url), (*within, "base_url"))
    if spec.satellite and dialect is Dialect.OLLAMA:
        raise Misfit("an address of this machine", quoted(base_url), (*within, "base_url"))
    if preload and dialect is not Dialect.OLLAMA:
        where = "outside this machine there is nothing to load" if spec.satellite else "such a server loads by itself"
        raise Misfit(f"false, as {where}", None, (*within, "preload"))
    return spec


def _check_keys(entry: Any, known: frozenset[str], within: tuple[str | int, ...]) -> None:
    if not isinstance(entry, dict) or not set(entry) <= known:
        raise Misfit(f"a mapping with no keys but {', '.join(sorted(known))}", None, within)


def _switch(entry: Mapping[str, Any], key: str, default: bool, within: tuple[str | int, ...]) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, bool):
        raise Misfit("true or false", quoted(value), (*within, key))
    return value


def _hub_model(entry: Any, within: tuple[str | int, ...]) -> HubModel:
    _check_keys(entry, frozenset({"name", "local_path"}), within)
    name, path = entry.get("name"), entry.get("local_path")
    if not isinstance(name, str) or not is_model_name(name) or name.count("/") > 1:
        raise Misfit("a repository (org/name or org/name:Q4_K_M) or a name", quoted(name), (*within, "name"))
    if path is None:
        if "/" not in name:
            raise Misfit("org/name, or a name with its local_path", quoted(name), (*within, "name"))
        return HubModel(name)
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise Misfit("the path of a file", quoted(path), (*within, "local_path"))
    reason = refused_format(path)
    if reason is not None:
        raise Misfit(f"a GGUF file ({reason})", quoted(path), (*within, "local_path"))
    return HubModel(name, path)


def refused_format(path: str) -> str | None:
    """Why a file of this name cannot be used, or None for a GGUF."""
    lower = path.lower()
    if lower.endswith(GGUF):
        return None
    known = next((reason for ending, reason in _FORMATS.items() if lower.endswith(ending)), None)
    return known or "llama.cpp reads nothing else"
