from __future__ import annotations

import json
import math

import attrs
import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.domain.agreement import COMPARED_BYTES_MAX, agreement
from engine.domain.synthesis import (
    ANSWERED,
    DISSENT_BELOW,
    CouncilMethod,
    MemberAnswer,
    MemberState,
    candidates,
    choose,
    council_report,
)

FINISHED, LENGTH, RUNNING, FAILED, CUT = MemberState
BEST, CONSENSUS, FIRST, JUDGE = CouncilMethod

BLUE = "Because the air scatters blue light more strongly than red light."
BLUER = "Because the air scatters blue light much more strongly than red."
BANANA = "Bananas have always been this way, ask anybody."


def plain(report):
    return json.loads(msgspec.json.encode(report))


texts = st.text(max_size=20) | st.text("ab ", max_size=12) | st.sampled_from([BLUE, BLUER, BANANA, "", " \n"])


def member(stream_id: str, text: str = BLUE, **values: object) -> MemberAnswer:
    known = {"certainty": None, "tokens": 7, "state": FINISHED, "finished_order": None}
    return MemberAnswer(stream_id, f"model-{stream_id}", text, **(known | values))


@st.composite
def councils(draw: st.DrawFn, distinct: bool = False) -> list[MemberAnswer]:
    """2 to 6 members in any state; `distinct`: no two equal in text, certainty or order."""
    count = draw(st.integers(2, 6))
    certainty = st.floats(0, 1) if distinct else st.none() | st.sampled_from([0.0, 0.25, 1.0]) | st.floats(0, 1)
    several = st.lists(certainty, min_size=count, max_size=count, unique=distinct)
    said = st.lists(texts, min_size=count, max_size=count, unique=distinct)
    orders = draw(st.permutations(range(count)))
    states = st.sampled_from(MemberState)
    return [
        member(
            f"s{n}",
            text,
            certainty=sure,
            state=(state := draw(states)),
            finished_order=order if state in ANSWERED else None,
        )
        for n, (text, sure, order) in enumerate(zip(draw(said), draw(several), orders, strict=True))
    ]


methods = st.sampled_from(CouncilMethod)


@given(methods, councils())
def test_the_text_is_a_candidates_own_byte_for_byte(method, answers):
    choice = choose(method, answers)
    able = {answer.stream_id: answer for answer in candidates(answers)}
    if not able:
        assert (choice.member, choice.text, choice.confidence) == (None, "", None)
        assert choice.reason == "no member gave an answer"
        return
    assert choice.member is not None
    assert choice.text is able[choice.member].text
    assert choice.confidence is None or 0 <= choice.confidence <= 1


@given(methods, councils(distinct=True), st.data())
def test_the_order_of_the_members_changes_nothing(method, answers, data):
    one = choose(method, answers)
    other = choose(method, data.draw(st.permutations(answers)))
    assert (one.member, one.text, one.confidence, one.reason) == (
        other.member,
        other.text,
        other.confidence,
        other.reason,
    )
    assert one.report.means == other.report.means
    assert one.report.mean == other.report.mean
    assert {(d.stream_id, d.agreement) for d in one.report.dissent} == {
        (d.stream_id, d.agreement) for d in other.report.dissent
    }


@given(methods, councils())
def test_equals_go_by_the_order_of_the_council(method, answers):
    same = [attrs.evolve(each, text=BLUE, certainty=0.5, state=FINISHED, finished_order=None) for each in answers]
    assert choose(method, same).member == same[0].stream_id


@given(councils())
def test_best_certainty_takes_the_highest_and_null_last(answers):
    choice = choose(BEST, answers)
    sure = [each.certainty for each in candidates(answers) if each.certainty is not None]
    assert choice.confidence == max(sure, default=None)


@given(councils())
def test_consensus_takes_the_medoid(answers):
    able = candidates(answers)
    assume(len(able) > 1)
    means = {
        one.stream_id: math.fsum(agreement(one.text, other.text) for other in able if other is not one)
        / (len(able) - 1)
        for one in able
    }
    choice = choose(CONSENSUS, answers)
    assert choice.report.means == means
    assert choice.confidence == max(means.values()) == means[choice.member]


@given(councils())
def test_first_takes_who_ended_first(answers):
    able = candidates(answers)
    assume(able)
    assert choose(FIRST, answers).member == min(able, key=lambda each: each.finished_order).stream_id


