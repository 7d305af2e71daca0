"""`wf mock`: the list it prints, the flags it takes, and how it ends."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys

import httpx
import msgspec
import pytest

from engine.mock import add_flags, run_mock
from tests.fakes.processes import WATCHDOG_S
from transport.mock_ollama.catalogue import BEHAVIOURS


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(words)


def test_the_list_is_printed_for_people_and_for_scripts(capsys):
    assert run_mock(parsed("--list")) == 0
    people = capsys.readouterr().out
    assert run_mock(parsed("--json")) == 0
    scripts = msgspec.json.decode(capsys.readouterr().out)
    assert [one["name"] for one in scripts["models"]] == list(BEHAVIOURS)
    for one in scripts["models"]:
        assert f"{one['name']} " in people
        assert one["about"] in people


@pytest.mark.parametrize(
    "words", [("--tps", "-1"), ("--port", "70000"), ("--tokens", "0"), ("--ttft-ms", "nan"), ("--tps", "x")]
)
def test_flags_out_of_range_are_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as left:
        parsed(*words)
    assert left.value.code == 2
    assert words[0] in capsys.readouterr().err


VERB = """
import argparse, sys
from engine import mock
parser = argparse.ArgumentParser()
mock.add_flags(parser)
sys.exit(mock.run_mock(parser.parse_args()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(number):
    with subprocess.Popen(
        [sys.executable, "-c", VERB, "--port", "0", "--tps", "0", "--tokens", "3"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = process.stdout.readline().split()[-1]
            asked = {"model": "mock:steady", "prompt": "x"}
            answer = httpx.post(f"{url}/api/generate", json=asked, trust_env=False, timeout=WATCHDOG_S)
            assert len(answer.text.splitlines()) == 4
            process.send_signal(number)
            out, _ = process.communicate(timeout=WATCHDOG_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert out.splitlines()[-1] == "1 requests, 1 answers begun, 0 left by the client before the end"
