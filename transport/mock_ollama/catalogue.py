"""The models by name, with what each does; and the way from a question to its script. All of it is pure."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import attrs

from transport.mock_ollama import behaviours as does
from transport.mock_ollama.language import MOOD_TOKENS
from transport.mock_ollama.requests import Ask
from transport.mock_ollama.script import Done, Fail, Phase, Progress, Schedule, Script, Step, Wait, gathered
from transport.mock_ollama.speech import FAULT_AFTER, GENTLE_LOAD_MS, LOADED_MS, Job, Steps

CONTEXT_LENGTH: Final = 4096
SLOW_LOAD_MS: Final = 10_000.0
PULL_BYTES: Final = 1_000_000
PULL_STEPS: Final = 10
PULL_GAP_MS: Final = 100.0


@attrs.frozen
class Behaviour:
    """`about` completes "this model …". `headers` and `byte_gap_ms`: see Script."""

    about: str
    play: Callable[[Job], Steps]
    can: tuple[str, ...] = ()  # capabilities besides completion
    load_ms: float = GENTLE_LOAD_MS
    context_length: int = CONTEXT_LENGTH
    headers: tuple[tuple[str, str], ...] = ()
    byte_gap_ms: float = 0.0


BEHAVIOURS: Final[dict[str, Behaviour]] = {
    "mock:steady": Behaviour("answers at an even pace, with log-probabilities if asked", does.steady),
    "mock:logprobs": Behaviour(
        f"is sure and unsure by turns, {MOOD_TOKENS} tokens each: distributions sum to 1", does.logprobs
    ),
    "mock:nologprobs": Behaviour("never reports log-probabilities, as Ollama before 0.12.11", does.nologprobs),
    "mock:thinking": Behaviour(
        f"thinks for {does.THINKING_TOKENS} tokens, unless told `think: false`", does.thinking, ("thinking",)
    ),
    "mock:tools": Behaviour("calls the first tool it is given", does.tools, ("tools",)),
    "mock:coalesced": Behaviour(f"sends {does.COALESCED_TOKENS} tokens in each record", does.coalesced),
    "mock:fewer": Behaviour("reports fewer log-probabilities than eval_count", does.fewer),
    "mock:slow-load": Behaviour(
        f"takes {SLOW_LOAD_MS / 1000:.0f} s to load; leaving meanwhile drops it", does.steady, load_ms=SLOW_LOAD_MS
    ),
    "mock:stall": Behaviour(f"falls silent after {FAULT_AFTER} tokens, for ever", does.stall),
    "mock:stall-first": Behaviour("never sends anything, not even a response head", does.stall_first),
    "mock:cut": Behaviour(f"closes the connection (FIN) after {FAULT_AFTER} tokens", does.cut),
    "mock:rst": Behaviour(f"resets the connection (RST) after {FAULT_AFTER} tokens", does.rst),
    "mock:cut-json": Behaviour("closes the connection in the middle of a record", does.cut_json),
    "mock:bad-chunk": Behaviour("breaks the chunked coding, then closes the connection", does.bad_chunk),
    "mock:flood": Behaviour(f"sends {does.FLOOD_TOKENS} tokens as fast as it can", does.flood),
    "mock:drip": Behaviour(f"sends one byte every {does.DRIP_GAP_MS:.0f} ms", does.drip, byte_gap_ms=does.DRIP_GAP_MS),
    "mock:garbage": Behaviour("sends lines that are no records, one of them nested 100,000 deep", does.garbage),
    "mock:bad-utf8": Behaviour("sends a text that is no UTF-8", does.bad_utf8),
    "mock:endless-line": Behaviour("sends a line of 1 GiB", does.endless_line),
    "mock:gzip-bomb": Behaviour(
        "sends gzip, asked or not, that unpacks to a line of 1 GiB",
        does.gzip_bomb,
        headers=(("content-encoding", "gzip"),),
    ),
    "mock:missing": Behaviour("is listed, but not found when asked (404) until it is pulled", does.missing),
    "mock:busy": Behaviour(f"is busy (503) the first {does.BUSY_TIMES} times, then answers", does.busy),
    "mock:error-line": Behaviour(f"reports a crash after {FAULT_AFTER} tokens, as the last line", does.error_line),
    "mock:repeat-guard": Behaviour(f"repeats itself {does.REPEATS} times, then ends without `done`", does.repeat_guard),
    "mock:silent-end": Behaviour(f"ends in good order after {FAULT_AFTER} tokens, without `done`", does.silent_end),
    "mock:late-records": Behaviour(f"sends {does.LATE_RECORDS} more records after `done`", does.late_records),
    "mock:long-prompt-cut": Behaviour(
        f"cuts prompts over {does.SHORT_CONTEXT_LENGTH} words to the last {does.KEPT_WORDS}, silently",
        does.long_prompt_cut,
        context_length=does.SHORT_CONTEXT_LENGTH,
    ),
}


def script_for(ask: Ask, schedule: Schedule, *, nth: int = 0, loaded: bool = True, pulled: bool = False) -> Script:
    """What happens when `ask` comes. `nth`: how often this model was asked before; `pulled`: somebody pulled it."""
    behaviour = BEHAVIOURS.get(ask.model)
    refusal = _refusal(ask, behaviour)
    if behaviour is None or refusal is not None:
        return Script(lambda: iter((refusal or does.not_found(ask.model),)))
    job = Job(ask, schedule, nth, LOADED_MS if loaded else behaviour.load_ms)
    play = does.steady if behaviour.play is does.missing and pulled else behaviour.play
    if ask.load_only:
        return Script(lambda: _load_only(job, play))
    if not ask.stream:
        return Script(lambda: gathered(play(job)), behaviour.headers, behaviour.byte_gap_ms)
    return Script(lambda: play(job), behaviour.headers, behaviour.byte_gap_ms)


def pull_script(model: str, stream: bool) -> Script:
    """A download that takes a second and brings nothing."""
    return Script(lambda: _pull(model, stream))


def _refusal(ask: Ask, behaviour: Behaviour | None) -> Fail | None:
    if behaviour is None:
        return does.not_found(ask.model)
    if ask.think and "thinking" not in behaviour.can:
        return Fail(f'"{ask.model}" does not support thinking', 400)
    if ask.tools and "tools" not in behaviour.can:
        return Fail(f"registry.ollama.ai/library/{ask.model} does not support tools", 400)
    return None


def _load_only(job: Job, play: Callable[[Job], Steps]) -> Steps:
    """Load, or unload with `keep_alive: 0`; what refuses to answer refuses to load as well."""
    first = next(play(job))
    if isinstance(first, Fail):
        yield first
        return
    if job.ask.keep_alive_s == 0:
        yield Done("unload")
        return
    yield Wait(job.load_ms, Phase.LOAD)
    yield Done("load")


def _pull(model: str, stream: bool) -> Steps:
    if model not in BEHAVIOURS:
        yield Fail("pull model manifest: file does not exist", 200 if stream else 500)
        return
    digest = f"sha256:{digest_of(model)}"
    yield from _streamed(stream, Progress("pulling manifest"))
    for step in range(PULL_STEPS + 1):
        yield from _streamed(
            stream, Progress(f"pulling {digest[7:19]}", digest, PULL_BYTES, PULL_BYTES * step // PULL_STEPS)
        )
        yield Wait(PULL_GAP_MS)
    yield from _streamed(stream, Progress("verifying sha256 digest"), Progress("writing manifest"))
    yield Progress("success")


def _streamed(stream: bool, *steps: Step) -> Steps:
    return iter(steps if stream else ())


def digest_of(model: str) -> str:
    """64 hexadecimal digits, the same for the same name."""
    return f"{Random(model).getrandbits(256):064x}"
