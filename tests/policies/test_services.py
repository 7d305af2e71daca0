"""The table of services: the shipped one, the user's own over it, and which model stands in."""

from __future__ import annotations

from importlib import resources

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ConfigError
from policies.load import Policies, load_policies
from policies.services import SERVICES_MAX, Offer, load_services, stand_in
from policies.source import parse

MINE = "my_coder: {port: 8060, title: My coder, model: qwen2.5-coder:7b, capabilities: [code_review]}"


def changed(text):
    return load_services(parse(text, "wf.yaml"))


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        changed(text)
    return caught.value.message


def test_the_shipped_ones_have_the_ports_and_words_of_their_document():
    entries = load_services().entries
    assert {name: (entry.port, entry.agent_id, entry.agent_name) for name, entry in entries.items()} == {
        "llama31_8b": (8050, "llm_llama31_8b", "Llama 3.1 8B Service"),
        "tinyllama": (8051, "llm_tinyllama_1b", "TinyLlama 1.1B Service"),
        "tlc_domain_classifier": (8052, "tlc_domain_classifier", "TLC Domain Classifier"),
    }
    assert entries["llama31_8b"].capabilities == ("reasoning", "planning", "code_review", "explanation")
    assert entries["tinyllama"].capabilities == ("classification", "tagging", "extraction", "filtering")
    assert entries["tlc_domain_classifier"].capabilities == (
        "domain_classification", "tmd_extraction", "domain_validation",
    )  # fmt: skip
    assert {(entry.tier, entry.role) for entry in entries.values()} == {(2, "execution")}


def test_the_classifier_has_the_model_of_tinyllama():
    table = load_services()
    assert table.models_for("llama31_8b")[0] == "llama3.1:8b"
    assert table.models_for("tinyllama")[0] == "tinyllama:1.1b"
    assert table.models_for("tlc_domain_classifier") == table.models_for("tinyllama")
    assert changed("tinyllama: {model: qwen3:0.6b}").models_for("tlc_domain_classifier")[0] == "qwen3:0.6b"


def test_a_service_of_ones_own_needs_four_words():
    table = changed(MINE)
    assert list(table.entries) == ["llama31_8b", "tinyllama", "tlc_domain_classifier", "my_coder"]
    assert (table.entries["my_coder"].port, table.entries["my_coder"].kind) == (8060, "completion")
    assert table.models_for("my_coder") == ("qwen2.5-coder:7b",)


def test_a_change_touches_one_key():
    before, after = load_services().entries, changed("llama31_8b: {port: 0}").entries
    assert after["llama31_8b"].port == 0
    assert after["llama31_8b"].model == before["llama31_8b"].model
    assert after["tinyllama"] == before["tinyllama"]


def test_one_that_is_switched_off_is_gone_and_leaves_its_port():
    table = changed(f"llama31_8b: {{enabled: false}}\n{MINE.replace('8060', '8050')}")
    assert "llama31_8b" not in table.entries
    assert table.entries["my_coder"].port == 8050


def test_any_number_may_ask_for_any_free_port():
    table = changed("llama31_8b: {port: 0}\ntinyllama: {port: 0}\ntlc_domain_classifier: {port: 0}")
    assert {entry.port for entry in table.entries.values()} == {0}


