"""The parts that answers are made of: an endless text, and as much of it as was asked for, at the schedule's pace."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import Final

import attrs
import msgspec

from engine.domain.generation import TokenLogprob
from transport.mock_ollama.language import EVEN, tokens
from transport.mock_ollama.requests import Ask, Kind
from transport.mock_ollama.script import Done, Phase, Say, Schedule, Step, Wait

ANSWER_TOKENS_MAX: Final = 100_000
FAULT_AFTER: Final = 8  # tokens before a fault in the middle
GENTLE_LOAD_MS: Final = 20.0
LOADED_MS: Final = 1.0  # Ollama reports some load time for a loaded model, too

Steps = Iterator[Step]


@attrs.frozen
class Job:
    """A question, with what it depends on besides: how often this model was asked before, how long it loads."""

    ask: Ask
    schedule: Schedule
    nth: int = 0
    load_ms: float = LOADED_MS  # until the model is in memory
    length: int | None = None  # of this behaviour's answers, instead of the schedule's

    @property
    def tokens(self) -> int:
        return min(self.ask.num_predict or self.length or self.schedule.tokens, ANSWER_TOKENS_MAX)

    @property
    def seed(self) -> str:
        return f"{self.schedule.seed}/{self.ask.model}/{self.ask.seed}"

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """A word is a token."""
        return tuple(zlib.crc32(word.encode("utf-8", "replace")) % 32_000 for word in self.ask.prompt.split()) or (0,)


def words(job: Job, moods: tuple[float, ...] = EVEN) -> Iterator[Say]:
    """The endless text, a token a record, with as many log-probabilities as were asked for."""
    for token in tokens(job.seed, moods):
        yield Say(token.token, logprobs=as_asked(job, token))


def opening(job: Job) -> Steps:
    yield Wait(job.load_ms, Phase.LOAD)
    yield Wait(job.schedule.ttft_ms, Phase.PREFILL)


def speak(job: Job, says: Iterator[Say]) -> Generator[Step, None, Done]:
    """As much of `says` as is wanted, at the schedule's pace; returns the terminal record. Text that could begin a stop
    string is held back; the stop string is not said."""
    spoken, held = 0, list[Say]()
    reason = "length" if job.ask.num_predict else "stop"
    for say in says:
        if spoken and job.schedule.tps:
            yield Wait(job.schedule.gap_ms * say.tokens)
        if spoken + say.tokens > job.tokens:
            spoken = job.tokens  # the rest of a character that does not fit is never shown
            break
        spoken += say.tokens
        held.append(say)
        text = "".join(one.text for one in held)
        stop_at = _first_stop(text, job.ask.stops)
        if stop_at is not None:
            reason = "stop"
            held = [Say(text[:stop_at], say.kind)] if stop_at else []
            break
        if not _may_stop(text, job.ask.stops):
            yield from held
            held.clear()
        if spoken == job.tokens:
            break
    yield from held
    context = () if job.ask.raw else job.prompt_ids + tuple(range(spoken))
    return Done(reason, spoken, len(job.prompt_ids), context if job.ask.kind is Kind.GENERATE else ())


def answer(job: Job, says: Iterator[Say] | None = None) -> Steps:
    yield from opening(job)
    yield (yield from speak(job, words(job) if says is None else says))


def beginning(job: Job, count: int = FAULT_AFTER) -> Steps:
    """The answer up to its token `count`, without its end."""
    said = 0
    for step in answer(job):
        if isinstance(step, Done):
            return
        yield step
        if isinstance(step, Say):
            said += step.tokens
            if said >= count:
                return


def as_asked(job: Job, token: TokenLogprob) -> tuple[TokenLogprob, ...]:
    """The token's entry with as many alternatives as the client wants, or none at all."""
    count = job.ask.top_logprobs
    return () if count is None else (msgspec.structs.replace(token, top=token.top[:count]),)


def _first_stop(text: str, stops: tuple[str, ...]) -> int | None:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found, default=None)


def _may_stop(text: str, stops: tuple[str, ...]) -> bool:
    """Whether the end of `text` is the beginning of a stop string."""
    return any(text.endswith(stop[:n]) for stop in stops for n in range(1, min(len(stop), len(text) + 1)))
