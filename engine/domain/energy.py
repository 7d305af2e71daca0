"""Energy E(t) of one token stream, from measured signals only.

    E_base = w_v · v + w_c · c · f + w_f · f         (without log-probabilities: w_v′ · v + w_f′ · f)

    v  velocity    TPS / TPS_max, clamped; TPS over the last second of arrivals
    c  certainty   covered mass × (1 − entropy of the top entries / ln K); null when nothing was reported
    f  flow        1 up to the stall line, then falling to 0 at the ceiling
    E  the one smoothing: an exponential moving average of E_base over tokens, starting from 0

Between tokens E holds up to the stall line and then halves every `half_life_ms`. The value at a moment follows from the
last token and the clock alone, so it does not depend on how often anybody looks. EU is a separate, additive ledger in
integer micro-EU. Terms and constants are written down in policies/energy.yaml; nothing here knows a tier.
"""

from __future__ import annotations

import enum
import math
import operator
from collections import deque
from collections.abc import Iterable
from typing import Final

import attrs
import msgspec

from engine.domain.generation import Token

MICRO: Final = 1_000_000
LN_2: Final = math.log(2.0)
MIN_SPAN_US: Final = 1_000  # tokens of one chunk share a stamp; a span is never taken as shorter than 1 ms


class Phase(enum.StrEnum):
    """State of one stream. EDGES below lists every allowed move."""

    IDLE = "IDLE"
    CHARGING = "CHARGING"  # prompt accepted, no token yet
    FLOWING = "FLOWING"
    STALLING = "STALLING"
    SATURATED = "SATURATED"
    DRAINED = "DRAINED"  # over; absorbing until a new prompt


EDGES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.IDLE: frozenset({Phase.CHARGING}),
    Phase.CHARGING: frozenset({Phase.FLOWING, Phase.DRAINED}),
    Phase.FLOWING: frozenset({Phase.STALLING, Phase.SATURATED, Phase.DRAINED}),
    Phase.SATURATED: frozenset({Phase.FLOWING, Phase.STALLING, Phase.DRAINED}),
    Phase.STALLING: frozenset({Phase.FLOWING, Phase.DRAINED}),
    Phase.DRAINED: frozenset({Phase.CHARGING}),
}
_ALIVE: Final = (Phase.FLOWING, Phase.SATURATED)  # silence can stall it


@attrs.frozen
class EnergyParams:
    """All constants in force for a stream; published with every session so that anybody can recompute E."""

    tier: str
    window_ms: float
    tps_max: float
    stall_ms: float
    ceil_ms: float
    alpha: float
    weight_velocity: float
    weight_certainty: float
    weight_flow: float
    weight_velocity_no_logprobs: float
    weight_flow_no_logprobs: float
    half_life_ms: float
    stall_tokens: int
    silence_stall_factor: float
    saturate: float
    unsaturate: float
    saturate_dwell_ms: float
    burst_fraction: float
    eu_base: float
    eu_offset: float
    eu_model_factor: float
    eu_rate_alpha: float
    top_k: int


class Uncertainty(msgspec.Struct, frozen=True, gc=False):
    """What a top-K list says: `certainty` in [0, 1]; `entropy_bits` is a lower bound (the uncovered mass is counted as
    one symbol) with that mass beside it. All null when nothing was reported."""

    certainty: float | None = None
    entropy_bits: float | None = None
    tail_mass: float | None = None


UNKNOWN: Final = Uncertainty()


def clamp(value: float) -> float:
    """Into [0, 1]; what is no number is 0."""
    if 0.0 < value <= 1.0:
        return value
    return 1.0 if value > 1.0 else 0.0


def velocity(tps: float, params: EnergyParams) -> float:
    return clamp(tps / params.tps_max)


def flow(delta_ms: float, params: EnergyParams) -> float:
    return 1.0 - clamp((delta_ms - params.stall_ms) / (params.ceil_ms - params.stall_ms))


