"""Broker: whether a call may leave this machine, what of it, and what has left. Every call that leaves passes here, and
gets its permit here; nobody else makes permits for it.

The state is a mode and what the calls used up. It has no task of its own: it decides between two awaits, and what it
grants is reserved before it waits for anything. A call is written down before it leaves and when it is over; where
that cannot be written, nothing leaves.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import attrs
import trio

from engine.domain.errors import BrokerDisabled, EngineError, Overloaded, RuntimeUnavailable
from engine.domain.generation import GenerationEnd, GenerationRequest
from engine.domain.usage import NANO_PER_USD, Price
from policies.broker import (
    CONSENT,
    DAY_S,
    HOUR_S,
    BrokerMode,
    BrokerPolicy,
    Leaving,
    Occasion,
    Spent,
    Wanted,
    may_assist,
    minimised,
)
from policies.egress import Permit, Purpose

WRITE_S: Final = 2.0  # for the last line of a call, also when it was cancelled
CALLS_MAX: Final = 100_000  # times kept; no policy allows more in an hour

logger = logging.getLogger("wf.broker")


class BrokerLog(Protocol):
    """Where it is written down what left. A line is a JSON object without any text of a request or an answer."""

    async def write(self, line: Mapping[str, Any]) -> None:
        """On the disk, or OSError."""


@attrs.define(eq=False)
class MemoryLog:
    """Keeps nothing but the latest lines, for an engine without a state folder."""

    lines: deque[Mapping[str, Any]] = attrs.field(factory=lambda: deque(maxlen=1000))

    async def write(self, line: Mapping[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        self.lines.append(line)


@attrs.frozen
class Satellite:
    """A model somewhere else: whose it is, where, and what it is called there."""

    provider: str
    host: str
    port: int
    model: str


@attrs.define(eq=False)
class Call:
    """One answer from elsewhere, from the permission to its end. `tokens_max` and `nusd_max` are reserved for it."""

    id: str
    satellite: Satellite
    occasion: Occasion
    leaving: Leaving
    permit: Permit
    price: Price
    tokens_max: int
    nusd_max: int
    began_s: float
    attempts: int = 0


@attrs.define(eq=False)
class BrokerCounters:
    """Since the start. `refused` counts requests that were not allowed to leave, by the code of the refusal."""

    calls: int = 0
    failed: int = 0
    refused: dict[str, int] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Broker:
    """`tier_allows`: the tier is hybrid. `price_of` gives the price of a model by its name, null where nobody knows it.
    `wall_s` is the wall clock: budgets are of hours and days, and outlive the engine."""

    policy: BrokerPolicy
    tier_allows: bool
    mode: BrokerMode
    price_of: Callable[[str], Price | None]
    log: BrokerLog
    wall_s: Callable[[], float]
    locked: bool = False  # the core lock is on: no socket could leave anyway
    counters: BrokerCounters = attrs.field(factory=BrokerCounters)
    at_off: list[Callable[[], None]] = attrs.field(factory=list)  # what lets go of what is open; quick, never raises
    _calls_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=CALLS_MAX))
    _day: int = 0
    _tokens: int = 0  # of that day, over
    _nusd: int = 0
    _running: dict[str, Call] = attrs.field(factory=dict)

    # ── what is allowed ──

    def switch(self, mode: BrokerMode) -> None:
        """Raises BrokerDisabled where the tier has no broker. Calls under way go on to their end; connections that wait
        for one are closed."""
        if mode is not BrokerMode.DISABLED and self.locked:
            raise BrokerDisabled("the core lock is on (`core_lock`): nothing leaves this machine", mode=self.mode)
        if mode is not BrokerMode.DISABLED and not self.tier_allows:
            raise BrokerDisabled(
                "the broker needs the tier hybrid (`tier: hybrid` in the configuration)", mode=self.mode
            )
        self._set(mode)

    def _set(self, mode: BrokerMode) -> None:
        self.mode = mode
        if mode is BrokerMode.DISABLED:
            for let_go in self.at_off:
                let_go()

    async def note_mode(self) -> None:
        """Write the mode down. Raises RuntimeUnavailable; the broker is then disabled."""
        try:
            await self.log.write({"at": self._at(), "event": "mode", "mode": self.mode.value})
        except OSError as error:
            self._set(BrokerMode.DISABLED)
            raise _unwritable(error) from error

    def objection(self, occasion: Occasion) -> str | None:
        """Why nothing may be asked of a satellite for the request at hand, whatever it costs; None when it may."""
        nothing = Wanted(occasion, CONSENT.get(), 0, 0, Price(0, 0))
        refusal = may_assist(self.policy, self.mode, self.tier_allows, nothing, self.spent())
        return None if refusal is None else refusal.message

    def check(self, satellite: Satellite, request: GenerationRequest, occasion: Occasion) -> Leaving:
        """What would leave for this request. Raises BrokerDisabled or Overloaded, whose details say the same."""
        leaving = minimised(request, self.policy)
        price = self.price_of(satellite.model)
        wanted = Wanted(occasion, CONSENT.get(), leaving.tokens_max, leaving.request.parameters.max_tokens or 0, price)
        refusal = may_assist(self.policy, self.mode, self.tier_allows, wanted, self.spent())
        if refusal is None:
            return leaving
        self.counters.refused[refusal.code] = self.counters.refused.get(refusal.code, 0) + 1
        refusal.details["would_leave"] = {
            "provider": satellite.provider,
            "host": satellite.host,
            "model": satellite.model,
            **leaving.shown(),
            "tokens_max": wanted.tokens_max,
            "usd_max": None if wanted.nusd_max is None else wanted.nusd_max / NANO_PER_USD,
        }
        raise refusal

    async def admit(self, satellite: Satellite, request: GenerationRequest, occasion: Occasion) -> Call:
        """A call that may leave, written down. It must be `settled`. Raises as `check`, and RuntimeUnavailable when it
        cannot be written down. Cancelled here: nothing has left."""
        leaving, price = self.check(satellite, request, occasion), self.price_of(satellite.model)
        assert price is not None  # else it was refused
        tokens_out_max = leaving.request.parameters.max_tokens or 0
        call = Call(
            id=secrets.token_hex(8),
            satellite=satellite,
            occasion=occasion,
            leaving=leaving,
            permit=Permit(Purpose.BROKER, satellite.host, satellite.port),
            price=price,
            tokens_max=leaving.tokens_max + tokens_out_max,
            nusd_max=price.of(leaving.tokens_max, tokens_out_max),
            began_s=self.wall_s(),
        )
        self._running[call.id] = call
        try:
            await self.log.write(self._line(call, "asked") | {"would_leave": leaving.shown()})
        except BaseException as error:
            del self._running[call.id]
            if isinstance(error, OSError):
                raise _unwritable(error) from error
            raise
        self.counters.calls += 1
        return call

    def attempt(self, call: Call) -> None:
        """One more connection for `call`. Raises Overloaded when the hour has no room for it, BrokerDisabled when
        nothing may leave any more."""
        self._forget_old()
        if self.mode is BrokerMode.DISABLED:
            raise BrokerDisabled("the broker was switched off meanwhile", mode=self.mode.value)
        if call.attempts and len(self._calls_s) >= self.policy.requests_per_hour:
            wait_s = HOUR_S - (self.wall_s() - self._calls_s[0])
            raise Overloaded("the calls of this hour are used up", retry_after_s=max(1, round(wait_s)))
        call.attempts += 1
        self._calls_s.append(self.wall_s())

    async def settle(self, call: Call, end: GenerationEnd | None, outcome: str) -> None:
        """The call is over: `end` is its provider's end, null when there was none. What it used up is then its bound,
        unless nothing left. `outcome` is a word: finished, cancelled, or the code of an error. Never raises."""
        tokens, nusd = self._used(call, end)
        self._turn_day()
        del self._running[call.id]
        self._tokens += tokens
        self._nusd += nusd
        self.counters.failed += end is None and outcome != "cancelled"
        line = self._line(call, "ended") | {
            "outcome": outcome,
            "attempts": call.attempts,
            "bytes_out": call.permit.meter.bytes_out,
            "tokens": tokens,
            "nusd": nusd,
            "counted": end is not None and end.prompt_tokens is not None and end.eval_count is not None,
            "duration_ms": round(1000 * (self.wall_s() - call.began_s)),
        }
        with trio.move_on_after(WRITE_S, shield=True):
            try:
                await self.log.write(line)
            except OSError as error:
                logger.error("the end of a call could not be written down: %s", error.strerror)
                self._set(BrokerMode.DISABLED)

    # ── what was used up ──

    def spent(self) -> Spent:
        """Running calls count with their bounds."""
        self._forget_old()
        self._turn_day()
        now_s, running = self.wall_s(), self._running.values()
        waiting = sum(1 for call in running if not call.attempts)
        return Spent(
            calls_last_hour=len(self._calls_s) + waiting,
            next_call_s=HOUR_S - (now_s - self._calls_s[0]) if self._calls_s else 0.0,
            tokens_today=self._tokens + sum(call.tokens_max for call in running),
            nusd_today=self._nusd + sum(call.nusd_max for call in running),
            day_left_s=DAY_S - now_s % DAY_S,
        )

    def remember(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take over what earlier engines wrote: the calls of the last hour, and what today's used up. A call without an
        end counts with its bounds."""
        self._turn_day()
        open_calls: dict[str, Mapping[str, Any]] = {}
        for line in lines:
            match line.get("event"):
                case "asked":
                    open_calls[str(line.get("call"))] = line
                case "ended":
                    asked = open_calls.pop(str(line.get("call")), line)
                    self._remember(_number(asked, "at_s"), _number(line, "tokens"), _number(line, "nusd"), line)
        for line in open_calls.values():
            self._remember(_number(line, "at_s"), _number(line, "tokens_max"), _number(line, "nusd_max"), {})
        self._calls_s = deque(sorted(self._calls_s), maxlen=CALLS_MAX)

    def _remember(self, at_s: float, tokens: float, nusd: float, ended: Mapping[str, Any]) -> None:
        if self.wall_s() - HOUR_S < at_s <= self.wall_s():
            self._calls_s.extend([at_s] * max(1, min(100, int(_number(ended, "attempts")))))
        if int(at_s // DAY_S) == self._day:
            self._tokens += int(tokens)
            self._nusd += int(nusd)

    def _used(self, call: Call, end: GenerationEnd | None) -> tuple[int, int]:
        if end is None and not call.permit.meter.bytes_out:
            return 0, 0
        if end is None or end.prompt_tokens is None or end.eval_count is None:
            return call.tokens_max, call.nusd_max
        return end.prompt_tokens + end.eval_count, call.price.of(end.prompt_tokens, end.eval_count)

    def _forget_old(self) -> None:
        horizon_s = self.wall_s() - HOUR_S
        while self._calls_s and self._calls_s[0] <= horizon_s:
            self._calls_s.popleft()

    def _turn_day(self) -> None:
        day = int(self.wall_s() // DAY_S)
        if day != self._day:
            self._day, self._tokens, self._nusd = day, 0, 0

    def _at(self) -> str:
        return datetime.fromtimestamp(self.wall_s(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    def _line(self, call: Call, event: str) -> dict[str, Any]:
        satellite = call.satellite
        return {
            "at": self._at(),
            "at_s": round(call.began_s, 3),
            "event": event,
            "call": call.id,
            "provider": satellite.provider,
            "host": satellite.host,
            "model": satellite.model,
            "mode": self.mode.value,
            "occasion": call.occasion.value,
            "tokens_max": call.tokens_max,
            "nusd_max": call.nusd_max,
        }


def _number(line: Mapping[str, Any], name: str) -> float:
    value = line.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        return 0.0
    return float(value)


def _unwritable(error: OSError) -> EngineError:
    return RuntimeUnavailable(
        f"the broker's record cannot be written ({error.strerror}), so nothing leaves this machine"
    )
