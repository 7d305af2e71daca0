"""What there is: bodies of /api/tags, /api/ps and /api/show, and the list that `wf mock` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from transport.mock_ollama.catalogue import BEHAVIOURS, digest_of
from transport.mock_ollama.records import rfc3339

VERSION: Final = "0.0.0-mock"
PRETENDED_BYTES: Final = 1_000_000  # the size of every model, so that clients have something to add up


def models() -> list[dict[str, str]]:
    """`[{name, about}]`."""
    return [{"name": name, "about": behaviour.about} for name, behaviour in BEHAVIOURS.items()]


def tags_body(modified_ns: int) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": name,
                "model": name,
                "modified_at": rfc3339(modified_ns),
                "size": PRETENDED_BYTES,
                "digest": digest_of(name),
                "details": _details()
                | {"context_length": behaviour.context_length, "embedding_length": 0, **_synthetic(name)},
                "capabilities": ["completion", *behaviour.can],
            }
            for name, behaviour in BEHAVIOURS.items()
        ]
    }


def ps_body(expires_ns: Mapping[str, int]) -> dict[str, Any]:
    """The models in memory, in this order."""
    return {
        "models": [
            {
                "name": name,
                "model": name,
                "size": PRETENDED_BYTES,
                "digest": digest_of(name),
                "details": _details() | _synthetic(name),
                "expires_at": rfc3339(at_ns),
                "size_vram": 0,
                "context_length": BEHAVIOURS[name].context_length,
            }
            for name, at_ns in expires_ns.items()
        ]
    }


def show_body(name: str, modified_ns: int) -> dict[str, Any]:
    behaviour = BEHAVIOURS[name]
    return {
        "modelfile": f"# {name}: a scripted stand-in, not a model. It {behaviour.about}.\n",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "details": _details() | _synthetic(name),
        "model_info": {
            "general.architecture": "mock",
            "general.parameter_count": 0,
            "mock.context_length": behaviour.context_length,
            "mock.embedding_length": 0,
        },
        "capabilities": ["completion", *behaviour.can],
        "modified_at": rfc3339(modified_ns),
    }


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "mock",
        "family": "mock",
        "families": ["mock"],
        "parameter_size": "0",
        "quantization_level": "none",
    }


def _synthetic(name: str) -> dict[str, Any]:
    return {"synthetic": True, "about": BEHAVIOURS[name].about}
