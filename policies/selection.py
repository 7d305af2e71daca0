"""Which model answers in place of one that cannot be had, where the configuration allows that at all. Pure.

Nobody is asked here: what is known of each model at that moment is handed in, and the answer comes with the reason for
every model that was passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from engine.domain.generation import GenerationRequest, Message
from policies.breaker import BreakerState

DEMONSTRATION: Final = frozenset({"embedded", "synthetic"})  # they show the engine and never answer for another
CHARS_PER_TOKEN: Final = 4  # of English; other languages have fewer


@attrs.frozen
class Wants:
    """What a request needs of a model. `context_tokens`: at least so many."""

    context_tokens: int = 0
    tools: bool = False
    vision: bool = False
    logprobs: bool = False


def wants_of(request: GenerationRequest) -> Wants:
    """What this request needs. Its tokens are estimated, at four characters each, with the answer it asks for."""
    messages = request.messages or (Message("user", request.prompt or "", request.images),)
    texts = [request.system or "", *(message.content for message in messages)]
    size_chars = sum(map(len, texts))
    return Wants(
        context_tokens=size_chars // CHARS_PER_TOKEN + (request.parameters.max_tokens or 0),
        tools=bool(request.tools) and request.tool_choice != "none",
        vision=any(message.images for message in messages),
        logprobs=request.logprobs_wanted,
    )


@attrs.frozen
class Offer:
    """A model as far as choosing looks at it. Null: its runtime does not tell, which is no reason against it. `why_not`
    is what the broker has against it."""

    model: str
    provider: str
    kind: str
    local: bool
    up: bool = True
    breaker: BreakerState = BreakerState.CLOSED
    context_length: int | None = None
    tools: bool | None = None
    vision: bool | None = None
    logprobs: bool | None = None
    why_not: str | None = None


@attrs.frozen
class FallbackRules:
    """`order` names providers, best first; those it does not name are not asked. `preferred` are models by provider,
    best first. With `local_first` providers of this machine come before all others, whatever the order. A model of this
    machine is asked at most `attempts_max` times until it begins."""

    enabled: bool = False
    order: tuple[str, ...] = ()
    default_provider: str | None = None
    local_first: bool = True
    preferred: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    attempts_max: int = 1

    @property
    def providers(self) -> tuple[str, ...]:
        """In the order they are asked, each once."""
        first = () if self.default_provider is None else (self.default_provider,)
        return tuple(dict.fromkeys((*first, *self.order)))


@attrs.frozen
class Choice:
    """`chosen` is null when nobody is left. `passed` are (model, why not), in the order they were thought of."""

    chosen: Offer | None
    passed: tuple[tuple[str, str], ...] = ()


def choose(offers: Iterable[Offer], wants: Wants, rules: FallbackRules) -> Choice:
    """The first fit one, by provider, then by preference, then in the order they came."""
    passed: list[tuple[str, str]] = []
    for offer in ranked(offers, rules):
        reason = unfit(offer, wants)
        if reason is None:
            return Choice(offer, tuple(passed))
        passed.append((offer.model, reason))
    return Choice(None, tuple(passed))


def ranked(offers: Iterable[Offer], rules: FallbackRules) -> list[Offer]:
    """Those of the providers that the rules name, best first."""
    places = {provider: place for place, provider in enumerate(rules.providers)}

    def rank(offer: Offer) -> tuple[bool, int, int]:
        preferred = rules.preferred.get(offer.provider, ())
        own = offer.model.removeprefix(f"{offer.provider}/")
        liked = next((at for at, name in enumerate(preferred) if name in (offer.model, own)), len(preferred))
        return rules.local_first and not offer.local, places[offer.provider], liked

    return sorted((offer for offer in offers if offer.provider in places), key=rank)


def unfit(offer: Offer, wants: Wants) -> str | None:
    """Why this model cannot answer, or None."""
    if offer.kind in DEMONSTRATION:
        return "a demonstration model never answers for another"
    if not offer.up:
        return f"{offer.provider} does not answer"
    if offer.breaker is BreakerState.OPEN:
        return f"{offer.provider} has failed several times and is left alone for a while"
    if offer.context_length is not None and offer.context_length < wants.context_tokens:
        return f"its context is {offer.context_length} tokens, {wants.context_tokens} are needed"
    for able, wanted, what in (
        (offer.tools, wants.tools, "calls no tools"),
        (offer.vision, wants.vision, "sees no images"),
        (offer.logprobs, wants.logprobs, "gives no log-probabilities"),
    ):
        if wanted and able is False:
            return f"it {what}"
    return offer.why_not