@given(councils(), st.data())
def test_who_was_sent_on_as_it_came_stays_chosen(answers, data):
    speaker = data.draw(st.sampled_from(answers))
    choice = choose(FIRST, answers, spoke_first=speaker.stream_id)
    assert (choice.member, choice.text, choice.confidence) == (speaker.stream_id, speaker.text, None)
    assert speaker.stream_id not in {gone.stream_id for gone in choice.report.dropped}
    assert speaker.stream_id in choice.report.means


def test_only_first_has_a_first_speaker():
    answers = [member("a", certainty=0.1), member("b", certainty=0.9)]
    assert choose(BEST, answers, spoke_first="a").member == "b"


@given(councils(), st.data())
def test_the_judge_counts_the_candidates(answers, data):
    able = candidates(answers)
    assume(able)
    verdict = data.draw(st.integers(0, len(able) - 1))
    choice = choose(JUDGE, answers, verdict=verdict)
    assert (choice.member, choice.method, choice.confidence) == (able[verdict].stream_id, JUDGE, None)


@given(councils())
def test_without_a_verdict_it_is_consensus_and_says_so(answers):
    choice, plain = choose(JUDGE, answers), choose(CONSENSUS, answers)
    assert (choice.member, choice.confidence, choice.report) == (plain.member, plain.confidence, plain.report)
    if choice.member is not None:
        assert choice.method is CONSENSUS
        assert choice.reason == f"the judge gave no verdict; {plain.reason}"


@pytest.mark.parametrize("verdict", [-1, 2])
def test_a_verdict_outside_is_a_mistake(verdict):
    with pytest.raises(IndexError):
        choose(JUDGE, [member("a"), member("b"), member("c", state=FAILED)], verdict=verdict)


def test_stream_ids_are_distinct_and_known():
    with pytest.raises(ValueError, match="stream ids"):
        choose(FIRST, [member("a"), member("a")])
    with pytest.raises(ValueError, match="stream ids"):
        choose(FIRST, [member("a"), member("b")], spoke_first="c")


def test_two_of_three_outvote_the_third():
    answers = [member("a", BANANA, certainty=1.0), member("b", BLUE), member("c", BLUER)]
    choice = choose(CONSENSUS, answers)
    assert choice.member in ("b", "c")
    [dissent] = choice.report.dissent
    assert (dissent.stream_id, dissent.model, dissent.text) == ("a", "model-a", BANANA)
    assert dissent.agreement == agreement(BANANA, choice.text) < DISSENT_BELOW


def test_half_in_common_is_no_dissent():
    texts = ["abcdefghij", "abcdeXfghij"]  # 4 of 8 strings of four bytes
    report = choose(FIRST, [member(text, text) for text in texts]).report
    assert report.mean == DISSENT_BELOW == 0.5
    assert report.dissent == ()