NAME = "a service's name (small letters, digits and _, at most 40)"
REFUSED = {
    "llama31_8b: {prot: 1}": "wf.yaml:1: llama31_8b.prot is unknown; did you mean llama31_8b.port?",
    "llama31_8b: {port: 70000}": "wf.yaml:1: llama31_8b.port must be 0–65535, not 70000",
    "tinyllama: {port: 8050}": "wf.yaml:1: tinyllama.port is 8050, which llama31_8b has already",
    "tinyllama: {capabilities: []}": "wf.yaml:1: tinyllama.capabilities must be a list of at least one, not none",
    "tinyllama: {model: ../x}": "wf.yaml:1: tinyllama.model must be a model's name, not '../x'",
    "tinyllama: {fallbacks: [a, 'b c']}": "wf.yaml:1: tinyllama.fallbacks[1] must be a model's name, not 'b c'",
    "tinyllama: {title: \"a\\nb\"}": "wf.yaml:1: tinyllama.title must be one line of text, not 'a\\nb'",
    "tinyllama: off": "wf.yaml:1: tinyllama must be a mapping, not 'off'",
    "My-Coder: {}": f"wf.yaml:1: My-Coder must be {NAME}, not 'My-Coder'",
    "router: {}": "wf.yaml:1: router must be another name: the engine has one of its own",
    "mine: {port: 1, title: x, capabilities: [a]}": (
        "wf.yaml:1: mine.model must be given, or else same_model_as, and the other one null"
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_what_cannot_be_is_told_with_its_place(text):
    assert refusal(text).splitlines()[0] == REFUSED[text]


@pytest.mark.parametrize("like", ["nobody", "tlc_domain_classifier"])
def test_a_model_can_only_be_that_of_a_service_that_has_one(like):
    told = refusal(f"tlc_domain_classifier: {{same_model_as: {like}}}")
    assert "same_model_as must be a service that is switched on and has a model" in told


def test_the_model_of_one_that_is_switched_off_is_nobodys():
    assert "tlc_domain_classifier.same_model_as" in refusal("tinyllama: {enabled: false}")


def test_a_model_instead_of_anothers_is_given_with_null_for_the_other():
    table = changed("tlc_domain_classifier: {same_model_as: null, model: qwen3:4b}")
    assert table.models_for("tlc_domain_classifier") == ("qwen3:4b",)
    assert "model must be given, or else same_model_as" in refusal("tlc_domain_classifier: {model: qwen3:4b}")


def test_there_is_an_end_to_how_many_there_are():
    text = "\n".join(MINE.replace("my_coder", f"mine_{n}").replace("8060", str(9000 + n)) for n in range(SERVICES_MAX))
    assert f"at most {SERVICES_MAX}" in refusal(text)


def test_all_problems_are_told_together():
    assert len(refusal("llama31_8b: {port: -1}\ntinyllama: {port: -1}\nX: {}").splitlines()) == 3


# ── standing in ──

KINDS = ("ollama", "llama_cpp", "openai", "embedded", "synthetic")
offers = st.lists(
    st.builds(Offer, st.text("ab", min_size=1), st.sampled_from(KINDS), st.booleans(), st.booleans()), max_size=6
)


@given(offers)
def test_only_a_local_model_that_answers_stands_in_and_a_demonstration_last(given_offers):
    found = stand_in(given_offers)
    fit = [offer for offer in given_offers if offer.local and offer.answers]
    if not fit:
        assert found is None
        return
    real = [offer for offer in fit if offer.kind not in ("embedded", "synthetic")]
    built_in = [offer for offer in fit if offer.kind == "embedded"]
    assert found == (real or built_in or fit)[0].name


@pytest.mark.parametrize(
    ("services", "taxonomy"),
    [
        ("llama31_8b: {port: 9050}", ""),
        ("tinyllama: {enabled: false}\ntlc_domain_classifier: {enabled: false}", ""),
        ("mine: {port: 0, title: Mine, model: m, capabilities: [x]}", ""),
        ("", "prompt: {answer_tokens_max: 8}"),
        ("", "domains: {question: What about}"),
    ],
)
def test_what_services_and_their_classifier_are_is_in_the_policy_hash(services, taxonomy):
    def loaded(services: str, taxonomy: str) -> Policies:
        return load_policies(services=parse(services or "{}", "a.yaml"), taxonomy=parse(taxonomy or "{}", "a.yaml"))

    assert loaded("", "").policy_hash == load_policies().policy_hash
    assert loaded(services, taxonomy).policy_hash != load_policies().policy_hash
    assert loaded("llama31_8b: {port: 8050}", "").policy_hash == load_policies().policy_hash


def test_every_file_of_policies_is_in_the_hash():
    """A table that nobody reads, or that nobody hashes, would be one that nobody can rely on."""
    files = {path.name.removesuffix(".yaml") for path in resources.files("policies").iterdir() if "yaml" in path.name}
    of_policies = {field.name for field in attrs.fields(Policies)} - {"policy_hash"}
    assert files - {"wf.example"} == of_policies
