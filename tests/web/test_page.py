from __future__ import annotations

import gzip
import re
from importlib.resources import files

import pytest
import trio

from tests.fakes.api import ASSETS, TOKEN, running_api
from web.page import CONTENT_TYPES, read_assets

INDEX = ASSETS["index.html"]


async def test_the_page_is_served_from_memory(autojump_clock):
    async with running_api() as api:
        answer = await api.get("/", accept="text/html")
        assert (answer.status, answer.body) == (200, INDEX.body)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert (answer.headers["etag"], answer.headers["cache-control"]) == (INDEX.etag, "no-cache")


async def test_a_script_has_its_type(autojump_clock):
    async with running_api() as api:
        answer = await api.get("/static/app.js")
        assert (answer.status, answer.body) == (200, ASSETS["app.js"].body)
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(("path", "etag"), [("/", INDEX.etag), ("/static/app.js", ASSETS["app.js"].etag)])
async def test_what_the_browser_has_is_not_sent_again(path, etag, autojump_clock):
    async with running_api() as api:
        answer = await api.get(path, accept="text/html", if_none_match=etag)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
        assert (await api.get(path, accept="text/html", if_none_match='"older"')).status == 200


async def test_a_file_is_packed_for_those_who_can_unpack_it(autojump_clock):
    real = await trio.to_thread.run_sync(read_assets)
    asset = real["app.js"]
    assert gzip.decompress(asset.packed) == asset.body
    assert len(asset.packed) < len(asset.body) / 2
    assert all(gzip.decompress(one.packed) == one.body for one in real.values())


@pytest.mark.parametrize(
    "name", ["none.js", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "index.html/x", ".", "app.js%00", "APP.JS"]
)
async def test_only_what_was_read_at_the_start_can_be_had(name, autojump_clock):
    async with running_api() as api:
        assert (await api.get(f"/static/{name}")).error["code"] == "NOT_FOUND"


async def test_the_page_may_run_its_own_scripts_and_nothing_else(autojump_clock):
    async with running_api() as api:
        parts = (await api.get("/", accept="text/html")).headers["content-security-policy"].split("; ")
        policy = {name: values for name, _, values in (part.partition(" ") for part in parts)}
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["trusted-types"] == "'none'"
        assert policy["connect-src"] == "'self' ws://127.0.0.1:8146"
        assert "unsafe" not in " ".join(parts)
        assert "content-security-policy" in (await api.get("/", accept="text/html", if_none_match=INDEX.etag)).headers


@pytest.mark.parametrize(
    ("host", "ws"),
    [("127.0.0.1:8145", "ws://127.0.0.1:8146"), ("localhost:8145", "ws://localhost:8146"), ("[::1]:8145", "ws://[::1]:8146")],
)  # fmt: skip
async def test_the_socket_has_the_name_the_page_was_asked_by(host, ws, autojump_clock):
    async with running_api() as api:
        assert (await api.get("/api/bootstrap", host=host)).json["ws_url"] == f"{ws}/ws"
        assert ws in (await api.get("/", accept="text/html", host=host)).headers["content-security-policy"]
        body = {"model": "a", "prompt": "x"}
        assert (await api.post("/generate", body, host=host)).json["ws_url"] == f"{ws}/ws"


async def test_bootstrap_tells_the_page_what_it_needs(autojump_clock):
    async with running_api() as api:
        body = (await api.get("/api/bootstrap", sec_fetch_site="same-origin")).json
        assert (body["token"], body["schema_version"], body["tick_hz"]) == (TOKEN, "1.0", 60)
        assert (body["tier"], body["level"], body["boot"]) == ("mid", 5, api.slice.core.boot)
        assert body["limits"]["body_bytes_max"] == 1_048_576
        assert (body["limits"]["council_models_max"], body["limits"]["turbo_models_max"]) == (4, 4)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "", "SAME-ORIGIN"])
async def test_no_other_page_gets_the_token(site, autojump_clock):
    async with running_api() as api:
        answer = await api.get("/api/bootstrap", sec_fetch_site=site)
        assert (answer.status, answer.error["code"]) == (403, "FORBIDDEN_ORIGIN")
        assert TOKEN not in answer.body.decode()


@pytest.mark.parametrize("path", ["/", "/health", "/models", "/stats"])
async def test_the_token_is_nowhere_else(path, autojump_clock):
    async with running_api() as api:
        answer = await api.get(path)
        assert TOKEN not in answer.body.decode() + str(answer.headers)


async def test_the_page_that_ships_refers_only_to_files_that_ship():
    assets = await trio.to_thread.run_sync(read_assets)
    assert {asset.content_type for asset in assets.values()} <= set(CONTENT_TYPES.values())
    page = assets["index.html"].body.decode()
    named = re.findall(r'(?:src|href)="/static/([^"]+)"', page)
    assert named
    assert set(named) <= assets.keys()
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page), "nothing comes from elsewhere"
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|<style|\sstyle=", page), "the policy would forbid it"


async def test_a_changed_file_has_another_tag():
    assets = await trio.to_thread.run_sync(read_assets)
    tags = [asset.etag for asset in assets.values()]
    assert len(set(tags)) == len(tags)
    assert all(re.fullmatch(r'"[0-9a-f]{16}"', tag) for tag in tags)
    assert assets["index.html"].body == files("web").joinpath("static/index.html").read_bytes()
