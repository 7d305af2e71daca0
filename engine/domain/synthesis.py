"""Which answer of a council is given, and how far its members agreed. Pure; nothing here changes a text."""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from engine.domain.agreement import COMPARED_BYTES_MAX, agreement_of_grams, grams, is_cut

DISSENT_BELOW: Final = 0.5  # less than half of the wording in common with the chosen answer


class CouncilMethod(enum.StrEnum):
    """How a council comes to one answer."""

    BEST_CERTAINTY = "best_certainty"
    CONSENSUS = "consensus"
    FIRST = "first"
    JUDGE = "judge"


class MemberState(enum.StrEnum):
    """FINISHED: the model ended its answer. LENGTH: it reached max_tokens. RUNNING: not done when the choice was made.
    FAILED: the runtime or the model. CUT: we ended it, or its runtime broke off."""

    FINISHED = "finished"
    LENGTH = "length"
    RUNNING = "running"
    FAILED = "failed"
    CUT = "cut"


ANSWERED: Final = frozenset({MemberState.FINISHED, MemberState.LENGTH})


@attrs.frozen
class MemberAnswer:
    """What one member has said. `certainty` is the mean over its tokens, in [0, 1] (None: its runtime reports none).
    `finished_order` counts from 0 in the order in which members ended. `reason` says why it failed or was cut, in words
    that may be shown."""

    stream_id: str
    model: str
    text: str = attrs.field(repr=False)
    certainty: float | None
    tokens: int
    state: MemberState
    finished_order: int | None = None
    reason: str | None = None


@attrs.frozen
class PairAgreement:
    """Two members (stream ids, in the order of the council) and the agreement of their texts, in [0, 1]."""

    first: str
    second: str
    agreement: float


@attrs.frozen
class Dissent:
    """An answer that was not chosen and has less than DISSENT_BELOW in common with the one that was; kept as it was
    said."""

    stream_id: str
    model: str
    agreement: float
    text: str = attrs.field(repr=False)


@attrs.frozen
class Dropout:
    """A member whose answer did not count, and why."""

    stream_id: str
    model: str
    state: MemberState
    reason: str


@attrs.frozen
class AgreementReport:
    """How far those who answered agreed.

    `means` is each one's mean agreement with the others, `mean` that over all pairs; None when nobody else answered.
    `cut`: a text was longer than COMPARED_BYTES_MAX, and only that much of it was compared.
    """

    pairs: tuple[PairAgreement, ...]
    means: Mapping[str, float | None]
    mean: float | None
    dissent: tuple[Dissent, ...]
    dropped: tuple[Dropout, ...]
    cut: bool


@attrs.frozen
class Choice:
    """The answer of a council: `text` is the member's, byte for byte. `member` is None, and the text empty, when nobody
    answered. `method` is the one that decided; it differs from the one asked for when a judge gave no verdict.

    `confidence`, in [0, 1], is the chosen member's mean certainty (best_certainty) or its mean agreement with the
    others (consensus). It is None where nothing was measured: with first, with judge, and with nothing to compare.
    """

    member: str | None
    text: str = attrs.field(repr=False)
    method: CouncilMethod
    confidence: float | None
    reason: str
    report: AgreementReport


@attrs.frozen
class ModelPair:
    models: tuple[str, ...]  # two
    agreement: float


@attrs.frozen
class WordingAgreement:
    """Of the texts, as engine/domain/agreement.py defines it; `cut`: only `compared_bytes_max` of one were compared."""

    mean: float | None
    pairs: tuple[ModelPair, ...]
    compared_bytes_max: int
    cut: bool


@attrs.frozen
class ReportedMember:
    """`agreement` is its mean with the others, null where its answer did not count."""

    model: str
    stream_id: str
    state: MemberState
    tokens: int
    certainty: float | None
    agreement: float | None


@attrs.frozen
class ReportedDissent:
    """`text` is null in events, which carry none."""

    model: str
    stream_id: str
    agreement: float
    text: str | None