def uncertainty(logprobs: Iterable[float], top_k: int) -> Uncertainty:
    """Certainty and entropy of the `top_k` most probable entries (natural logs; order and duplicates do not matter).

    Entries that are not numbers are left out. One entry alone (only the chosen token) gives c = p and no entropy.
    """
    usable = sorted(logprobs, reverse=True)
    if usable and not (-math.inf < sum(usable) <= usable[0] <= 0.0):  # not every entry is a finite log-probability
        usable = sorted((min(lp, 0.0) for lp in usable if not math.isnan(lp)), reverse=True)
    del usable[top_k:]
    count = len(usable)
    if count < 2:
        return Uncertainty(certainty=clamp(math.exp(usable[0]))) if usable else UNKNOWN
    while usable and usable[-1] == -math.inf:  # impossible entries count, but have no mass and no p · ln p
        usable.pop()
    masses = [*map(math.exp, usable)]
    mass, p_ln_p = sum(masses), sum(map(operator.mul, masses, usable))
    if mass <= 0.0:
        return Uncertainty(certainty=0.0, entropy_bits=0.0, tail_mass=1.0)
    # With q = p / mass:  −Σ q · ln q = ln mass − Σ p · ln p / mass, and ln p is what was reported. This saves two
    # logarithms per entry, which were half of what a token cost.
    entropy_nats = math.log(mass) - p_ln_p / mass
    covered, tail = (1.0, 0.0) if mass >= 1.0 else (mass, 1.0 - mass)
    certainty = clamp(covered * (1.0 - entropy_nats / math.log(count)))
    bits = -p_ln_p / LN_2 - (tail * math.log2(tail) if tail > 0.0 else 0.0)
    return Uncertainty(certainty, max(0.0, bits), tail)


def energy_base(tps: float, delta_ms: float | None, certainty: float | None, params: EnergyParams) -> float:
    """E_base in [0, 1]. `delta_ms` None is the first token: the wait for it (TTFT) is no inter-arrival time."""
    v = velocity(tps, params)
    f = 1.0 if delta_ms is None else flow(delta_ms, params)
    if certainty is None:
        return clamp(params.weight_velocity_no_logprobs * v + params.weight_flow_no_logprobs * f)
    return clamp(params.weight_velocity * v + params.weight_certainty * certainty * f + params.weight_flow * f)


def ema(previous: float, value: float, alpha: float) -> float:
    return clamp(alpha * value + (1.0 - alpha) * previous)


def decayed(energy: float, beyond_ms: float, params: EnergyParams) -> float:
    """`energy` after `beyond_ms` of silence past the hold; halves every half-life."""
    return energy if beyond_ms <= 0.0 else energy * math.pow(0.5, beyond_ms / params.half_life_ms)


def eu_micro(base: float | None, params: EnergyParams) -> int:
    """Micro-EU one token earns: 0.1 · κ · (0.5 + E_base), as an integer so that sums are exact. None earns nothing."""
    if base is None:
        return 0
    return round(params.eu_base * params.eu_model_factor * (params.eu_offset + base) * MICRO)


class StreamEnergy(msgspec.Struct, frozen=True, gc=False):
    """Everything about a stream's energy that does not need its history: the last token and what followed from it."""

    phase: Phase
    since_us: int  # prompt accepted
    energy: float = 0.0
    energy_base: float | None = None
    last_us: int | None = None  # arrival of the last token
    end_us: int | None = None
    delta_us: int | None = None
    tps: float = 0.0
    recent: int = 0  # tokens in the last window, at the last token
    slow_tokens: int = 0  # consecutive ones past the stall line
    high_since_us: int | None = None  # E has been at or above `saturate` since
    uncertainty: Uncertainty = UNKNOWN
    burst: bool = False
    throttled: bool = False
    tokens: int = 0
    eu_micro: int = 0


