"""`wf run` without a running engine: an answer of this machine as always, one of elsewhere only where the command
consents, and never without the broker and its record."""

from __future__ import annotations

import json

import pytest

from engine.config import load_settings
from engine.domain.errors import AddressInUse, BrokerDisabled, RuntimeUnavailable
from engine.oneshot import OneShot, ask_in_process
from engine.state import open_state

FAR = "openai/gpt-4o-mini"
PROVIDERS = "providers: {openai: {preferred_models: [gpt-4o-mini]}}\nembedded: {pace_tps: 0}\n"
HYBRID = PROVIDERS + "tier: hybrid\nbroker: {mode: advisory}\n"


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("WF_DATA_DIR", str(tmp_path / "state"))
    for name in ("OPENAI_API_KEY", "WF_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")  # nothing listens there
    return tmp_path / "state"


def settings_of(tmp_path, text):
    (tmp_path / "wf.yaml").write_text(text + "ollama: {spawn: false}\n")
    return load_settings(argv_config=tmp_path / "wf.yaml", flags={}, environ={}, cwd=tmp_path)


def asked(settings, model, broker):
    lines: list[bytes] = []
    end = ask_in_process(OneShot(model, "hello", {"max_tokens": 3}, broker), settings, lines.append)
    return end, [json.loads(line) for line in lines]


def test_without_consent_nothing_outside_is_asked_and_the_flag_is_named(tmp_path, state):
    with pytest.raises(BrokerDisabled, match=r"api\.openai\.com.*--broker"):
        asked(settings_of(tmp_path, HYBRID), FAR, False)
    assert not (state / "lock").exists()


def test_consent_alone_is_not_enough(tmp_path, state):
    with pytest.raises(BaseExceptionGroup) as caught:
        asked(settings_of(tmp_path, PROVIDERS), FAR, True)
    assert caught.group_contains(BrokerDisabled, match=r"broker\.mode")


def test_with_consent_the_provider_is_there_and_what_it_lacks_is_told(tmp_path, state):
    with pytest.raises(BaseExceptionGroup) as caught:
        asked(settings_of(tmp_path, HYBRID), FAR, True)
    assert caught.group_contains(RuntimeUnavailable, match="set OPENAI_API_KEY")
    open_state(state).close()  # it was let go of


@pytest.mark.parametrize("broker", [False, True])
def test_a_model_of_this_machine_answers_as_always(tmp_path, state, broker):
    end, events = asked(settings_of(tmp_path, HYBRID), "embedded/lexicon", broker)
    assert (end, events[0]["payload"]["origin"]) == ("length", "api")
    assert (state / "lock").exists() == broker  # with consent it is held, for the record
    assert not (state / "broker.jsonl").exists()


def test_the_record_is_nobody_elses_meanwhile(tmp_path, state):
    folder = open_state(state)
    try:
        with pytest.raises(AddressInUse):
            asked(settings_of(tmp_path, HYBRID), "embedded/lexicon", True)
    finally:
        folder.close()
