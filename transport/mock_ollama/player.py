"""Plays a script on a connection: waits where it waits, stamps its records, writes its bytes."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import attrs
import trio

from transport.mock_ollama.connection import Responder
from transport.mock_ollama.records import Durations, done_record, fail_record, progress_record, say_record
from transport.mock_ollama.requests import Ask
from transport.mock_ollama.script import (
    Bare,
    Cut,
    Damaged,
    Done,
    Fail,
    Phase,
    Progress,
    Raw,
    Reset,
    Say,
    Script,
    Stall,
    Step,
    Wait,
)

JSON: Final = "application/json; charset=utf-8"
NDJSON: Final = "application/x-ndjson"
WRITE_BYTES: Final = 65_536  # records between two waits are written together, up to this


class Ending(enum.Enum):
    """What is to become of the connection: `ENDED` is an HTTP response in order."""

    ENDED = "ended"
    CUT = "cut"
    RESET = "reset"


@attrs.define(eq=False)
class Player:
    """Plays one script once. `streaming`: records are lines; else there is one, and the body is plain JSON. `on_loaded`
    is called when a wait for loading is over, `on_done` before the terminal record goes out. `tokens` is what has left
    this process, also after a cancellation."""

    ask: Ask
    responder: Responder
    streaming: bool
    now_ns: Callable[[], int]
    on_loaded: Callable[[], None]
    on_done: Callable[[], None]
    tokens: int = 0
    _unsent_tokens: int = 0
    _byte_gap_ms: float = 0.0
    _headers: tuple[tuple[str, str], ...] = ()
    _began: float = attrs.field(factory=trio.current_time)
    _phase_s: dict[Phase, float] = attrs.field(factory=dict)

    async def play(self, script: Script) -> Ending:
        """To the end of the script. Raises BrokenResourceError when the client is gone."""
        due = self._began
        self._byte_gap_ms, self._headers = script.byte_gap_ms, script.headers
        for step in script.steps():
            match step:
                case Wait(ms, phase):
                    await self._flush()
                    due += ms / 1000
                    before = trio.current_time()
                    await trio.sleep_until(due)
                    self._phase_s[phase] = self._phase_s.get(phase, 0.0) + trio.current_time() - before
                    if phase is Phase.LOAD:
                        self.on_loaded()
                case Stall():
                    await self._flush()
                    await trio.sleep_forever()
                case Cut() | Reset():
                    await self._flush()
                    return Ending.CUT if isinstance(step, Cut) else Ending.RESET
                case Fail(status=status) if status != 200 and not self.responder.began:
                    await self.responder.whole(status, fail_record(step), JSON)
                    return Ending.ENDED
                case _:
                    if isinstance(step, Done):
                        self.on_done()
                    await self._write(step)
        await self.responder.end()
        self._count_sent()
        return Ending.ENDED

    async def _write(self, step: Step) -> None:
        if isinstance(step, Bare):
            self.responder.bare(step.data)
            return
        if isinstance(step, Done) and not self.streaming and not self.responder.began and not self._byte_gap_ms:
            await self.responder.whole(200, self._record(step), JSON, self._headers)
            return
        self.responder.begin(200, NDJSON if self.streaming else JSON, self._headers)
        data = self._bytes(step)
        if self._byte_gap_ms:
            for i in range(len(data)):
                await trio.sleep(self._byte_gap_ms / 1000)
                self.responder.data(data[i : i + 1])
                await self.responder.flush()
        else:
            self.responder.data(data)
        if isinstance(step, Say):
            self._unsent_tokens += step.tokens
        if isinstance(step, Raw) or self._byte_gap_ms or self.responder.waiting_bytes >= WRITE_BYTES:
            await self._flush()

    def _bytes(self, step: Step) -> bytes:
        match step:
            case Raw(data):
                return data
            case Damaged(record, damage):
                return damage(self._record(record) + b"\n")
            case _:
                return self._record(step) + (b"\n" if self.streaming else b"")

    def _record(self, step: Step) -> bytes:
        kind, model = self.ask.kind, self.ask.model
        match step:
            case Say():
                return say_record(kind, model, step, self.now_ns())
            case Done():
                return done_record(kind, model, step, self.now_ns(), self._durations())
            case Fail():
                return fail_record(step)
            case Progress():
                return progress_record(step)
        raise TypeError(f"{type(step).__name__} makes no record")

    def _durations(self) -> Durations:
        total_s = trio.current_time() - self._began
        load_s, prefill_s = self._phase_s.get(Phase.LOAD, 0.0), self._phase_s.get(Phase.PREFILL, 0.0)
        eval_s = max(total_s - load_s - prefill_s, 0.0)
        return Durations(*(round(s * 1e9) for s in (total_s, load_s, prefill_s, eval_s)))

    async def _flush(self) -> None:
        await self.responder.flush()
        self._count_sent()

    def _count_sent(self) -> None:
        self.tokens, self._unsent_tokens = self.tokens + self._unsent_tokens, 0