@attrs.frozen
class ReportedDropout:
    model: str
    state: MemberState
    reason: str


@attrs.frozen
class CouncilReport:
    """How a council came to its answer, by the public names of its models."""

    method: CouncilMethod
    chosen: str | None
    confidence: float | None
    reason: str
    agreement: WordingAgreement
    members: tuple[ReportedMember, ...]
    dissent: tuple[ReportedDissent, ...]
    dropped: tuple[ReportedDropout, ...]


def candidates(answers: Sequence[MemberAnswer]) -> tuple[MemberAnswer, ...]:
    """Those who came to the end of an answer, in the given order. One without words counts only if all are."""
    answered = tuple(answer for answer in answers if answer.state in ANSWERED)
    return tuple(answer for answer in answered if answer.text.strip()) or answered


def choose(
    method: CouncilMethod,
    answers: Sequence[MemberAnswer],
    *,
    spoke_first: str | None = None,
    verdict: int | None = None,
) -> Choice:
    """The answer of the council among its `candidates`, with the report.

    Six long answers take 20 ms (15 pairs, see engine/domain/agreement.py): run it in a worker thread.

    - best_certainty: the highest mean certainty; those without one come last.
    - consensus: the one that agrees most with the others on average (the medoid); of equals the more certain one. Two
      members always agree equally with each other, so between two it is the certainty that decides.
    - first: who ended first. `spoke_first` (a stream id) is who began first when its words were sent on as they came:
      it is chosen whatever became of it, for they cannot be taken back.
    - judge: `verdict` is an index into `candidates(answers)`; None (the judge gave none) falls back to consensus.

    What is still equal goes by the order of `answers`. Raises ValueError for a stream id that is not there or there
    twice, and IndexError for a verdict outside the candidates.
    """
    ids = [answer.stream_id for answer in answers]
    if len(set(ids)) < len(ids) or (spoke_first is not None and spoke_first not in ids):
        raise ValueError("the stream ids of a council are distinct, and the first speaker is one of them")
    able = candidates(answers)
    live = spoke_first if method is CouncilMethod.FIRST else None
    compared = tuple(answer for answer in answers if answer.stream_id in {live, *(each.stream_id for each in able)})
    pairs = _pairs(compared)
    means = _means(compared, pairs)
    if live is not None:
        chosen: MemberAnswer | None = next(answer for answer in answers if answer.stream_id == live)
        decided_by, confidence, reason = method, None, "it spoke first, and was sent on as it came"
    else:
        chosen, decided_by, confidence, reason = _pick(method, able, means, verdict)
    return Choice(
        member=None if chosen is None else chosen.stream_id,
        text="" if chosen is None else chosen.text,
        method=decided_by,
        confidence=confidence,
        reason=reason,
        report=_report(answers, compared, pairs, means, chosen),
    )


def council_report(choice: Choice, answers: Sequence[MemberAnswer], *, texts: bool) -> CouncilReport:
    """The choice as it is told: in `council.synthesis`, and in the field `wf` of a reply. The dissent is kept in words
    with `texts`, else only named: of all events only those of tokens carry text."""
    report = choice.report
    models = {answer.stream_id: answer.model for answer in answers}
    return CouncilReport(
        method=choice.method,
        chosen=None if choice.member is None else models[choice.member],
        confidence=choice.confidence,
        reason=choice.reason,
        agreement=WordingAgreement(
            mean=report.mean,
            pairs=tuple(ModelPair((models[p.first], models[p.second]), p.agreement) for p in report.pairs),
            compared_bytes_max=COMPARED_BYTES_MAX,
            cut=report.cut,
        ),
        members=tuple(
            ReportedMember(a.model, a.stream_id, a.state, a.tokens, a.certainty, report.means.get(a.stream_id))
            for a in answers
        ),
        dissent=tuple(
            ReportedDissent(d.model, d.stream_id, d.agreement, d.text if texts else None) for d in report.dissent
        ),
        dropped=tuple(ReportedDropout(d.model, d.state, d.reason) for d in report.dropped),
    )


