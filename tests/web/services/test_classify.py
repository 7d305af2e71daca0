"""The classifier: labels with the model's own probabilities, always within the vocabulary, and what context changes."""

from __future__ import annotations

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.domain.errors import UpstreamProtocolError
from engine.domain.generation import EndReason, Origin
from policies.taxonomy import load_taxonomy
from tests.web.services.running import (
    CLASSIFIER,
    TINY,
    TOKEN_S,
    Says,
    answering,
    question_of,
    running_service,
)

GLUCOSE = "What is the role of glucose in diabetes?"
ASK = {"query": GLUCOSE, "top_k": 3}
TAXONOMY = load_taxonomy()
LABELS = TAXONOMY.vocabularies()


def always(*said):
    return answering(lambda _: list(said))


def by_vocabulary(**labels):
    """Answers each question with the label for its vocabulary."""

    def answer(request):
        part = next(part for part, words in LABELS.items() if words.question in question_of(request))
        return [labels[part]]

    return answering(answer)


SURE = always(Says("MEDICINE", 0.8, {"BIOLOGY": 0.12, "CHEMISTRY": 0.05, "LAW": 0.01, "the": 0.02}))
TMD = by_vocabulary(task=Says("EXPLAIN", 0.9), method=Says("GRAPH", 0.7), domain=Says("MEDICINE", 0.6))


async def test_domains_with_the_probabilities_of_their_labels(autojump_clock):
    async with running_service(CLASSIFIER, SURE) as api:
        answer = await api.post("/classify_domain", ASK)
        assert answer.status == 200
        assert answer.json == {
            "query": GLUCOSE,
            "domains": [
                {"domain": "MEDICINE", "confidence": 0.8},
                {"domain": "BIOLOGY", "confidence": 0.12},
                {"domain": "CHEMISTRY", "confidence": 0.05},
            ],
            "primary_domain": "MEDICINE",
            "validated": True,
            "confidence_source": "label_logprobs",
            "confidence_reason": None,
            "domain_taxonomy_version": "1.0",
            "model": "tinyllama:1.1b",
            "fallback_reason": None,
        }


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (21, 4)])
async def test_no_more_domains_than_were_asked_for_or_considered(autojump_clock, top_k, count):
    async with running_service(CLASSIFIER, SURE) as api:
        domains = (await api.post("/classify_domain", {"query": "x", "top_k": top_k})).json["domains"]
        assert len(domains) == count


async def test_three_when_nothing_is_said(autojump_clock):
    async with running_service(CLASSIFIER, SURE) as api:
        assert len((await api.post("/classify_domain", {"query": "x"})).json["domains"]) == 3


async def test_a_domain_outside_the_taxonomy_becomes_other_and_is_not_validated(autojump_clock):
    outside = always(Says("ASTROLOGY", 0.7, {"PHYSICS": 0.2, "OTHER": 0.1}))
    async with running_service(CLASSIFIER, outside) as api:
        body = (await api.post("/classify_domain", ASK)).json
        assert (body["primary_domain"], body["validated"]) == ("OTHER", False)
        assert body["domains"] == [
            {"domain": "OTHER", "confidence": None}, {"domain": "PHYSICS", "confidence": 0.2},
        ]  # fmt: skip
        assert "no label" in body["confidence_reason"]


async def test_other_can_be_the_models_own_word(autojump_clock):
    async with running_service(CLASSIFIER, always(Says("OTHER", 0.5))) as api:
        body = (await api.post("/classify_domain", ASK)).json
        assert (body["primary_domain"], body["validated"], body["domains"][0]["confidence"]) == ("OTHER", True, 0.5)


async def test_without_log_probabilities_there_is_no_number(autojump_clock):
    async with running_service(CLASSIFIER, always(Says("MEDI"), Says("CINE"))) as api:
        body = (await api.post("/classify_domain", ASK)).json
        assert body["domains"] == [{"domain": "MEDICINE", "confidence": None}]
        assert (body["validated"], body["confidence_source"]) == (True, "none")
        assert "no log-probabilities" in body["confidence_reason"]


