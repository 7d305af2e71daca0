"""What the page says while a session waits for its model, for its first token, or for the next; against the scripted
Ollama."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.acts import free_port, run, show_models
from tests.browser.conftest import Address, serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def mock_url() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "engine", "mock", "--port", str(port), "--tps", "60", "--ttft-ms", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"Mock Ollama" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture(scope="module")
def mocked(tmp_path_factory: pytest.TempPathFactory, mock_url: str) -> Iterator[Address]:
    env = {"WF_OLLAMA__ENABLED": "true", "WF_OLLAMA__SPAWN": "false", "WF_OLLAMA__URL": mock_url}
    with serving(tmp_path_factory.mktemp("mocked"), **env) as address:
        yield address


@pytest.fixture
def page(open_blank: Callable[[Address], Page], mocked: Address) -> Page:
    page = open_blank(mocked)
    page.goto("/")
    expect(page.locator("#model option[value='mock:steady']")).to_be_attached()
    return page


def stop(page: Page) -> None:
    page.keyboard.press("Escape")
    expect(page.locator("#outcome")).to_contain_text("Stopped in")


def test_a_model_on_its_way_into_memory_is_waited_for(page: Page) -> None:
    run(page, "mock:slow-load", max_tokens=2)
    expect(page.locator(".lane .waiting")).to_contain_text(re.compile(r"loading mock:slow-load · \d+\.\d\d s"))
    expect(page.locator(".lane .waiting")).to_contain_text("It is being brought into memory. Stop (Esc) gives up")
    expect(page.locator("#loading-text")).to_contain_text("loading")
    show_models(page)
    row = page.locator("#model-list li", has_text="mock:slow-load")
    expect(row.locator(".state")).to_have_text("loading")
    expect(page.locator("#model-list li", has_text="mock:cut-json").locator(".state")).to_have_text("absent")
    stop(page)


def test_the_wait_for_a_first_token_is_measured(page: Page) -> None:
    run(page, "mock:stall-first", max_tokens=2)
    waiting = page.locator(".lane .waiting")
    expect(waiting).to_contain_text(re.compile(r"prompt sent · \d+\.\d\d s"))
    expect(waiting).to_contain_text("No token has come yet. Stop (Esc) gives up.")

    def shown() -> float:
        found = re.search(r"· (\d+\.\d\d) s", waiting.text_content() or "")
        assert found is not None
        return float(found[1])

    before = shown()
    expect(waiting).not_to_contain_text(f"{before:.2f} s")
    assert shown() > before
    stop(page)


def test_a_stream_that_falls_silent_says_for_how_long_and_what_to_do(page: Page) -> None:
    run(page, "mock:stall", max_tokens=40)
    expect(page.locator(".lane .state")).to_have_text("STALLING")
    expect(page.locator(".lane .stall-note")).to_contain_text("silence ")
    outcome = page.locator("#outcome")
    expect(outcome).to_contain_text(re.compile(r"Silent for \d+\.\d s, past the stall line of \d+"))
    expect(outcome).to_contain_text("Stop (Esc) ends it and keeps what came")
    text = page.locator(".lane .text").text_content()
    stop(page)
    assert page.locator(".lane .text").text_content() == text
