"""`/usage` over the slice: who asked, how much, what it cost, and that nobody waits for it."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.lowlevel

from actors.ledger import MAILBOX_RECORDS
from engine.settings import PolicyOverrides, Settings
from tests.domain.test_usage import record
from tests.fakes.api import running_api
from tests.fakes.runtime import ScriptedRuntime, words
from tests.fakes.stores import ListedUsage

PROMPT = "xyzzy-what-nobody-may-keep"


async def asked(api, model: str = "a", **headers: str) -> None:
    await api.post("/generate", {"model": model, "prompt": PROMPT, "stream": True}, **headers)
    await trio.sleep(0.1)


async def test_before_the_first_answer_everything_is_zero_and_null(autojump_clock):
    async with running_api() as api:
        body = (await api.get("/usage")).json
        assert (body["by"], body["since"], body["rows"], body["ended"]) == ("model", None, [], {})
        assert set(body["totals"].values()) == {0}
        assert (body["latency"]["ttft_ms"]["p50"], sum(body["latency"]["ttft_ms"]["counts"])) == (None, 0)
        assert body["avoided"]["estimate_usd"] is None
        assert "prices of your own" in body["avoided"]["reason"]


async def test_who_asked_which_model_for_how_much(autojump_clock):
    async with running_api() as api:
        await asked(api, x_wf_agent="planner")
        await asked(api, "b", user_agent="curl/8.9.0")
        await asked(api, "b")
        by_agent = (await api.get("/usage?by=agent")).json
        assert {row["key"]: row["requests"] for row in by_agent["rows"]} == {"planner": 1, "curl": 1, "api": 1}
        by_model = (await api.get("/usage")).json
        assert {row["key"]: row["tokens_out"] for row in by_model["rows"]} == {"a": 5, "b": 10}
        by_day = (await api.get("/usage?by=day&days=1")).json
        assert [row["requests"] for row in by_day["rows"]] == [3]
        assert by_agent["totals"] == by_model["totals"] == by_day["totals"]
        totals = by_day["totals"]
        assert (totals["tokens_out"], totals["cost_usd"], totals["unpriced"]) == (15, 0, 0)
        assert totals["local_tokens"] == totals["tokens_in"] + 15
        assert (totals["uncounted"] == 0) == (totals["tokens_in"] > 0)
        assert by_day["latency"]["ttft_ms"]["p50"] == 50
        assert by_day["ended"] == {"finished": 3}
        assert by_day["ledger"] == {"persistent": False, "problem": None, "written": 3, "lost": 0}


async def test_one_that_left_before_its_turn_is_a_request_and_nothing_more(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, words(3), load_s=60)) as api:
        async with api.open("POST", "/generate", {"model": "a", "prompt": PROMPT, "stream": True}) as client:
            await client.receive()
            (session,) = api.slice.core.sessions.known()
        await session.closed.wait()
        usage = (await api.get("/usage")).json
        assert (usage["totals"]["requests"], usage["totals"]["uncounted"], usage["ended"]) == (1, 0, {"aborted": 1})
        assert sum(usage["latency"]["duration_ms"]["counts"]) == sum(usage["latency"]["ttft_ms"]["counts"]) == 0


async def test_every_dialect_counts(autojump_clock):
    async with running_api() as api:
        messages = [{"role": "user", "content": PROMPT}]
        await api.post("/api/chat", {"model": "a", "messages": messages, "stream": False})
        await api.post("/v1/chat/completions", {"model": "a", "messages": messages})
        await api.post("/v1/messages", {"model": "a", "max_tokens": 9, "messages": messages}, x_wf_agent="claude")
        await trio.sleep(0.1)
        body = (await api.get("/usage?by=agent")).json
        assert {row["key"] for row in body["rows"]} == {"ollama", "openai", "claude"}


async def test_answers_that_were_stopped_or_failed_count_with_their_reason(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, words(1000))) as api:
        session_id = await api.generate()
        await trio.sleep(1)
        await api.post("/stop", {"session_id": session_id})
        api.slice.runtime.up = False
        api.slice.runtime.script = ()
        await api.generate()
        await trio.sleep(1)
        body = (await api.get("/usage")).json
        assert body["ended"] == {"aborted": 1, "truncated": 1}
        assert body["totals"]["requests"] == 2


async def test_what_leaves_the_machine_has_a_price_or_says_that_it_has_none(autojump_clock):
    async with running_api(lambda clock: ScriptedRuntime(clock, local=False)) as api:
        await asked(api)
        totals = (await api.get("/usage")).json["totals"]
        assert totals["remote_tokens"] == totals["tokens_in"] + 5
        assert (totals["local_tokens"], totals["unpriced"]) == (0, 1)


async def test_the_estimate_is_made_with_prices_of_the_user(autojump_clock):
    own = {"name": "what I had", "as_of": "2026-11-01", "input_per_million": 1, "output_per_million": 2}
    settings = Settings(policies=PolicyOverrides(prices={"instead_of": own}))
    async with running_api(settings=settings) as api:
        await asked(api)
        body = (await api.get("/usage")).json
        usd = (body["totals"]["tokens_in"] * 1 + body["totals"]["tokens_out"] * 2) / 1e6
        told = {"reason": None, "name": "what I had", "as_of": "2026-11-01"}
        assert body["avoided"] == {"estimate_usd": pytest.approx(usd), **told}
        assert usd >= 5 * 2 / 1e6
        assert body["totals"]["cost_usd"] == 0


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=week", "by"),
        ("by=", "by"),
        ("days=0", "days"),
        ("days=401", "days"),
        ("days=x", "days"),
        ("days=٣", "days"),
    ],
)
async def test_what_cannot_be_asked(autojump_clock, query, field):
    async with running_api() as api:
        answer = await api.get(f"/usage?{query}")
        assert (answer.status, answer.error["code"], answer.error["details"]["field"]) == (
            400,
            "VALIDATION_ERROR",
            field,
        )


async def test_a_ledger_that_stands_still_holds_up_no_session(autojump_clock):
    async with running_api() as api:
        handle, store = api.engine.ledger, ListedUsage(stands_still=trio.Event())
        handle.ledger.store = store
        while handle.log(record()):
            await trio.lowlevel.checkpoint()
        for _ in range(3):
            await asked(api)
        assert handle.outlet.flow().refused == 4
        assert (await api.get("/usage")).status == 503
        store.stands_still.set()
        await trio.sleep(1)
        body = (await api.get("/usage")).json
        assert body["ledger"]["lost"] == 5
        assert body["ledger"]["written"] >= MAILBOX_RECORDS


async def test_a_ledger_beyond_help_is_given_up_and_the_engine_goes_on(autojump_clock, caplog):
    async with running_api() as api:
        ledger = api.engine.ledger.ledger
        ledger.store = Crashing(ledger.store)
        for _ in range(8):
            await asked(api)
        assert "given up" in caplog.text
        assert (await api.get("/usage")).status == 503
        assert (await api.get("/health")).json["status"] == "ok"


@attrs.define(eq=False)
class Crashing:
    inner: object
    persistent: bool = False

    async def names(self):
        raise ZeroDivisionError


async def test_no_prompt_and_no_answer_is_kept(autojump_clock, tmp_path):
    async with running_api() as api:
        await asked(api, x_api_key="sk-key-nobody-may-keep")
        handle = api.engine.ledger
        await handle.report("agent")
        kept = await handle.ledger.store.database.call(lambda c: "\n".join(c.iterdump()))
        assert "finished" in kept
        for text in (PROMPT, "w1 ", "sk-key"):
            assert text not in kept