def _pick(
    method: CouncilMethod, able: Sequence[MemberAnswer], means: Mapping[str, float | None], verdict: int | None
) -> tuple[MemberAnswer | None, CouncilMethod, float | None, str]:
    """Who is chosen, by which method, with what confidence and why. `max` and `min` keep the order of equals."""
    if not able:
        return None, method, None, "no member gave an answer"
    if method is CouncilMethod.BEST_CERTAINTY:
        best = max(able, key=_certainty)
        if best.certainty is None:
            return best, method, None, "no member has a certainty; it is the first of the list"
        return best, method, best.certainty, "its mean certainty is the highest"
    if method is CouncilMethod.FIRST:
        return min(able, key=_finished_order), method, None, "it ended first"
    if method is CouncilMethod.JUDGE and verdict is not None:
        if verdict < 0:
            raise IndexError("a verdict counts the candidates from 0")
        return able[verdict], method, None, "the judge named it"
    why = "the judge gave no verdict; " if method is CouncilMethod.JUDGE else ""
    medoid = max(able, key=lambda answer: (means[answer.stream_id] or 0.0, _certainty(answer)))
    alone = len(able) == 1
    why += "it is the only one that gave an answer" if alone else "it agrees most with the others"
    return medoid, CouncilMethod.CONSENSUS, means[medoid.stream_id], why


def _certainty(answer: MemberAnswer) -> float:
    return -1.0 if answer.certainty is None else answer.certainty


def _finished_order(answer: MemberAnswer) -> float:
    return math.inf if answer.finished_order is None else answer.finished_order


def _report(
    answers: Sequence[MemberAnswer],
    compared: Sequence[MemberAnswer],
    pairs: tuple[PairAgreement, ...],
    means: Mapping[str, float | None],
    chosen: MemberAnswer | None,
) -> AgreementReport:
    near = {
        pair.second if pair.first == chosen.stream_id else pair.first: pair.agreement
        for pair in pairs
        if chosen is not None and chosen.stream_id in (pair.first, pair.second)
    }
    return AgreementReport(
        pairs=pairs,
        means=means,
        mean=math.fsum(pair.agreement for pair in pairs) / len(pairs) if pairs else None,
        dissent=tuple(
            Dissent(answer.stream_id, answer.model, near[answer.stream_id], answer.text)
            for answer in compared
            if near.get(answer.stream_id, 1.0) < DISSENT_BELOW
        ),
        dropped=tuple(
            Dropout(answer.stream_id, answer.model, answer.state, answer.reason or _why_not(answer.state))
            for answer in answers
            if answer.stream_id not in means
        ),
        cut=any(is_cut(answer.text) for answer in compared),
    )


def _why_not(state: MemberState) -> str:
    match state:
        case MemberState.RUNNING:
            return "it was still running when the choice was made"
        case MemberState.FAILED:
            return "it failed"
        case MemberState.CUT:
            return "it was ended before its answer was complete"
        case _:
            return "it ended without words"


def _pairs(compared: Sequence[MemberAnswer]) -> tuple[PairAgreement, ...]:
    texts = [(answer.stream_id, grams(answer.text)) for answer in compared]
    return tuple(
        PairAgreement(first, second, agreement_of_grams(one, other))
        for (first, one), (second, other) in itertools.combinations(texts, 2)
    )


def _means(compared: Sequence[MemberAnswer], pairs: Sequence[PairAgreement]) -> dict[str, float | None]:
    """Exactly rounded sums, so that the order of the members cannot tip a balance."""
    with_others: dict[str, list[float]] = {answer.stream_id: [] for answer in compared}
    for pair in pairs:
        with_others[pair.first].append(pair.agreement)
        with_others[pair.second].append(pair.agreement)
    return {member: math.fsum(values) / len(values) if values else None for member, values in with_others.items()}
