"""What each model does: one generator of steps per behaviour, pure."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator
from random import Random
from typing import Any, Final

import attrs
import msgspec

from engine.domain.generation import TokenKind, TokenLogprob, TopEntry
from transport.mock_ollama.language import MOODY
from transport.mock_ollama.requests import Property
from transport.mock_ollama.script import Bare, Cut, Damaged, Done, Fail, Raw, Reset, Say, Stall, ToolCall, Wait
from transport.mock_ollama.speech import Job, Steps, answer, as_asked, beginning, opening, words

SHORT_CONTEXT_LENGTH: Final = 64
KEPT_WORDS: Final = SHORT_CONTEXT_LENGTH // 2  # of a prompt that does not fit
COALESCED_TOKENS: Final = 4
FEWER_EVERY: Final = 4  # every fourth record is one character of three tokens, reported as one
FLOOD_TOKENS: Final = 50_000
DRIP_TOKENS: Final = 4
DRIP_GAP_MS: Final = 50.0
THINKING_TOKENS: Final = 12
TOOL_TOKENS: Final = 20
BUSY_TIMES: Final = 2
REPEATS: Final = 31
LATE_RECORDS: Final = 3
BLOCK_BYTES: Final = 65_536
ENDLESS_BYTES: Final = 1 << 30
NESTING: Final = 100_000
CRASHED: Final = "an error was encountered while running the model: unexpected EOF"
BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"

_MARK: Final = "MARK"  # in the text of a record that is damaged there
_CHARACTER: Final = "🙂"
_AGAIN: Final = TokenLogprob(" again", 0.0, (TopEntry(" again", 0.0),))


def not_found(model: str) -> Fail:
    return Fail(f"model '{model}' not found", 404)


def steady(job: Job) -> Steps:
    return answer(job)


def logprobs(job: Job) -> Steps:
    return answer(job, words(job, MOODY))


def nologprobs(job: Job) -> Steps:
    return answer(job, (attrs.evolve(say, logprobs=()) for say in words(job)))


def thinking(job: Job) -> Steps:
    says = words(job)
    if job.ask.think is False:
        return answer(job, says)
    thoughts = (attrs.evolve(say, kind=TokenKind.THINKING) for say in itertools.islice(says, THINKING_TOKENS))
    return answer(job, itertools.chain(thoughts, says))


def tools(job: Job) -> Steps:
    """While a call is being written its text is held back; its log-probabilities are not."""
    if not job.ask.tools:
        yield from answer(job)
        return
    function = job.ask.tools[0].function
    properties = (function.parameters.properties if function.parameters else None) or {}
    arguments = {name: _example(property_) for name, property_ in properties.items()}
    random = Random(f"{job.seed}/{job.nth}")
    call = ToolCall(
        "call_" + "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=8)), function.name, arguments
    )
    yield from opening(job)
    for i, say in enumerate(itertools.islice(words(job), TOOL_TOKENS)):
        if i:
            yield Wait(job.schedule.gap_ms)
        if say.logprobs:
            yield attrs.evolve(say, text="")
    yield Say(tool_calls=(call,), tokens=0 if job.ask.top_logprobs is not None else TOOL_TOKENS)
    yield Done("stop", TOOL_TOKENS, len(job.prompt_ids))


def coalesced(job: Job) -> Steps:
    says, left = words(job), job.tokens

    def groups() -> Iterator[Say]:
        nonlocal left
        while left:
            group = list(itertools.islice(says, min(COALESCED_TOKENS, left)))
            left -= len(group)
            entries = tuple(entry for say in group for entry in say.logprobs)
            yield Say("".join(say.text for say in group), logprobs=entries, tokens=len(group))

    return answer(job, groups())


def fewer(job: Job) -> Steps:
    def some_merged() -> Iterator[Say]:
        for position, say in enumerate(words(job), start=1):
            if position % FEWER_EVERY:
                yield say
            else:
                yield Say(_CHARACTER, logprobs=tuple(_renamed(entry) for entry in say.logprobs), tokens=3)

    return answer(job, some_merged())


def stall(job: Job) -> Steps:
    yield from beginning(job)
    yield Stall()


def stall_first(job: Job) -> Steps:
    yield Stall()


def cut(job: Job) -> Steps:
    yield from beginning(job)
    yield Cut()


def rst(job: Job) -> Steps:
    yield from beginning(job)
    yield Reset()


def cut_json(job: Job) -> Steps:
    yield from beginning(job)
    yield Damaged(next(words(job)), lambda line: line[: len(line) // 2])
    yield Cut()


def bad_chunk(job: Job) -> Steps:
    yield from beginning(job)
    yield Bare(b"what is this\r\n")
    yield Cut()


def flood(job: Job) -> Steps:
    rushed = attrs.evolve(job, schedule=attrs.evolve(job.schedule, tps=0.0), length=FLOOD_TOKENS)
    return answer(rushed)


def drip(job: Job) -> Steps:
    return answer(attrs.evolve(job, length=DRIP_TOKENS))


def garbage(job: Job) -> Steps:
    """Lines that are no records, of ever more malicious kinds, between good ones."""
    lines = (b"this is not JSON", b"[1, 2, 3]", b'{"model": 1, "done": "yes"}', b"\x00\x80\xff", b"[" * NESTING, b"")
    says = answer(job)
    for line in lines:
        yield from itertools.islice(says, 3)
        yield Raw(line + b"\n")
    yield from says


def bad_utf8(job: Job) -> Steps:
    steps = answer(job)
    yield from itertools.islice(steps, 3)
    yield Damaged(Say(f" {_MARK}"), lambda line: line.replace(_MARK.encode(), b"\xff\xfe\xc3("))
    yield from steps


def endless_line(job: Job) -> Steps:
    yield from opening(job)
    yield Damaged(Say(_MARK), lambda line: line.partition(_MARK.encode())[0])
    block = Raw(b"a" * BLOCK_BYTES)
    yield from itertools.repeat(block, ENDLESS_BYTES // BLOCK_BYTES)


def gzip_bomb(job: Job) -> Steps:
    """One long JSON string, a thousand times smaller on the wire."""
    yield from opening(job)
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    yield Raw(packer.compress(b'{"response":"') + packer.flush(zlib.Z_SYNC_FLUSH))
    block = b"a" * BLOCK_BYTES
    for _ in range(ENDLESS_BYTES // BLOCK_BYTES):
        yield Raw(packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH))
    yield Raw(packer.compress(b'","done":true}\n') + packer.flush())


def missing(job: Job) -> Steps:
    """Until it was pulled: the server knows when, and then it is steady."""
    yield not_found(job.ask.model)


def busy(job: Job) -> Steps:
    if job.nth < BUSY_TIMES:
        yield Fail(BUSY, 503)
    else:
        yield from answer(job)


def error_line(job: Job) -> Steps:
    yield from beginning(job)
    yield Fail(CRASHED)


def repeat_guard(job: Job) -> Steps:
    yield from opening(job)
    yield next(words(job))
    for say in itertools.repeat(Say(" again", logprobs=as_asked(job, _AGAIN)), REPEATS):
        yield Wait(job.schedule.gap_ms)
        yield say


def silent_end(job: Job) -> Steps:
    return beginning(job)


def late_records(job: Job) -> Steps:
    yield from answer(job)
    yield from itertools.islice(words(job), LATE_RECORDS)


def long_prompt_cut(job: Job) -> Steps:
    count = len(job.prompt_ids)
    if count <= SHORT_CONTEXT_LENGTH:
        yield from answer(job)
    elif not job.ask.truncate:
        yield Fail(_exceeds(count), 400)
    else:
        kept = " ".join(job.ask.prompt.split()[-KEPT_WORDS:])
        yield from answer(attrs.evolve(job, ask=attrs.evolve(job.ask, prompt=kept)))


def _renamed(entry: TokenLogprob) -> TokenLogprob:
    """The entry as if the token drawn had been the character."""
    replace = msgspec.structs.replace
    top = tuple(replace(one, token=_CHARACTER) if one.token == entry.token else one for one in entry.top)
    return replace(entry, token=_CHARACTER, top=top)


def _example(property_: Property) -> Any:
    """An argument of the right type."""
    type_ = property_.type[0] if isinstance(property_.type, list) and property_.type else property_.type
    examples = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    return examples.get(type_, "Oslo") if isinstance(type_, str) else "Oslo"


def _exceeds(prompt_tokens: int) -> str:
    """Ollama passes on the JSON of its runner, as a string."""
    size = SHORT_CONTEXT_LENGTH
    error = {
        "code": 400,
        "message": f"request ({prompt_tokens} tokens) exceeds the available context size ({size} tokens)",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": prompt_tokens,
        "n_ctx": size,
    }
    return json.dumps({"error": error})
