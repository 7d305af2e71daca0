"""From what sessions tell to usage records."""

from __future__ import annotations

from contextvars import copy_context

import pytest

from actors import usage_feed
from actors.kernel import mailbox
from actors.ledger import LedgerHandle, LedgerMessage, UsageLedger
from actors.usage_feed import UsageFeed
from engine.domain.council import MemberEnded, MemberStarted
from engine.domain.energy import EnergyMeter
from engine.domain.errors import Overloaded
from engine.domain.events import SampleBatch, SessionClosed, SessionOpened, StreamRef
from engine.domain.generation import EndReason, Origin, Parameters, Token, TokenKind
from engine.domain.usage import AGENT, FALLBACK, UsageRecord
from tests.domain.strategies import PARAMS
from tests.fakes.stores import ListedUsage

PLACES = {"a": ("ollama", True), "far": ("openai", False)}


def opened(session_id: str, *models: str, synthetic: bool = False) -> SessionOpened:
    refs = tuple(StreamRef(session_id, f"{session_id}:{n}", model) for n, model in enumerate(models))
    return SessionOpened(session_id, 0, "single", refs, (), Parameters(), PARAMS, Origin.OLLAMA, synthetic)


def closed(session_id: str, **more) -> SessionClosed:
    values = {
        "at_us": 5, "reason": EndReason.FINISHED, "error": None, "tokens": 5, "ttft_ms": 50.0, "duration_ms": 250.0,
        "stop_latency_ms": None, "cold": False, "prompt_tokens": 3, "eval_count": 6,
    }  # fmt: skip
    return SessionClosed(session_id, **values | more)


class Feed:
    def __init__(self, room: int = 16) -> None:
        self.outlet, self.inlet = mailbox[LedgerMessage]("ledger", room)
        self.ledger = LedgerHandle(UsageLedger(self.inlet, ListedUsage()), self.outlet)
        self.feed = UsageFeed(self.ledger, PLACES.get, lambda: 1_795_169_209.5)

    def told(self) -> list[UsageRecord]:
        found = []
        while self.inlet.depth:
            found.append(self.inlet._channel.receive_nowait())
        return found


async def test_one_record_for_a_session():
    feed = Feed()
    feed.feed.observe(opened("1", "a"))
    feed.feed.observe(closed("1"))
    assert feed.told() == [
        UsageRecord("2026-11-20", "ollama", "a", "ollama", True, False, 3, 6, 50.0, 250.0, "finished", None)
    ]


async def test_where_the_runtime_counts_nothing_our_own_count_stands():
    feed = Feed()
    feed.feed.observe(opened("1", "far"))
    feed.feed.observe(closed("1", eval_count=None, prompt_tokens=None, ttft_ms=None, reason=EndReason.ABORTED))
    (record,) = feed.told()
    assert (record.tokens_in, record.tokens_out, record.ttft_ms, record.reason) == (None, 5, None, "aborted")
    assert (record.runtime, record.local) == ("openai", False)


async def test_a_model_that_was_never_asked_read_nothing_and_took_no_time():
    feed = Feed()
    feed.feed.observe(opened("1", "far"))
    never = {"tokens": 0, "prompt_tokens": None, "eval_count": None, "ttft_ms": None, "asked": False}
    feed.feed.observe(closed("1", reason=EndReason.ABORTED, **never))
    (record,) = feed.told()
    assert (record.tokens_in, record.tokens_out, record.ttft_ms, record.duration_ms) == (0, 0, None, None)
    assert record.reason == "aborted"


async def test_a_model_that_nobody_knows_any_more_is_not_taken_for_a_local_one():
    feed = Feed()
    feed.feed.observe(opened("1", "gone", synthetic=True))
    feed.feed.observe(closed("1"))
    (record,) = feed.told()
    assert (record.runtime, record.local, record.synthetic) == ("unknown", False, True)


async def test_an_end_that_is_told_twice_or_belongs_to_nobody_counts_once():
    feed = Feed()
    feed.feed.observe(opened("1", "a"))
    for session_id in ("1", "1", "2"):
        feed.feed.observe(closed(session_id))
    assert len(feed.told()) == 1


async def test_the_agent_is_the_one_in_whose_request_the_session_was_named():
    feed = Feed()

    def named(agent: str) -> str:
        AGENT.set(agent)
        return feed.feed.new_session_id()

    ids = [copy_context().run(named, agent) for agent in ("one", "two")]
    assert len(set(ids)) == 2
    for session_id in reversed(ids):
        feed.feed.observe(opened(session_id, "a"))
        feed.feed.observe(closed(session_id))
    assert [record.agent for record in feed.told()] == ["two", "one"]
    assert AGENT.get() is None


