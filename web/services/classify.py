"""`/classify_domain`, `/extract_tmd` and `/validate_domain`: the model is asked for a label of a vocabulary.

Each question is a session of the service's own model, seen on the dashboard as any other. What the model says counts
only when it is in the vocabulary; else the vocabulary's own fallback stands there, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final, Literal, TypeVar

import attrs
import msgspec
from quart import Response, request

from actors.reply_line import Ended, ReplyLine
from actors.session import SessionRequest
from engine.domain.errors import InvalidRequest
from engine.domain.generation import (
    Chunk,
    EndReason,
    GenerationRequest,
    Origin,
    Parameters,
    TokenKind,
    TokenLogprob,
)
from policies.labels import Reading, read_label
from policies.selection import wants_of
from policies.taxonomy import Vocabulary, fitted, messages
from transport.wire.commands import printable
from transport.wire.dialects.openai_asks import refused
from transport.wire.records import TOP_ASKED_MAX
from transport.wire.request_json import decode
from web.handles import on_leave
from web.lens.flow import failure_of
from web.service_bodies import (
    Classified,
    DomainChance,
    DomainVerdict,
    Extracted,
    Tmd,
    TmdConfidence,
    TmdReason,
    TmdValidated,
    told,
)
from web.services.service import Chosen, Service

QUERY_CHARS_MAX: Final = 8_192
DOCS_MAX: Final = 64
DOC_CHARS_MAX: Final = 65_536
TOP_MAX: Final = 100
PROBABILITY_DIGITS: Final = 6
SWITCHES_THINKING_OFF: Final = frozenset({"ollama", "llama_cpp"})  # kinds that know the switch for every model
NO_LOGPROBS: Final = "the runtime gave no log-probabilities"
NO_LABEL: Final = "the model answered with no label of the vocabulary"
NOT_SEEN: Final = "the label was not among the candidates that the runtime reported"

B = TypeVar("B", bound=msgspec.Struct)
Source = Literal["label_logprobs", "none"]
Query = Annotated[str, msgspec.Meta(min_length=1, max_length=QUERY_CHARS_MAX)]
Doc = Annotated[str, msgspec.Meta(max_length=DOC_CHARS_MAX)]


class ClassifyBody(msgspec.Struct, forbid_unknown_fields=True):
    query: Query
    top_k: Annotated[int, msgspec.Meta(ge=1, le=TOP_MAX)] = 3


class ExtractBody(msgspec.Struct, forbid_unknown_fields=True):
    query: Query
    context_docs: Annotated[list[Doc], msgspec.Meta(max_length=DOCS_MAX)] = []


class ValidateBody(msgspec.Struct, forbid_unknown_fields=True):
    domain: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


_classify_decoder: Final = msgspec.json.Decoder(ClassifyBody)
_extract_decoder: Final = msgspec.json.Decoder(ExtractBody)
_validate_decoder: Final = msgspec.json.Decoder(ValidateBody)


@attrs.frozen
class Judged:
    """A label of the vocabulary. `validated`: the model said it itself. `confidence` (0–1) is null with a reason."""

    label: str
    confidence: float | None
    validated: bool
    reason: str | None


async def classify_domain(service: Service) -> Response:
    """Domains after the first are those that the model considered, at most `top_k` in all."""
    began_us = service.engine.clock()
    body = await _body(_classify_decoder)
    query = _words(body.query)
    domains, chosen = service.taxonomy.domains, await service.choose()
    reading = await _ask(service, chosen, domains, query)
    first = judged(reading, domains)
    others = [(label, chance) for label, chance in reading.ranked() if label != first.label]
    listed = [(first.label, first.confidence), *others][: body.top_k]
    service.took(began_us)
    answer = Classified(
        query=body.query,
        domains=[DomainChance(label, _shown(chance)) for label, chance in listed],
        primary_domain=first.label,
        validated=first.validated,
        confidence_source=_source(reading),
        confidence_reason=first.reason,
        domain_taxonomy_version=domains.version,
        model=chosen.model.name,
        fallback_reason=chosen.fallback_reason,
    )
    return told(answer, headers=chosen.headers())


async def extract_tmd(service: Service) -> Response:
    """The triplet is always whole; `validated` says what of it is the model's own word."""
    began_us = service.engine.clock()
    body = await _body(_extract_decoder)
    query, taxonomy = _words(body.query), service.taxonomy
    context = fitted(body.context_docs, taxonomy.prompt.context_chars_max)
    chosen = await service.choose()
    found: dict[str, Judged] = {}
    source: Source = "label_logprobs"
    for part, vocabulary in taxonomy.vocabularies().items():
        reading = await _ask(service, chosen, vocabulary, query, context.texts)
        found[part] = judged(reading, vocabulary)
        source = _source(reading)
    service.took(began_us)
    answer = Extracted(
        query=body.query,
        tmd=Tmd(**{part: one.label for part, one in found.items()}),
        confidence=TmdConfidence(**{part: _shown(one.confidence) for part, one in found.items()}),
        validated=TmdValidated(**{part: one.validated for part, one in found.items()}),
        confidence_source=source,
        confidence_reason=TmdReason(**{part: one.reason for part, one in found.items()}),
        context_docs_used=len(context.texts),
        context_chars_dropped=context.chars_dropped,
        **versions(service),
        model=chosen.model.name,
        fallback_reason=chosen.fallback_reason,
    )
    return told(answer, headers=chosen.headers())