class EnergySample(msgspec.Struct, frozen=True, gc=False):
    """One token with its energy. `energy` is null only when the maths failed on it; `energy_base` also when
    throttled."""

    token: Token
    energy: float | None
    energy_base: float | None
    uncertainty: Uncertainty
    tps: float
    stall: bool
    burst: bool
    eu_micro: int


class Reading(msgspec.Struct, frozen=True, gc=False):
    """A stream at one moment: `silence_ms` since the last token (or the prompt), `stall` = past the stall line."""

    phase: Phase
    energy: float
    silence_ms: float
    stall: bool
    tps: float


def ended(state: StreamEnergy, at_us: int) -> StreamEnergy:
    """The stream is over."""
    return msgspec.structs.replace(state, phase=Phase.DRAINED, end_us=at_us)


def energy_at(state: StreamEnergy, now_us: int, params: EnergyParams) -> float:
    """E at `now_us`: held up to the stall line, decaying after it; decaying at once when the stream is over."""
    if state.last_us is None:
        return state.energy
    if state.end_us is not None:
        at_end = decayed(state.energy, (state.end_us - state.last_us) / 1000 - params.stall_ms, params)
        return decayed(at_end, (now_us - state.end_us) / 1000, params)
    return decayed(state.energy, (now_us - state.last_us) / 1000 - params.stall_ms, params)


def phase_at(state: StreamEnergy, now_us: int, params: EnergyParams) -> Phase:
    """The phase at `now_us` when no token came since: silence stalls, a long enough high saturates, a fall ends it."""
    return _phase(state, now_us, energy_at(state, now_us, params), params)


def _phase(state: StreamEnergy, now_us: int, energy: float, params: EnergyParams) -> Phase:
    """`energy` is E at `now_us`."""
    if state.phase not in _ALIVE or state.last_us is None:
        return state.phase
    if now_us - state.last_us >= _silence_line_us(params):
        return Phase.STALLING
    if state.phase is Phase.SATURATED:
        return Phase.FLOWING if energy < params.unsaturate else Phase.SATURATED
    if energy < params.saturate:
        return Phase.FLOWING
    high_us = 0 if state.high_since_us is None else now_us - state.high_since_us
    return Phase.SATURATED if high_us >= params.saturate_dwell_ms * 1000 else Phase.FLOWING


def _silence_line_us(params: EnergyParams) -> float:
    """Silence from here on is a stall."""
    return params.silence_stall_factor * params.stall_ms * 1000


def read(state: StreamEnergy, now_us: int, params: EnergyParams) -> Reading:
    """The stream as a frame shows it. TPS is the last token's until the stall line, then what the last window really
    brought (so a silent stream shows 0, not its last good figure)."""
    since = state.since_us if state.last_us is None else state.last_us
    until = now_us if state.end_us is None else state.end_us
    silence_ms = max(0, until - since) / 1000
    stall = state.last_us is not None and state.end_us is None and silence_ms > params.stall_ms
    tps = state.tps
    if stall:
        tps = state.recent * 1000 / params.window_ms if silence_ms < params.window_ms else 0.0
    energy = energy_at(state, now_us, params)
    return Reading(_phase(state, now_us, energy, params), energy, silence_ms, stall, tps)


