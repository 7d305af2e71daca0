"""Whether an answer may come from outside this machine, and what may leave for it. The answer is no, unless everything
says yes: the tier, the mode, the request itself, and the budgets. Pure.

The modes, each with all that the one before it allows:

    disabled   nothing leaves
    advisory   a request that names a satellite's model gets it
    fallback   a satellite may answer where no local model can
    hybrid     and where the local ones are busy
"""

# ruff: noqa: RUF009  # row() and section() make attrs fields

from __future__ import annotations

import enum
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, Literal

import attrs

from engine.domain.errors import BrokerDisabled, EngineError, Overloaded
from engine.domain.generation import GenerationRequest, Message
from engine.domain.usage import NANO_PER_USD, Price
from policies.breaker import BreakerRules
from policies.retry import RetryRules
from policies.schema import row, section

HEADER: Final = "x-wf-broker"
ALLOW: Final = "allow"
HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
TOKENS_BESIDE: Final = 16  # of a message besides its text: roles and separators, generously

# Whether the request at hand consents to be answered elsewhere; the tasks it starts inherit it.
CONSENT: Final[ContextVar[bool]] = ContextVar("wf_broker_consent", default=False)


class BrokerMode(enum.StrEnum):
    DISABLED = "disabled"
    ADVISORY = "advisory"
    FALLBACK = "fallback"
    HYBRID = "hybrid"


class Occasion(enum.StrEnum):
    """Why a satellite is thought of."""

    NAMED = "named"
    NO_LOCAL = "no_local"
    BUSY = "busy"


_ALLOWED: Final[Mapping[BrokerMode, frozenset[Occasion]]] = {
    BrokerMode.DISABLED: frozenset(),
    BrokerMode.ADVISORY: frozenset({Occasion.NAMED}),
    BrokerMode.FALLBACK: frozenset({Occasion.NAMED, Occasion.NO_LOCAL}),
    BrokerMode.HYBRID: frozenset(Occasion),
}
_OCCASION: Final[Mapping[Occasion, str]] = {
    Occasion.NAMED: "a model outside this machine",
    Occasion.NO_LOCAL: "an answer from outside where no local model can give one",
    Occasion.BUSY: "an answer from outside while the local models are busy",
}


@attrs.frozen
class RetryPolicy:
    attempts_max: int = row(doc="calls in all for one answer", unit="calls", minimum=1, maximum=10)
    base_s: float = row(doc="bound of the first pause; it doubles", unit="s", above=0, maximum=60)
    cap_s: float = row(doc="bound of every pause", unit="s", above=0, maximum=300)

    def rules(self) -> RetryRules:
        return RetryRules(self.attempts_max, self.base_s, self.cap_s)


@attrs.frozen
class BreakerPolicy:
    failures: int = row(doc="failures in a row that open it", unit="failures", minimum=1, maximum=1000)
    open_s: float = row(doc="how long it stays open; doubles", unit="s", above=0, maximum=3600)
    open_max_s: float = row(doc="and at most this", unit="s", above=0, maximum=86_400)
    trials: int = row(doc="calls let through at once afterwards", unit="calls", minimum=1, maximum=64)

    def rules(self) -> BreakerRules:
        return BreakerRules(self.failures, self.open_s, self.open_max_s, self.trials)


@attrs.frozen
class BrokerPolicy:
    """policies/broker.yaml with the user's changes."""

    schema_version: Literal["1.0"] = row(doc="version of this file's shape")
    requests_per_hour: int = row(doc="calls in any 60 minutes", unit="calls", minimum=1, maximum=100_000)
    first_token_s: float = row(doc="a call without its first token ends then", unit="s", above=0, maximum=600)
    call_max_s: float = row(doc="any call ends then", unit="s", above=0, maximum=3600)
    answer_tokens_max: int = row(doc="longest answer", unit="tokens", minimum=1, maximum=1_048_576)
    daily_tokens: int = row(doc="prompts and answers of a day (UTC)", unit="tokens", minimum=0, maximum=2**40)
    daily_usd: float = row(doc="what a day (UTC) may cost", unit="USD", minimum=0, maximum=100_000)
    context: Literal["question", "whole"] = row(doc="what of a request leaves: question or whole")
    busy_share: float = row(doc="of the local streams in use, from which they are busy", above=0, maximum=1)
    retry: RetryPolicy = section(doc="calls that failed before their first token")
    breaker: BreakerPolicy = section(doc="providers that keep failing")

    @property
    def daily_nusd(self) -> int:
        return round(self.daily_usd * NANO_PER_USD)


# ── what leaves ──


@attrs.frozen
class Leaving:
    """What of a request would leave, and what of it stays here. `request` is what is sent; the rest is counts, to be
    shown and recorded: there is no text in them."""

    request: GenerationRequest = attrs.field(repr=False)
    messages: int
    text_bytes: int
    images: int
    tools: int
    kept_here: Mapping[str, int]

    def shown(self) -> dict[str, object]:
        """Plain JSON values."""
        counts = {"messages": self.messages, "text_bytes": self.text_bytes, "images": self.images, "tools": self.tools}
        return counts | {"kept_here": dict(self.kept_here)}

    @property
    def tokens_max(self) -> int:
        """At most so many tokens are in it: none is shorter than a byte."""
        request = self.request
        images = [image for message in request.messages for image in message.images] + list(request.images)
        schemas = sum(len(tool.parameters.encode()) + len(tool.description.encode()) for tool in request.tools)
        beside = TOKENS_BESIDE * (self.messages + self.tools + 1)
        return self.text_bytes + sum(map(len, images)) + schemas + len((request.format or "").encode()) + beside