async def validate_domain(service: Service) -> Response:
    """Whether a name is a domain, and the nearest one. No model is asked."""
    body = await _body(_validate_decoder)
    domains = service.taxonomy.domains
    label = domains.canonical(body.domain)
    return told(
        DomainVerdict(
            valid=label is not None,
            domain=label or printable(body.domain),
            nearest=label or domains.nearest(body.domain),
            domain_taxonomy_version=domains.version,
        )
    )


def versions(service: Service) -> dict[str, str]:
    taxonomy = service.taxonomy
    return {
        "domain_taxonomy_version": taxonomy.domains.version,
        "task_vocabulary_version": taxonomy.tasks.version,
        "method_vocabulary_version": taxonomy.methods.version,
    }


def judged(reading: Reading, vocabulary: Vocabulary) -> Judged:
    """The answer within the vocabulary, whatever was said."""
    known = reading.probabilities
    if reading.label is None:
        return Judged(vocabulary.fallback, None, False, NO_LABEL if known is not None else NO_LOGPROBS)
    if known is None:
        return Judged(reading.label, None, True, NO_LOGPROBS)
    confidence = known.get(reading.label)
    return Judged(reading.label, confidence, True, None if confidence is not None else NOT_SEEN)


async def _ask(
    service: Service, chosen: Chosen, vocabulary: Vocabulary, query: str, context: Sequence[str] = ()
) -> Reading:
    """One session, to its end. Raises what ended it. The caller's leaving stops it."""
    model, rules = chosen.model, service.taxonomy.prompt
    asked = GenerationRequest(
        model.info.name,
        messages=messages(vocabulary, rules, query, context),
        parameters=Parameters(temperature=0.0, max_tokens=rules.answer_tokens_max),
        think=False if model.runtime.kind in SWITCHES_THINKING_OFF else None,
        top_logprobs=TOP_ASKED_MAX,
    )
    line = ReplyLine()
    instead = service.engine.providers.stand_ins(model, wants_of(asked))
    again = service.engine.providers.again(model)
    session = service.engine.sessions.start(
        SessionRequest(model, asked, Origin.SERVICE, reply=line, again=again, instead=instead)
    )
    on_leave(request.scope, line.leave)
    on_leave(request.scope, partial(session.stop, EndReason.ABORTED))
    text, tokens = "", list[TokenLogprob]()
    while not isinstance(item := await line.next(), Ended):
        if isinstance(item, Chunk) and item.kind is TokenKind.ANSWER:
            text += item.text
            tokens += item.logprobs
    if item.end is None:
        raise failure_of(item)
    return read_label(tokens, text, vocabulary.labels)


async def _body(decoder: msgspec.json.Decoder[B]) -> B:
    """Raises InvalidRequest, always with the field in its details."""
    data = await request.get_data(as_text=False)
    assert isinstance(data, bytes)
    try:
        return decode(data, decoder)
    except InvalidRequest as error:
        error.details.setdefault("field", "body")
        raise


def _words(query: str) -> str:
    words = query.strip()
    if not words:
        raise refused("query", "is blank")
    return words


def _source(reading: Reading) -> Source:
    return "none" if reading.probabilities is None else "label_logprobs"


def _shown(chance: float | None) -> float | None:
    return None if chance is None else round(chance, PROBABILITY_DIGITS)
