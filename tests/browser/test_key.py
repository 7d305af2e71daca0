"""The page of an engine that asks for a key."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import serving

KEY = "correct-horse"


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("locked"), WF_API_KEYS=f"[{KEY}]") as address:
        yield address


def test_with_the_key_as_a_password_the_page_is_live(browser: Browser, locked):
    context = browser.new_context(base_url=locked.http, http_credentials={"username": "me", "password": KEY})
    try:
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#run")).to_be_enabled()
        assert KEY not in page.content()
    finally:
        context.close()


def test_without_it_nothing_is_shown(browser: Browser, locked):
    context = browser.new_context(base_url=locked.http)
    try:
        answer = context.request.get("/", headers={"accept": "text/html"})
        assert answer.status == 401
        assert "Basic" in answer.headers["www-authenticate"]
    finally:
        context.close()
