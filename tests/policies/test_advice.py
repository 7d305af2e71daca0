"""The state in one word, and the one thing to do about it."""

from __future__ import annotations

import pytest

from policies.advice import GET_A_RUNTIME, Readiness, RuntimeView, advise

EMBEDDED = RuntimeView("embedded", "embedded", True, 3, False)


def ollama(up, models=0):
    return RuntimeView("ollama", "ollama", up, models, True)


def openai(up, models=0):
    return RuntimeView("openai", "openai", up, models, False)


@pytest.mark.parametrize(
    ("runtimes", "starting", "state"),
    [
        ([ollama(None), EMBEDDED], False, Readiness.STARTING),
        ([ollama(False), EMBEDDED], True, Readiness.STARTING),
        ([ollama(False), EMBEDDED], False, Readiness.NO_RUNTIME),
        ([ollama(True), EMBEDDED], False, Readiness.NO_MODELS),
        ([ollama(True, 1), EMBEDDED], False, Readiness.READY),
        ([ollama(True, 1), openai(None)], True, Readiness.READY),  # one that answers is enough
        ([ollama(False), openai(True, 1)], False, Readiness.READY),
        ([EMBEDDED], False, Readiness.READY),  # nothing else is switched on
        ([], False, Readiness.READY),
    ],
)
def test_the_state(runtimes, starting, state):
    assert advise(runtimes, starting, "small:1b").state is state


def test_what_to_do_next():
    assert advise([ollama(False), EMBEDDED], False, "small:1b").next_step == GET_A_RUNTIME
    assert "`wf pull small:1b`" in advise([ollama(True), openai(True)], False, "small:1b").next_step
    assert advise([openai(True)], False, "small:1b").next_step == "openai answers but has no model; load one there"
    assert advise([ollama(True, 1)], False, "small:1b").next_step is None
