"""What the engine says about itself. One class per event type; field names are the wire's.

Two families travel the same path in order: what a session tells the mapper (`SessionOpened`, `TokenBatch`,
`SessionClosed`) and what the composer puts into frames (`Event`). Only `Tokens` carries text.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs
import msgspec

from engine.domain.council import CouncilChosen, CouncilFormed, CouncilPayload, MemberEnded, MemberStarted
from engine.domain.energy import EnergyParams, EnergySample, Phase, StreamEnergy
from engine.domain.ensemble import EnsembleParams, EnsembleReading
from engine.domain.generation import EndReason, Origin, Parameters, Seam, StreamRef, Token
from engine.domain.models import ModelState

SESSION_START: Final = "experience.session_start"
TOKEN: Final = "experience.token"
MODEL: Final = "experience.model"
SEAM: Final = "experience.seam"
SESSION_END: Final = "experience.session_end"
ENERGY_UPDATE: Final = "energy.update"
HEARTBEAT: Final = "system.heartbeat"
DEGRADE: Final = "system.degrade"

DegradeReason = Literal["queue", "overruns", "recovered"]

# ── from a session to the mapper, and on to the composer ────────────────────────────────────────────────────────────


@attrs.frozen
class SessionOpened:
    """A session begins, with everything `experience.session_start` says. Always first."""

    session_id: str
    at_us: int
    mode: str
    streams: tuple[StreamRef, ...]
    dropped_models: tuple[str, ...]
    parameters: Parameters
    energy_params: EnergyParams
    origin: Origin
    synthetic: bool
    ensemble_params: EnsembleParams | None = None  # of a council


class TokenBatch(msgspec.Struct, frozen=True, gc=False):
    """What one read of the runtime brought (≤ 256 tokens)."""

    stream: StreamRef
    tokens: tuple[Token, ...]


@attrs.frozen
class ModelChanged:
    """A model moved on, on behalf of a session (or of nobody: session_id null)."""

    session_id: str | None
    model: str
    state: ModelState
    progress: float | None = None  # 0–1, null when the runtime does not say
    position: int | None = None  # in the queue, from 1
    reason: str | None = None


@attrs.frozen
class AnswerResumed:
    """A stream broke off and goes on. Between the tokens before the seam and those behind it; where there are none
    before it, the stream is from then on that of the seam's model."""

    session_id: str
    seam: Seam


@attrs.frozen
class SessionClosed:
    """A session is over. `prompt_tokens`, `eval_count` are the runtime's own counts where it gave them. Always last."""

    session_id: str
    at_us: int
    reason: EndReason
    error: dict[str, Any] | None
    tokens: int
    ttft_ms: float | None
    duration_ms: float
    stop_latency_ms: float | None
    cold: bool | None  # the model had to be loaded for it; null when it never got that far
    prompt_tokens: int | None = None
    prompt_tokens_dropped: int | None = 0
    eval_count: int | None = None
    timing: Literal["measured", "untrusted"] | None = (
        None  # measured, or untrusted: a buffer's pace, not the model's; null without tokens
    )
    resumed: int = 0  # seams
    asked: bool = True  # it got as far as its model, or one of them


CouncilSignal = CouncilFormed | MemberStarted | MemberEnded | CouncilChosen
SessionSignal = SessionOpened | TokenBatch | ModelChanged | AnswerResumed | CouncilSignal | SessionClosed


class SampleBatch(msgspec.Struct, frozen=True, gc=False):
    """A token batch with its energies, and the stream's state after it."""

    stream: StreamRef
    samples: tuple[EnergySample, ...]
    state: StreamEnergy


MappedSignal = SessionOpened | SampleBatch | ModelChanged | AnswerResumed | CouncilSignal | SessionClosed

# ── payloads of events ──────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class SessionStartPayload:
    mode: str
    models: tuple[str, ...]
    dropped_models: tuple[str, ...]
    parameters: Parameters
    energy_params: EnergyParams
    origin: Origin
    synthetic: bool
    streams: tuple[StreamRef, ...]
    start_us: int
    ensemble_params: EnsembleParams | None = None  # null: no council