def test_no_order_of_adding_up_tips_a_balance():
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1, added one by one."""
    texts = ["abcd123456789", "abcde!$%&()=?", "abcdefABCDEFG", "abcdefghijklm"]
    answers = [member(text, text) for text in texts]
    means = [choose(CONSENSUS, order).report.means[texts[-1]] for order in (answers, answers[::-1])]
    assert means[0] == means[1] == 0.6 / 3


def test_between_two_the_certainty_decides():
    answers = [member("a", BLUE, certainty=None), member("b", BANANA, certainty=0.2), member("c", state=FAILED)]
    choice = choose(CONSENSUS, answers)
    assert choice.member == "b"
    assert choice.confidence == agreement(BLUE, BANANA)


@pytest.mark.parametrize("method", [CONSENSUS, JUDGE])
def test_one_alone_has_nobody_to_agree_with(method):
    choice = choose(method, [member("a"), member("b", state=RUNNING), member("c", state=CUT)])
    assert (choice.member, choice.confidence, choice.report.mean) == ("a", None, None)
    assert choice.reason.endswith("it is the only one that gave an answer")
    assert choice.report.means == {"a": None}


@pytest.mark.parametrize("method", CouncilMethod)
def test_an_answer_without_words_is_for_want_of_any_other(method):
    silent = member("a", " \n", certainty=1.0, finished_order=0)
    spoken = member("b", BLUE, certainty=0.1, finished_order=1)
    choice = choose(method, [silent, spoken])
    assert choice.member == "b"
    assert [gone.reason for gone in choice.report.dropped] == ["it ended without words"]
    assert choose(method, [silent, attrs.evolve(spoken, state=FAILED)]).member == "a"


@given(methods, councils())
def test_everybody_is_compared_or_dropped_with_a_reason(method, answers):
    report = choose(method, answers).report
    dropped = [gone.stream_id for gone in report.dropped]
    assert sorted([*report.means, *dropped]) == sorted(answer.stream_id for answer in answers)
    assert all(gone.reason for gone in report.dropped)
    assert len(report.pairs) == len(report.means) * (len(report.means) - 1) // 2
    assert all(0 <= pair.agreement <= 1 for pair in report.pairs)
    assert (report.mean is None) == (len(report.means) < 2)


@given(methods, councils())
def test_dissent_is_all_that_is_far_from_the_chosen_and_verbatim(method, answers):
    choice = choose(method, answers)
    far = {
        each.stream_id: each.text
        for each in candidates(answers)
        if each.stream_id != choice.member and agreement(each.text, choice.text) < DISSENT_BELOW
    }
    assert {dissent.stream_id: dissent.text for dissent in choice.report.dissent} == far


@pytest.mark.parametrize(
    ("state", "reason", "told"),
    [
        (RUNNING, None, "it was still running when the choice was made"),
        (FAILED, None, "it failed"),
        (FAILED, "MODEL_LOAD_FAILED", "MODEL_LOAD_FAILED"),
        (CUT, None, "it was ended before its answer was complete"),
    ],
)
def test_why_a_member_did_not_count(state, reason, told):
    [gone] = choose(CONSENSUS, [member("a"), member("b", state=state, reason=reason)]).report.dropped
    assert (gone.stream_id, gone.state, gone.reason) == ("b", state, told)


def test_a_text_longer_than_what_is_compared_is_marked():
    long = "a" * (COMPARED_BYTES_MAX + 1)
    assert choose(CONSENSUS, [member("a", long), member("b")]).report.cut
    assert not choose(CONSENSUS, [member("a", long[:-1]), member("b"), member("c", long, state=CUT)]).report.cut


@given(methods, councils())
def test_the_report_is_plain_json_about_every_member(method, answers):
    choice = choose(method, answers)
    report = plain(council_report(choice, answers, texts=True))
    assert [each["stream_id"] for each in report["members"]] == [answer.stream_id for answer in answers]
    assert (report["chosen"] is None) == (choice.member is None)


def test_the_report_by_example():
    answers = [
        member("a", BANANA, certainty=0.5),
        member("b", BLUE, certainty=0.75, state=LENGTH),
        member("c", BLUE, tokens=9),
        member("d", "Bec", state=CUT, tokens=1),
    ]
    choice = choose(CONSENSUS, answers)
    far = agreement(BANANA, BLUE)
    assert plain(council_report(choice, answers, texts=True)) == {
        "method": "consensus",
        "chosen": "model-b",
        "confidence": (1 + far) / 2,
        "reason": "it agrees most with the others",
        "agreement": {
            "mean": math.fsum([far, far, 1.0]) / 3,
            "pairs": [
                {"models": ["model-a", "model-b"], "agreement": far},
                {"models": ["model-a", "model-c"], "agreement": far},
                {"models": ["model-b", "model-c"], "agreement": 1.0},
            ],
            "compared_bytes_max": COMPARED_BYTES_MAX,
            "cut": False,
        },
        "members": [
            {
                "model": f"model-{stream_id}",
                "stream_id": stream_id,
                "state": state,
                "tokens": tokens,
                "certainty": certainty,
                "agreement": mean,
            }
            for stream_id, state, tokens, certainty, mean in [
                ("a", "finished", 7, 0.5, far),
                ("b", "length", 7, 0.75, (1 + far) / 2),
                ("c", "finished", 9, None, (1 + far) / 2),
                ("d", "cut", 1, None, None),
            ]
        ],
        "dissent": [{"model": "model-a", "stream_id": "a", "agreement": far, "text": BANANA}],
        "dropped": [
            {"model": "model-d", "state": "cut", "reason": "it was ended before its answer was complete"},
        ],
    }


def test_events_get_the_report_without_words():
    answers = [member("a", BANANA), member("b", BLUE), member("c", BLUE)]
    told = plain(council_report(choose(CONSENSUS, answers), answers, texts=False))
    assert [each["text"] for each in told["dissent"]] == [None]
    assert BANANA not in json.dumps(told)


def test_no_text_shows_in_a_repr():
    answers = [member("a", "my secret diary"), member("b", BANANA), member("c", BANANA)]
    choice = choose(CONSENSUS, answers)
    assert choice.report.dissent
    shown = f"{answers} {choice}"
    assert "diary" not in shown
    assert "Bananas" not in shown
