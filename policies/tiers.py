"""Tiers (how much machine there is) and levels (what is unlocked) as policies/tiers.yaml gives them, and the choice
of a tier from memory sizes."""

# ruff: noqa: RUF009  # row() and section() make attrs fields

from __future__ import annotations

from typing import Final, Literal

import attrs

from engine.domain.models import Tier
from policies.schema import row, section

DETECTABLE: Final = (Tier.HIGH, Tier.MID, Tier.LOW)  # best first; hybrid is only ever chosen by the user
LEVELS: Final = range(1, 6)
_BYTES_MAX: Final = 2**50
_MODEL: Final = r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,159}(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,79})?"
_NAME: Final = r"[A-Za-z0-9_ -]{1,40}"


@attrs.frozen
class TierLimits:
    """What a tier allows and aims at."""

    max_parallel_models: int = row(doc="distinct models in use at once", unit="models", minimum=1, maximum=6)
    max_loaded_models: int = row(doc="models in memory", unit="models", minimum=1, maximum=64)
    max_model_size_bytes: int = row(doc="largest model, on disk", unit="bytes", minimum=1, maximum=_BYTES_MAX)
    vram_budget_bytes: int = row(doc="GPU memory for models", unit="bytes", minimum=0, maximum=_BYTES_MAX)
    ram_budget_bytes: int = row(doc="main memory for models", unit="bytes", minimum=1, maximum=_BYTES_MAX)
    turbo_enabled: bool = row(doc="turbo mode")
    broker_enabled: bool = row(doc="models outside this machine")
    tick_hz: int = row(doc="frames per second", unit="Hz", minimum=1, maximum=60)
    tps_minimum: float = row(doc="pace a model should reach", unit="tokens/s", minimum=0, maximum=10_000)
    ttft_warm_ms: float = row(doc="time to first token, loaded", unit="ms", minimum=1, maximum=3_600_000)
    ttft_cold_ms: float = row(doc="time to first token with the load", unit="ms", minimum=1, maximum=3_600_000)
    allow_resonance: bool = row(doc="resonance events")
    context_length_max: int = row(doc="context", unit="tokens", minimum=1, maximum=10_000_000)
    queue_depth_max: int = row(doc="prompts waiting for one model", unit="prompts", minimum=1, maximum=4096)
    requests_per_model: int = row(
        doc="requests a spawned Ollama answers at once per model", unit="requests", minimum=1, maximum=64
    )
    suggested_model: str = row(
        doc="model to download where there is none", pattern=_MODEL, expectation="a model's name like llama3.2:3b"
    )


@attrs.frozen
class Level:
    name: str = row(doc="its name", pattern=_NAME, expectation="1 to 40 letters, digits, spaces, _ or -")
    max_models: int = row(doc="models in one request", unit="models", minimum=1, maximum=6)
    features: tuple[str, ...] = row(doc="what it adds", pattern=r"[a-z_]{1,40}", expectation="a name like token_timing")


@attrs.frozen
class Levels:
    level_1: Level = section(doc="level 1")
    level_2: Level = section(doc="level 2")
    level_3: Level = section(doc="level 3")
    level_4: Level = section(doc="level 4")
    level_5: Level = section(doc="level 5")


@attrs.frozen
class TierPolicy:
    """policies/tiers.yaml with the user's changes."""

    schema_version: Literal["1.0"] = row(doc="version of this file's shape")
    low: TierLimits = section(doc="low tier")
    mid: TierLimits = section(doc="mid tier")
    high: TierLimits = section(doc="high tier")
    hybrid: TierLimits = section(doc="hybrid tier")
    levels: Levels = section(doc="levels")

    def limits(self, tier: Tier) -> TierLimits:
        limits: TierLimits = getattr(self, tier.value)
        return limits

    def level(self, number: int) -> Level:
        """The level with this number, 1–5. Raises ValueError for another."""
        if number not in LEVELS:
            raise ValueError(f"there is no level {number}")
        level: Level = getattr(self.levels, f"level_{number}")
        return level

    def features(self, number: int) -> frozenset[str]:
        """Everything unlocked at this level: its own features and those of the levels below."""
        return frozenset(feature for n in LEVELS if n <= number for feature in self.level(n).features)

    def models_max(self, tier: Tier, number: int) -> int:
        """How many models one request may use: the smaller of what the level and the tier allow."""
        return min(self.level(number).max_models, self.limits(tier).max_parallel_models)


def below(tier: Tier) -> Tier:
    """The next lower tier; low is below itself."""
    order = (Tier.LOW, Tier.MID, Tier.HIGH)
    return order[max(0, order.index(Tier.HIGH if tier is Tier.HYBRID else tier) - 1)]


@attrs.frozen
class TierChoice:
    """The tier in force and why; `warning` when the user chose more than the machine shows. What memory the machine
    has: null where it is not known (of a GPU: or where there is none)."""

    tier: Tier
    reason: str
    warning: str | None = None
    ram_bytes: int | None = None
    vram_bytes: int | None = None


def detect_tier(policy: TierPolicy, ram_bytes: int, vram_bytes: int | None) -> tuple[Tier, str]:
    """The best tier whose budgets the machine's memory covers, with the numbers behind it.

    With `vram_bytes` (GPU memory; for unified memory pass half of the RAM) both budgets must be covered, without it
    (None: no GPU) the RAM budget alone. A machine too small for every tier is `low`; `hybrid` is never detected.
    """
    have = f"{_gb(ram_bytes)} RAM, " + ("no GPU memory" if vram_bytes is None else f"{_gb(vram_bytes)} GPU memory")
    for tier in DETECTABLE:
        limits = policy.limits(tier)
        vram_fits = vram_bytes is None or vram_bytes >= limits.vram_budget_bytes
        if vram_fits and ram_bytes >= limits.ram_budget_bytes:
            need = _gb(limits.ram_budget_bytes) + " RAM"
            if vram_bytes is not None:
                need += f" and {_gb(limits.vram_budget_bytes)} GPU memory"
            return tier, f"{have}: enough for {tier}, which asks for {need}"
    return Tier.LOW, f"{have}: less than any tier asks for"


def choose_tier(policy: TierPolicy, wanted: Tier | None, ram_bytes: int, vram_bytes: int | None) -> TierChoice:
    """`wanted`, or the detected tier when that is None. Choosing less is free, choosing more comes with a warning."""
    found, reason = detect_tier(policy, ram_bytes, vram_bytes)
    if wanted is None:
        return TierChoice(found, reason, None, ram_bytes, vram_bytes)
    place = DETECTABLE.index(Tier.HIGH if wanted is Tier.HYBRID else wanted)
    warning = f"tier {wanted} is more than was found ({reason})" if place < DETECTABLE.index(found) else None
    return TierChoice(wanted, "chosen by the configuration", warning, ram_bytes, vram_bytes)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
