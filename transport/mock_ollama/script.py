"""What the mock can do, as data: a `Script` is a sequence of steps, and playing it needs no knowledge of why.

Steps that make a record (`Say`, `Done`, `Fail`) hold no time: the player stamps them when it writes them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import attrs

from engine.domain.generation import TokenKind, TokenLogprob

BREATH_RECORDS: Final = 512  # gathered without a wait, before others get a turn


@attrs.frozen
class Schedule:
    """How answers are paced when the request does not say. `tps`: tokens per second, 0 is as fast as possible.
    `ttft_ms`: silence before the first token of a loaded model. `tokens`: the length of an answer."""

    tps: float = attrs.field(default=30.0, validator=attrs.validators.ge(0))
    ttft_ms: float = attrs.field(default=200.0, validator=attrs.validators.ge(0))
    tokens: int = attrs.field(default=120, validator=attrs.validators.ge(1))
    seed: int = 42

    @property
    def gap_ms(self) -> float:
        return 1000 / self.tps if self.tps else 0.0


class Phase(enum.Enum):
    """What a wait stands for: the terminal record reports the duration of each."""

    LOAD = "load"
    PREFILL = "prefill"
    EVAL = "eval"


@attrs.frozen
class Wait:
    """Silence. Waits add up from the start of the script, so a slow client does not shift what comes later."""

    ms: float
    phase: Phase = Phase.EVAL


@attrs.frozen
class ToolCall:
    id: str
    name: str
    arguments: dict[str, Any]


@attrs.frozen
class Say:
    """One record of the answer, which stands for `tokens` generated tokens."""

    text: str = ""
    kind: TokenKind = TokenKind.ANSWER
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: int = 1


@attrs.frozen
class Done:
    """The terminal record. Without counts (None) it also has no durations. The texts are for answers that are not
    streamed: there this is the only record."""

    reason: str
    eval_count: int | None = None
    prompt_eval_count: int | None = None
    context: tuple[int, ...] = ()
    text: str = ""
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@attrs.frozen
class Fail:
    """`{"error": message}`: with `status` when nothing went out yet, else as the last line of the stream."""

    message: str
    status: int = 500


@attrs.frozen
class Progress:
    """One record of a pull."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


@attrs.frozen
class Damaged:
    """A record whose bytes are changed on the way out."""

    record: Say | Done
    damage: Callable[[bytes], bytes]


@attrs.frozen
class Raw:
    """These bytes as a part of the body, whatever they are."""

    data: bytes


@attrs.frozen
class Bare:
    """These bytes on the connection, past HTTP: to break its framing."""

    data: bytes


@attrs.frozen
class Stall:
    """Silence until the client leaves."""


@attrs.frozen
class Cut:
    """End the connection with a FIN, and the body without its end."""


@attrs.frozen
class Reset:
    """End the connection with a RST."""


Step: TypeAlias = Wait | Say | Done | Fail | Progress | Damaged | Raw | Bare | Stall | Cut | Reset


@attrs.frozen
class Script:
    """One response. `steps` begins anew, and the same, with every call. A script that just ends closes the body in
    order, also without `Done`. With `byte_gap_ms` every byte of the body is written alone, after that much silence."""

    steps: Callable[[], Iterator[Step]]
    headers: tuple[tuple[str, str], ...] = ()
    byte_gap_ms: float = 0.0


def gathered(steps: Iterator[Step]) -> Iterator[Step]:
    """The same answer without streaming: the texts move into one record at the end. Faults stay where they are. An
    answer that ends without its terminal record is one with `done: false`."""
    said: list[Say] = []
    sent = False
    for step in steps:
        match step:
            case Say() if not sent:
                said.append(step)
                if len(said) % BREATH_RECORDS == 0:
                    yield Wait(0)
            case Done() if not sent:
                yield _joined(said, step)
                sent = True
            case Damaged(Say() as say, damage) if not sent:
                yield Damaged(_joined([*said, say], Done("stop")), damage)
                sent = True
            case Say() | Done() | Damaged():
                pass  # one record is all there is
            case Fail():
                sent = True
                yield step
            case _:
                yield step
                if isinstance(step, Cut | Reset):
                    return
    if said and not sent:
        yield Say("".join(say.text for say in said if say.kind is TokenKind.ANSWER))


def _joined(said: list[Say], done: Done) -> Done:
    return attrs.evolve(
        done,
        text="".join(say.text for say in said if say.kind is TokenKind.ANSWER),
        thinking="".join(say.text for say in said if say.kind is TokenKind.THINKING),
        logprobs=tuple(entry for say in said for entry in say.logprobs),
        tool_calls=tuple(call for say in said for call in say.tool_calls),
    )