def minimised(request: GenerationRequest, policy: BrokerPolicy) -> Leaving:
    """What leaves of `request`: under `question` the last question alone, under `whole` all that was said; never what
    is about this machine (`keep_alive`, runner options, resuming). The answer's length gets a bound."""
    asked = request.parameters
    longest = min(asked.max_tokens or policy.answer_tokens_max, policy.answer_tokens_max)
    sent = attrs.evolve(
        request, parameters=attrs.evolve(asked, max_tokens=longest), keep_alive=None, runner_options={}, resume=None
    )
    if policy.context == "question":
        sent = attrs.evolve(
            sent,
            prompt=question_of(request),
            messages=(),
            system=None,
            images=(),
            tools=(),
            tool_choice="auto",
            continues=False,
        )
    before, after = _counts(request), _counts(sent)
    kept = {name: count - after[name] for name, count in before.items() if count > after[name]}
    return Leaving(sent, after["messages"], after["text_bytes"], after["images"], after["tools"], kept)


def question_of(request: GenerationRequest) -> str:
    """What the user said last."""
    if request.prompt is not None:
        return request.prompt
    said = (message.content for message in reversed(request.messages) if message.role == "user")
    return next(said, "")


def _counts(request: GenerationRequest) -> dict[str, int]:
    messages = request.messages or (Message("user", request.prompt or "", request.images),)
    texts = [request.system or "", request.suffix or ""]
    for message in messages:
        texts += [message.content, message.thinking, *(call.arguments for call in message.tool_calls)]
    return {
        "messages": len(messages) + (1 if request.system else 0),
        "text_bytes": sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
        "images": sum(len(message.images) for message in messages),
        "tools": len(request.tools),
    }


# ── whether it may ──


@attrs.frozen
class Spent:
    """What the calls so far have used up: of the last 60 minutes, and of this day. What runs is in it with its
    bounds. `next_call_s`: seconds until the oldest call of the 60 minutes is out of them."""

    calls_last_hour: int = 0
    next_call_s: float = 0.0
    tokens_today: int = 0
    nusd_today: int = 0
    day_left_s: float = DAY_S


@attrs.frozen
class Wanted:
    """A call somebody wants to be made: the bounds of what it will use up. `price` is null when nobody knows it."""

    occasion: Occasion
    consented: bool
    tokens_in_max: int
    tokens_out_max: int
    price: Price | None

    @property
    def tokens_max(self) -> int:
        return self.tokens_in_max + self.tokens_out_max

    @property
    def nusd_max(self) -> int | None:
        return None if self.price is None else self.price.of(self.tokens_in_max, self.tokens_out_max)


def may_assist(
    policy: BrokerPolicy, mode: BrokerMode, tier_allows: bool, wanted: Wanted, spent: Spent
) -> EngineError | None:
    """Why the call may not be made, or None. The first reason counts: tier, mode, consent, calls, tokens, money."""
    if not tier_allows:
        return BrokerDisabled("models outside this machine need the tier hybrid (`tier: hybrid`)", mode=mode.value)
    if wanted.occasion not in _ALLOWED[mode]:
        return BrokerDisabled(
            f"the broker is in mode {mode}, which does not allow {_OCCASION[wanted.occasion]}", mode=mode.value
        )
    if not wanted.consented:
        return BrokerDisabled(
            'this request would leave the machine; it has to consent: `"broker": "allow"`, or the header '
            f"`{HEADER}: {ALLOW}`",
            mode=mode.value,
        )
    return _over_budget(policy, wanted, spent)


def _over_budget(policy: BrokerPolicy, wanted: Wanted, spent: Spent) -> EngineError | None:
    calls_max, tokens_max, tomorrow_s = policy.requests_per_hour, policy.daily_tokens, max(1, round(spent.day_left_s))
    if spent.calls_last_hour >= calls_max:
        return Overloaded(
            f"{calls_max} calls have left this machine within an hour, the most allowed",
            limit=calls_max,
            retry_after_s=max(1, round(spent.next_call_s)),
        )
    if spent.tokens_today + wanted.tokens_max > tokens_max:
        return Overloaded(
            f"this call may take {wanted.tokens_max} tokens; {spent.tokens_today} of {tokens_max} are used up today",
            limit=tokens_max,
            retry_after_s=tomorrow_s,
        )
    cost_nusd = wanted.nusd_max
    if cost_nusd is None:
        return BrokerDisabled(
            "nobody knows what this model costs, so no cap can be kept; its price goes under policies.prices"
        )
    if spent.nusd_today + cost_nusd > policy.daily_nusd:
        return Overloaded(
            f"this call may cost {usd(cost_nusd)} USD; {usd(spent.nusd_today)} of {policy.daily_usd:g} are spent today",
            limit_usd=policy.daily_usd,
            retry_after_s=tomorrow_s,
        )
    return None


def usd(nusd: int) -> str:
    """For people: six decimals at most, rounded up, since it is held against a cap."""
    micro = -(-nusd // 1000)
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}".rstrip("0").rstrip(".")
