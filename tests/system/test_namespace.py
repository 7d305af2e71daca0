"""The proof that local answers need no network: tests of a real engine, run again where there is none but loopback.

A few of them always; with `WF_NAMESPACE_SUITE=1` a broad part of the suite; with `make test-offline` all but what needs
the registry of npm.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.offline import INSIDE, ROOT, command, interfaces

LIMIT_S = 600  # generous: only something stuck runs into it
SUITE_LIMIT_S = 1800  # minutes on a slow machine; only something stuck runs into it
SESSION = "tests/system/test_session.py::test_the_whole_way_from_a_prompt_to_sigterm"
SUITE = (
    "tests/test_slice.py",
    "tests/web",
    "--ignore=tests/web/test_types.py",  # asks the registry of npm
    "tests/actors",
    "tests/system/test_session.py",
    "tests/system/test_councils.py",
    "tests/system/test_broker.py",
)
SWITCH = "WF_NAMESPACE_SUITE"


def run_inside(*words: str, limit_s: float = LIMIT_S) -> str:
    """What pytest says; it has passed and left nothing out. Skips the test, loudly, where there is no way inside."""
    try:
        asked = command(*words)
    except PermissionError as error:
        pytest.skip(f"NOT PROVED HERE that the engine works without any network: {error}")
    done = subprocess.run(asked, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize("target", [SESSION, "tests/system/test_broker.py"])
def test_a_real_engine_where_there_is_no_network(target):
    run_inside(target)


@pytest.mark.skipif(os.environ.get(SWITCH) != "1", reason=f"takes minutes: {SWITCH}=1 or make test-offline")
def test_most_of_the_suite_where_there_is_no_network():
    run_inside(*SUITE, limit_s=SUITE_LIMIT_S)


def test_nothing_is_run_where_there_is_a_network():
    here = interfaces(Path("/proc/net/dev").read_text())
    if here == {"lo"}:
        pytest.skip("there is no network here")
    asked = [sys.executable, "-m", "tests.system.offline", INSIDE, "-c", "print('ran')"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is a network here" in done.stderr


def test_interfaces_are_read_from_what_the_kernel_says():
    text = "Inter-|   Receive\n face |bytes\n    lo:  0 0\n  eth0: 12 3\n"
    assert interfaces(text) == {"lo", "eth0"}