class TokensPayload(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one stream since the frame before; encoded with or without their top-K lists. Under load
    (policies/degrade.yaml) these are left out, and what is not text of the first `text_only` tokens."""

    stream_id: str
    model: str
    samples: tuple[EnergySample, ...]
    text_only: int = 0
    with_top: bool = True


@attrs.frozen
class ModelPayload:
    model: str
    state: ModelState
    progress: float | None
    position: int | None
    reason: str | None


class StreamReading(msgspec.Struct, frozen=True, gc=False):
    """One stream in `energy.update`. Times in ms; `tokens` is the stream's total."""

    stream_id: str
    model: str
    state: Phase
    energy: float
    energy_base: float | None
    tps: float
    delta_ms: float | None
    silence_ms: float
    certainty: float | None
    entropy_bits: float | None
    tail_mass: float | None
    stall: bool
    burst: bool
    throttled: bool
    tokens: int
    queue_depth: int


class EnergyUpdatePayload(msgspec.Struct, frozen=True, gc=False):
    """`tokens` and `eu_frame` are of this tick; `eu_rate` is EU per second, the one per-frame average. `ensemble` is
    null without a council, and while none of its members has an energy."""

    tokens: int
    eu_frame: float
    eu_total: float
    eu_rate: float
    streams: tuple[StreamReading, ...]
    ensemble: EnsembleReading | None = None


@attrs.frozen
class SessionTotals:
    """`tokens` counted here; `eval_count` and `prompt_tokens` as the runtime counted them, null when it did not say, or
    when the answer was `resumed` (so often): nobody counted the whole."""

    tokens: int
    eu: float | None
    eval_count: int | None
    prompt_tokens: int | None
    prompt_tokens_dropped: int | None
    resumed: int = 0


@attrs.frozen
class MemberSummary:
    """A member of a council, at its end: by itself, by the council or with a stop. `energy` is its E at that moment,
    before it falls, `energy_mean` the plain mean over its tokens; null, as `ttft_ms`, for who said nothing."""

    stream_id: str
    model: str
    reason: EndReason
    tokens: int
    ttft_ms: float | None
    energy: float | None
    energy_mean: float | None


@attrs.frozen
class SessionSummary:
    """Of the whole session; engine-clock microseconds and plain means over its tokens. `members` is null where no
    council was formed."""

    start_us: int | None
    end_us: int
    tps_average: float | None
    energy_mean: float | None
    stalls: int
    cold: bool | None
    timing: Literal["measured", "untrusted"] | None
    members: tuple[MemberSummary, ...] | None = None


@attrs.frozen
class SessionEndPayload:
    reason: EndReason
    error: dict[str, Any] | None
    totals: SessionTotals
    ttft_ms: float | None
    duration_ms: float
    stop_latency_ms: float | None
    summary: SessionSummary


@attrs.frozen
class HeartbeatPayload:
    """Once a second. `fps` is what was composed in the last second, `degrade` the level 0–4."""

    fps: float
    uptime_ms: float
    connections: int
    degrade: int


@attrs.frozen
class DegradePayload:
    """The engine leaves out more, or less again: the level 0–4 in force, the one `before`, and what was measured when
    it changed: batches waiting before the composer, and the time the frame before took."""

    level: int
    before: int
    reason: DegradeReason
    queue_depth: int
    frame_ms: float


Payload = (
    HeartbeatPayload
    | DegradePayload
    | SessionStartPayload
    | TokensPayload
    | ModelPayload
    | Seam
    | EnergyUpdatePayload
    | CouncilPayload
    | SessionEndPayload
)


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of a frame. The prefix of `type` is its channel."""

    type: str
    session_id: str | None
    payload: Payload

    @property
    def lossless(self) -> bool:
        """False for snapshots, of which only the newest counts."""
        return self.type not in (ENERGY_UPDATE, HEARTBEAT)
