"""What a council says of itself: its forming, its members' comings and goings, and how its answer was chosen.

Signals go from the session to the composer on the same way as tokens do, so that their order holds; payloads are what
frames carry. A council has the id of its session: there is one per session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs

from engine.domain.ensemble import DiMethod
from engine.domain.generation import EndReason, Origin, StreamRef
from engine.domain.interference import Pattern
from engine.domain.resonance import ResonancePhase
from engine.domain.synthesis import CouncilReport

FORMED: Final = "council.formed"
MEMBER_START: Final = "council.model_start"
MEMBER_END: Final = "council.model_end"
MEMBER_ERROR: Final = "council.model_error"
ENSEMBLE: Final = "council.ensemble"
INTERFERENCE: Final = "council.interference"
RESONANCE: Final = "council.resonance"
SYNTHESIS: Final = "council.synthesis"

# ── from a session to the composer ──────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class CouncilFormed:
    """Who speaks, and how: `together`, or in `waves` where memory or the tier does not allow all at once. `celebrates`:
    tier and level show resonance. `reason` says why it is smaller than asked, or in waves."""

    session_id: str
    members: tuple[StreamRef, ...]
    dropped_models: tuple[str, ...]
    waves: tuple[tuple[str, ...], ...]  # of stream ids
    method: str
    celebrates: bool
    reason: str | None


@attrs.frozen
class MemberStarted:
    """A member has its model and is asked. `cold`: the model had to be loaded (null: nobody can tell). `asked_us` is
    when its wave began to wait for its models, from where its times count; null: when the session began."""

    stream: StreamRef
    cold: bool | None
    load_ms: float | None
    asked_us: int | None = None
    origin: Origin | None = None  # satellite: it is outside this machine


@attrs.frozen
class MemberEnded:
    """A member is done: with its runtime's end, cut by the council (`reason` aborted, `cut` says why), or failed. The
    runtime's own counts are null where it gave none."""

    stream: StreamRef
    at_us: int
    reason: EndReason
    tokens: int
    ttft_ms: float | None
    duration_ms: float
    cut: str | None = None
    error: dict[str, Any] | None = None
    prompt_tokens: int | None = None
    eval_count: int | None = None


@attrs.frozen
class CouncilChosen:
    """The answer: `stream` is the member whose words it is (null: there is none), `report` how far they agree."""

    session_id: str
    method: str
    stream: StreamRef | None
    confidence: float | None
    reason: str
    report: CouncilReport


# ── payloads of events ──────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class MemberName:
    stream_id: str
    model: str


@attrs.frozen
class FormedPayload:
    """`weights` are the members' shares at the start, by stream; those in force are in `energy.update.ensemble`."""

    council_id: str
    models: tuple[str, ...]
    members: tuple[MemberName, ...]
    dropped_models: tuple[str, ...]
    plan: Literal["together", "waves"]
    waves: tuple[tuple[str, ...], ...]
    weights: Mapping[str, float]
    method: str
    reason: str | None


@attrs.frozen
class MemberStartPayload:
    """From `asked_us` on (engine clock; null: the session's start) its time to first token counts: a member of a later
    wave is asked when the one before it is done. `origin` is satellite for a model outside this machine, null
    otherwise: a satellite is shown beside the others and not measured against them, since what it gives comes at the
    pace of a network and without log-probabilities."""

    council_id: str
    stream_id: str
    model: str
    cold: bool | None
    load_ms: float | None
    asked_us: int | None = None
    origin: Origin | None = None


@attrs.frozen
class MemberEndPayload:
    """Of `council.model_end` and `council.model_error`; `error` is null in the first. From `end_us` on (engine clock)
    the stream is DRAINED, and its energy falls."""

    council_id: str
    stream_id: str
    model: str
    end_us: int
    reason: EndReason
    tokens: int
    ttft_ms: float | None
    duration_ms: float
    cut: str | None
    error: dict[str, Any] | None


@attrs.frozen
class PairAgreement:
    """1 − DI of two members alone, in the last window both were in."""

    a: str
    b: str
    agreement: float


@attrs.frozen
class WindowPayload:
    """One aligned window. `positions` are the members' tokens in it, by stream."""

    council_id: str
    positions: Mapping[str, int]
    energy: float
    di: float | None
    di_method: DiMethod
    sync_latency_ms: float | None
    agreement: tuple[PairAgreement, ...]


@attrs.frozen
class InterferencePayload:
    """The band the council is in now. `correlation` is an extra, never the reason."""

    council_id: str
    pattern: Pattern
    intensity: float
    coherence: float
    correlation: float | None
    models: tuple[str, ...]


@attrs.frozen
class ResonancePayload:
    """Start or end of resonance, with the numbers that caused it. `duration_ms` is null at the start, `celebrate` says
    whether tier and level show it."""

    council_id: str
    phase: ResonancePhase
    strength: float
    coherence: float | None
    energy: float | None
    correlation: float | None
    duration_ms: float | None
    models: tuple[str, ...]
    celebrate: bool


@attrs.frozen
class SynthesisPayload:
    """The last word of a council. `stream_id` and `model` are of the member whose answer was chosen."""

    council_id: str
    method: str
    stream_id: str | None
    model: str | None
    confidence: float | None
    reason: str
    report: CouncilReport


CouncilPayload = (
    FormedPayload
    | MemberStartPayload
    | MemberEndPayload
    | WindowPayload
    | InterferencePayload
    | ResonancePayload
    | SynthesisPayload
)
