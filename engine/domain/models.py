"""What a model is to the engine: its name, where it lives and what it can do."""

from __future__ import annotations

import enum
import re
from typing import Any, Final

import attrs

_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}"
_NAME: Final = re.compile(rf"{_PART}(?:/{_PART}){{0,2}}(?::{_PART})?")


def is_model_name(name: str) -> bool:
    """True when `name` fits the grammar of model names: at most three parts with `/`, one optional `:tag`."""
    return _NAME.fullmatch(name) is not None


class Tier(enum.StrEnum):
    """How much machine there is; the numbers are in policies/tiers.yaml."""

    LOW = "low"
    MID = "mid"
    HIGH = "high"
    HYBRID = "hybrid"


class ModelState(enum.StrEnum):
    """Where a model is in its life, as `experience.model` reports it."""

    ABSENT = "absent"
    PULLING = "pulling"
    QUEUED = "queued"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    EVICTED = "evicted"
    FAILED = "failed"


class Capability(enum.StrEnum):
    """What a runtime can do with a model, as far as it said so."""

    COMPLETION = "completion"
    CHAT = "chat"
    LOGPROBS = "logprobs"


@attrs.frozen
class ModelInfo:
    """One model a runtime offers.

    `name` is the runtime's own name for it (unique within the runtime, in the grammar of `is_model_name`).
    `modified_at` is RFC 3339 or None, `details` are plain JSON values that the runtime states about it. `may_use_gpu`:
    its runtime puts it on GPUs where there are some.
    """

    name: str
    runtime: str
    size_bytes: int | None  # null: the runtime does not tell
    modified_at: str | None = None
    digest: str | None = None
    capabilities: tuple[Capability, ...] = ()
    details: dict[str, Any] = attrs.field(factory=dict)
    may_use_gpu: bool = False


@attrs.frozen
class MemoryUse:
    """What a model takes in memory, as its runtime says (null: it does not): all of it, and the part of it on GPUs."""

    size_bytes: int | None
    vram_bytes: int | None = None


@attrs.frozen
class Loaded:
    """A model is in memory. `resident_bytes` is what the runtime reports and `vram_bytes` the part of it on GPUs (null:
    it does not), `load_ms` what the load took (null: nobody can tell)."""

    resident_bytes: int | None
    load_ms: float | None
    vram_bytes: int | None = None


@attrs.frozen
class Probe:
    """The answer of a runtime to "are you there?": `reason` says why not, or what was found. `gone`: there is no such
    process, so nothing of it is in memory; a runtime that is only silent may still hold what it held."""

    up: bool
    reason: str | None = None
    version: str | None = None
    gone: bool = False