async def test_a_council_counts_each_model_by_its_own_tokens():
    feed = Feed()
    council = opened("1", "a", "far")
    feed.feed.observe(council)
    for count, ref in zip((2, 3), council.streams, strict=True):
        meter = EnergyMeter.started(PARAMS, 0)
        samples = tuple(
            meter.token(Token("x", TokenKind.ANSWER, n, n, 1000 * n, 1000 if n else None)) for n in range(count)
        )
        feed.feed.observe(SampleBatch(ref, samples, meter.state))
    feed.feed.observe(closed("1"))
    one, two = feed.told()
    assert (one.model, one.tokens_out, two.model, two.tokens_out) == ("a", 2, "far", 3)
    assert (one.tokens_in, one.ttft_ms, one.duration_ms) == (None, None, None)


async def test_a_member_counts_as_it_ended_and_one_that_was_never_asked_does_not():
    feed = Feed()
    council = opened("1", "a", "far", "judge")
    feed.feed.observe(council)
    end = MemberEnded(council.streams[0], 5, EndReason.ABORTED, 7, 30.0, 400.0, cut="the others agree")
    feed.feed.observe(end)
    feed.feed.observe(closed("1"))
    (record,) = feed.told()
    assert (record.model, record.tokens_out, record.ttft_ms, record.duration_ms) == ("a", 7, 30.0, 400.0)
    assert record.reason == "aborted"


def ended(ref: StreamRef, tokens: int = 0, **more) -> MemberEnded:
    return MemberEnded(ref, 5, more.pop("reason", EndReason.ABORTED), tokens, None, 0.0, **more)


async def test_a_member_that_the_others_made_needless_is_no_request():
    feed = Feed()
    council = opened("1", "a", "far", "b", "c", "d")
    asked, cut_early, needless, not_let_in, left = council.streams
    feed.feed.observe(council)
    for ref in (asked, cut_early, left):
        feed.feed.observe(MemberStarted(ref, False, None))
    feed.feed.observe(ended(asked, 7, reason=EndReason.FINISHED))
    feed.feed.observe(ended(cut_early, cut="the others agree"))
    feed.feed.observe(ended(needless, cut="enough of the others have answered"))
    feed.feed.observe(ended(not_let_in, reason=EndReason.ERROR, error={"code": "INSUFFICIENT_MEMORY"}))
    feed.feed.observe(closed("1", reason=EndReason.ABORTED))
    assert [(one.model, one.tokens_in, one.tokens_out, one.duration_ms, one.reason) for one in feed.told()] == [
        ("a", None, 7, 0.0, "finished"), ("far", None, 0, 0.0, "aborted"), ("c", 0, 0, None, "error"),
        ("d", None, 0, None, "aborted"),
    ]  # fmt: skip


async def test_why_another_model_answers_is_kept():
    feed = Feed()

    def named() -> str:
        FALLBACK.set("llama3.1:8b is not here; a answers in its place")
        return feed.feed.new_session_id()

    session_id = copy_context().run(named)
    feed.feed.observe(opened(session_id, "a"))
    feed.feed.observe(closed(session_id))
    (record,) = feed.told()
    assert (record.agent, record.fallback) == ("ollama", "llama3.1:8b is not here; a answers in its place")


async def test_after_the_end_of_the_ledger_nothing_breaks():
    feed = Feed()
    feed.feed.observe(opened("1", "a"))
    feed.ledger.close()
    feed.feed.observe(closed("1"))
    assert feed.ledger.refused == 1
    with pytest.raises(Overloaded):
        await feed.ledger.report("agent")


async def test_a_full_ledger_holds_nobody_up():
    feed = Feed(room=1)
    for number in range(3):
        feed.feed.observe(opened(str(number), "a"))
        feed.feed.observe(closed(str(number)))
    assert (len(feed.told()), feed.outlet.flow().refused) == (1, 2)


async def test_sessions_without_an_end_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(usage_feed, "SESSIONS_MAX", 2)
    feed = Feed()
    for number in range(5):
        feed.feed.observe(opened(str(number), "a"))
    assert feed.feed.forgotten == 3
    for number in range(5):
        feed.feed.observe(closed(str(number)))
    assert len(feed.told()) == 2
