from __future__ import annotations

import gzip
import re
from importlib.resources import files
from pathlib import Path

import pytest
import trio

from tests.fakes.api import ASSETS, TOKEN, running_api
from web.assets import CONTENT_TYPES, LIBRARIES, PACKED, read_assets

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
    for name, one in real.items():
        if any(name.endswith(suffix) for suffix in PACKED):
            assert one.packed == b""
        else:
            assert gzip.decompress(one.packed) == one.body


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
        assert policy["frame-ancestors"] == "'none'"
        assert policy["font-src"] == "'self'"
        assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "lit-html")
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
    for page in (assets["index.html"].body.decode(), assets["unbuilt.html"].body.decode()):
        named = re.findall(r'(?:src|href)="/static/([^"?]+)(?:\?v=[0-9a-f]{8})?"', page)
        assert named
        assert set(named) <= assets.keys()
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page), "nothing comes from elsewhere"
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|<style|\sstyle=", page), "the policy would forbid it"


async def test_a_changed_file_has_another_tag():
    assets = dict(await trio.to_thread.run_sync(read_assets))
    if LIBRARIES not in assets:
        del assets["unbuilt.html"]  # it stands in for another
    tags = [asset.etag for asset in assets.values()]
    assert len(set(tags)) == len(tags)
    assert all(re.fullmatch(r'"[0-9a-f]{16}"', tag) for tag in tags)


# ── libraries of others ─────────────────────────────────────────────────────────────────────────────────────────────

FILES = {
    "index.html": '<link href="/static/vendor/vendor.css"><script src="/static/app.js"></script>',
    "unbuilt.html": "<h1>not built</h1><pre>pip install -e .</pre>",
    "app.js": 'import { html } from "./vendor/vendor.js";\nimport { x } from "./other.js";\n',
    "vendor/vendor.js": "export const html = 1;",
    "vendor/vendor.css": "@font-face{src:url(letters.woff2)}",
    "vendor/letters.woff2": "letters",
    "vendor/vendor.d.ts": "export {}",
    "vendor/THIRD_PARTY_LICENSES.txt": "all of them",
}


def folder(path: Path, **changed: str | None) -> Path:
    for name, text in (FILES | changed).items():
        if text is not None:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)
    return path


def stamp_in(text: bytes) -> str:
    (stamp,) = set(re.findall(rb"\?v=([0-9a-f]{8})", text))
    return stamp.decode()


def test_every_mention_of_a_library_says_which_one(tmp_path):
    assets = read_assets(folder(tmp_path))
    stamp = stamp_in(assets["index.html"].body)
    assert assets["index.html"].body.decode().startswith(f'<link href="/static/vendor/vendor.css?v={stamp}">')
    assert assets["app.js"].body.decode() == FILES["app.js"].replace("vendor.js", f"vendor.js?v={stamp}")
    assert assets["vendor/vendor.css"].body.decode() == f"@font-face{{src:url(letters.woff2?v={stamp})}}"
    assert assets["vendor/vendor.js"].stamp == assets["vendor/letters.woff2"].stamp == stamp
    assert (assets["app.js"].stamp, assets["vendor/letters.woff2"].packed) == ("", b"")
    assert "vendor/vendor.d.ts" not in assets
    changed = read_assets(folder(tmp_path / "later", **{"vendor/vendor.js": "export const html = 2;"}))
    assert stamp_in(changed["app.js"].body) != stamp
    assert changed["app.js"].etag != assets["app.js"].etag, "a module that imports another library is another module"


@pytest.mark.parametrize(
    ("query", "kept"),
    [("?v=STAMP", "public, max-age=31536000, immutable"), ("?v=00000000", "no-cache"), ("", "no-cache")],
)
async def test_a_library_is_kept_as_long_as_its_name_says_which_one(query, kept, tmp_path, autojump_clock):
    assets = read_assets(folder(tmp_path))
    query = query.replace("STAMP", assets["vendor/vendor.js"].stamp)
    async with running_api(assets=assets) as api:
        answer = await api.get(f"/static/vendor/vendor.js{query}")
        assert (answer.status, answer.body) == (200, assets["vendor/vendor.js"].body)
        assert (answer.headers["cache-control"], answer.headers["etag"]) == (kept, assets["vendor/vendor.js"].etag)
        assert (await api.get(f"/static/app.js{query}")).headers["cache-control"] == "no-cache"
        font = await api.get("/static/vendor/letters.woff2", accept_encoding="gzip")
        assert (font.body, font.headers["content-type"]) == (b"letters", "font/woff2")
        assert "content-encoding" not in font.headers
        assert (await api.get("/static/vendor/vendor.d.ts")).error["code"] == "NOT_FOUND"


async def test_without_its_libraries_the_page_says_what_to_do(tmp_path, autojump_clock, caplog):
    gone = dict.fromkeys(name for name in FILES if name.startswith("vendor/"))
    assets = read_assets(folder(tmp_path, **gone))
    assert "were not built" in caplog.text
    async with running_api(assets=assets) as api:
        answer = await api.get("/", accept="text/html")
        assert (answer.status, answer.body.decode()) == (200, FILES["unbuilt.html"])
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert (await api.get("/", accept="*/*")).body == b"Ollama is running"
        assert (await api.get("/health")).status == 200
        assert (await api.get("/static/vendor/vendor.js")).error["code"] == "NOT_FOUND"


def test_what_it_says_then_needs_no_script():
    page = files("web").joinpath("static/unbuilt.html").read_text()
    assert "pip install -e ." in page
    assert not re.search(r"<script|\son\w+=|https?://|<style|\sstyle=", page)
    assert {"/health", "/models", "/docs"} <= set(re.findall(r'href="([^"]+)"', page))