@attrs.define(eq=False)
class EnergyMeter:
    """The fold over one stream: prompt, tokens in order, end. Deterministic: the same tokens give the same energies."""

    params: EnergyParams
    state: StreamEnergy
    _window: deque[int] = attrs.field(factory=deque)

    @classmethod
    def started(cls, params: EnergyParams, now_us: int) -> EnergyMeter:
        return cls(params, StreamEnergy(Phase.CHARGING, now_us))

    def token(self, token: Token) -> EnergySample:
        """Fold one token in. A throttled token says nothing about the model: E is held and it earns no EU."""
        params, before, t_us = self.params, self.state, token.t_us
        tps, throttled = self._tps(token), token.throttled
        delta_ms = None if token.delta_us is None else token.delta_us / 1000
        unsure = UNKNOWN
        if token.top:
            unsure = uncertainty([entry.logprob for entry in token.top], params.top_k)
        elif token.logprob is not None:
            unsure = uncertainty((token.logprob,), params.top_k)
        held = energy_at(before, t_us, params)  # what is left of E by now
        if throttled:
            base, energy = None, before.energy
        else:
            base = energy_base(tps, delta_ms, unsure.certainty, params)
            energy = ema(held, base, params.alpha)
        earned = eu_micro(base, params)
        burst = tps > params.burst_fraction * params.tps_max and not throttled
        slow = delta_ms is not None and delta_ms > params.stall_ms and not throttled
        ends_silence = self._ends_silence_stall(token)
        slow_tokens = before.slow_tokens + 1 if slow and not ends_silence else 0
        was = _phase(before, t_us, held, params)
        self.state = StreamEnergy(
            phase=self._phase_after(was, slow, ends_silence, slow_tokens, energy),
            since_us=before.since_us,
            energy=energy,
            energy_base=base,
            last_us=t_us,
            delta_us=token.delta_us,
            tps=tps,
            recent=len(self._window),
            slow_tokens=slow_tokens,
            high_since_us=self._high_since(t_us, held, energy),
            uncertainty=unsure,
            burst=burst,
            throttled=throttled,
            tokens=before.tokens + 1,
            eu_micro=before.eu_micro + earned,
        )
        return EnergySample(token, energy, base, unsure, tps, slow, burst, earned)

    def unmeasured(self, token: Token) -> EnergySample:
        """A token the maths failed on: its text counts, its energy is null, the stream goes on from where it was."""
        phase = Phase.FLOWING if self.state.phase is Phase.CHARGING else self.state.phase
        self.state = msgspec.structs.replace(
            self.state, phase=phase, tokens=self.state.tokens + 1, last_us=token.t_us, energy_base=None
        )
        return EnergySample(token, None, None, UNKNOWN, self.state.tps, False, False, 0)

    def end(self, now_us: int) -> None:
        self.state = ended(self.state, now_us)

    def _tps(self, token: Token) -> float:
        """Tokens per second over the window ending at this token; 0 for the first."""
        window = self._window
        if token.throttled:
            window.clear()
        window.append(token.t_us)
        horizon = token.t_us - self.params.window_ms * 1000
        while window[0] < horizon:
            window.popleft()
        if len(window) >= 2:
            return (len(window) - 1) * MICRO / max(MIN_SPAN_US, window[-1] - window[0])
        if token.delta_us is None or token.throttled:
            return 0.0
        return MICRO / max(MIN_SPAN_US, token.delta_us)

    def _ends_silence_stall(self, token: Token) -> bool:
        """True when this token ends a stall that silence (not slow tokens) had caused."""
        return (
            token.delta_us is not None
            and token.delta_us >= _silence_line_us(self.params)
            and self.state.phase in _ALIVE
        )

    def _phase_after(self, was: Phase, slow: bool, ends_silence: bool, slow_tokens: int, energy: float) -> Phase:
        """`was`: the phase at the token's arrival, without it."""
        if was is Phase.CHARGING or was is Phase.IDLE or ends_silence:
            return Phase.FLOWING
        if was is Phase.STALLING:
            return Phase.STALLING if slow else Phase.FLOWING
        if slow_tokens >= self.params.stall_tokens:
            return Phase.STALLING
        if was is Phase.SATURATED and energy < self.params.unsaturate:
            return Phase.FLOWING
        return was

    def _high_since(self, t_us: int, held: float, energy: float) -> int | None:
        """Since when E has been high without a break; None when it is not."""
        if energy < self.params.saturate:
            return None
        since_us = self.state.high_since_us
        return since_us if since_us is not None and held >= self.params.saturate else t_us