async def test_a_triplet_with_three_confidences(autojump_clock):
    async with running_service(CLASSIFIER, TMD) as api:
        answer = await api.post("/extract_tmd", {"query": GLUCOSE, "context_docs": ["Diabetes is a disorder."]})
        body = answer.json
        assert answer.status == 200
        assert body["query"] == GLUCOSE
        assert body["tmd"] == {"task": "EXPLAIN", "method": "GRAPH", "domain": "MEDICINE"}
        assert body["confidence"] == {"task": 0.9, "method": 0.7, "domain": 0.6}
        assert body["validated"] == {"task": True, "method": True, "domain": True}
        assert (body["context_docs_used"], body["context_chars_dropped"]) == (1, 0)
        assert body["domain_taxonomy_version"] == "1.0"


async def test_a_triplet_is_whole_whatever_the_model_says(autojump_clock):
    async with running_service(CLASSIFIER, always(Says("no idea", 0.5))) as api:
        body = (await api.post("/extract_tmd", {"query": GLUCOSE})).json
        assert body["tmd"] == {"task": "ANSWER", "method": "DENSE", "domain": "OTHER"}
        assert body["confidence"] == {"task": None, "method": None, "domain": None}
        assert body["validated"] == {"task": False, "method": False, "domain": False}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.text(max_size=60), st.none() | st.floats(0.01, 1))
def test_any_words_of_a_model_make_a_valid_triplet(said, chance):
    async def ask() -> dict:
        async with running_service(CLASSIFIER, always(Says(said, chance))) as api:
            answer = await api.post("/extract_tmd", {"query": "x"})
            assert answer.status == 200
            return answer.json

    body = trio.run(ask, clock=MockClock(autojump_threshold=0))
    assert all(body["tmd"][part] in words.labels for part, words in LABELS.items())
    assert all(chance is None or 0 <= chance <= 1 for chance in body["confidence"].values())


async def test_documents_are_read_and_change_the_answer(autojump_clock):
    """A model that goes by the words it is given: without the document the query is about nothing it knows."""

    def answer(request):
        return [Says("MEDICINE" if "metabolic disorder" in question_of(request) else "OTHER", 0.9)]

    async with running_service(CLASSIFIER, answering(answer)) as api:
        query = {"query": "What is it?"}
        without = await api.post("/extract_tmd", query)
        docs = {"context_docs": ["Diabetes is a metabolic disorder."]}
        given_ = await api.post("/extract_tmd", query | docs)
        assert (without.json["tmd"]["domain"], without.json["context_docs_used"]) == ("OTHER", 0)
        assert (given_.json["tmd"]["domain"], given_.json["context_docs_used"]) == ("MEDICINE", 1)


async def test_documents_without_room_are_told(autojump_clock):
    async with running_service(CLASSIFIER, TMD) as api:
        body = (await api.post("/extract_tmd", {"query": "x", "context_docs": ["word " * 2000, "y"]})).json
        assert body["context_docs_used"] == 2
        assert body["context_chars_dropped"] == 9_999 + 1 - TAXONOMY.prompt.context_chars_max
        longest = max(len(question_of(request)) for request in api.slice.runtime.requests)
        assert longest < TAXONOMY.prompt.context_chars_max + 1000


async def test_the_model_is_asked_for_certain_words_and_all_candidates(autojump_clock):
    async with running_service(CLASSIFIER, SURE) as api:
        await api.post("/classify_domain", ASK)
        [asked] = api.slice.runtime.requests
        assert asked.model == "tinyllama:1.1b"
        assert (asked.parameters.temperature, asked.parameters.max_tokens) == (0, TAXONOMY.prompt.answer_tokens_max)
        assert asked.top_logprobs == 20
        assert GLUCOSE in question_of(asked)
        assert all(label in asked.messages[0].content for label in TAXONOMY.domains.labels)


async def test_every_question_is_a_session_of_a_service(autojump_clock):
    async with running_service(CLASSIFIER, TMD) as api:
        client = api.slice.client()
        await api.post("/extract_tmd", {"query": GLUCOSE})
        await trio.sleep(1)
        starts = client.events("experience.session_start")
        assert [start["payload"]["origin"] for start in starts] == ["service"] * 3
        assert client.text() == "EXPLAINGRAPHMEDICINE"


async def test_its_latency_is_that_of_whole_requests(autojump_clock):
    async with running_service(CLASSIFIER, TMD) as api:
        await api.post("/extract_tmd", {"query": GLUCOSE})
        assert (await api.get("/info")).json["performance"]["avg_latency_ms"] == pytest.approx(3 * TOKEN_S * 1000)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/classify_domain", {}, "query"),
        ("/classify_domain", {"query": ""}, "query"),
        ("/classify_domain", {"query": "  "}, "query"),
        ("/classify_domain", {"query": "x" * 8193}, "query"),
        ("/classify_domain", {"query": "x", "top_k": 0}, "top_k"),
        ("/classify_domain", {"query": "x", "top_k": 2.5}, "top_k"),
        ("/classify_domain", {"query": "x", "topk": 2}, "topk"),
        ("/classify_domain", b"nonsense", "body"),
        ("/extract_tmd", {"query": 7}, "query"),
        ("/extract_tmd", {"query": "x", "context_docs": "a"}, "context_docs"),
        ("/extract_tmd", {"query": "x", "context_docs": ["a"] * 65}, "context_docs"),
        ("/extract_tmd", {"query": "x", "context_docs": [1]}, "context_docs[0]"),
        ("/validate_domain", {}, "domain"),
        ("/validate_domain", {"domain": ""}, "domain"),
        ("/validate_domain", {"domain": "x" * 201}, "domain"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_input_is_told_with_its_field(autojump_clock, path, body, field):
    async with running_service(CLASSIFIER, SURE) as api:
        answer = await api.post(path, body)
        assert (answer.status, answer.error["code"]) == (400, "VALIDATION_ERROR")
        assert answer.error["details"].get("field") == field
        assert api.slice.runtime.opened == 0


async def test_a_runtime_that_fails_is_no_classification(autojump_clock):
    failing = answering(lambda _: [Says("MED", 0.5), UpstreamProtocolError("the runtime broke")])
    async with running_service(CLASSIFIER, failing) as api:
        for path in ("/classify_domain", "/extract_tmd"):
            answer = await api.post(path, {"query": "x"})
            assert (answer.status, answer.error["code"]) == (502, "UPSTREAM_PROTOCOL_ERROR")
        assert api.slice.runtime.closed == api.slice.runtime.opened


async def test_leaving_stops_the_model(autojump_clock):
    slow = answering(lambda _: [Says("x", 0.5)] * 1000)
    async with running_service(CLASSIFIER, slow) as api:
        async with api.open("POST", "/classify_domain", ASK):
            await wait_all_tasks_blocked(0.01)
            [session] = api.slice.core.sessions.running()
            assert session.asked.origin is Origin.SERVICE
        await session.closed.wait()
        assert session.reason is EndReason.ABORTED
        assert api.slice.runtime.closed == 1


async def test_another_model_in_its_place_is_told(autojump_clock):
    said = answering(lambda _: [Says("LAW", 0.5)], models=("qwen3:4b",))
    async with running_service(CLASSIFIER, said) as api:
        answer = await api.post("/classify_domain", ASK)
        assert answer.json["model"] == "qwen3:4b"
        assert answer.headers["x-wf-fallback"] == answer.json["fallback_reason"]
        assert "tinyllama:1.1b is not here" in answer.json["fallback_reason"]


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("MEDICINE", (True, "MEDICINE", "MEDICINE")),
        ("computer science", (True, "COMPUTER_SCIENCE", "COMPUTER_SCIENCE")),
        ("MEDCINE", (False, "MEDCINE", "MEDICINE")),
        ("qqqq", (False, "qqqq", None)),
    ],
)
async def test_a_domain_is_valid_or_has_a_nearest_one(autojump_clock, domain, expected):
    async with running_service(CLASSIFIER, SURE) as api:
        body = (await api.post("/validate_domain", {"domain": domain})).json
        assert (body["valid"], body["domain"], body["nearest"]) == expected
        assert body["domain_taxonomy_version"] == "1.0"
        assert api.slice.runtime.opened == 0


async def test_a_service_that_is_no_classifier_has_none_of_it(autojump_clock):
    async with running_service(TINY, SURE) as api:
        assert (await api.post("/classify_domain", ASK)).status == 404
