"""The dashboard's files, read before the engine is ready: its own, and the libraries that the installation built."""

from __future__ import annotations

import gzip
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

import attrs
from quart import Response, request

CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
FOREVER: Final = "public, max-age=31536000, immutable"  # a year: the longest that caches promise
PACKED: Final = frozenset({".woff2"})  # already: gzip would only add to them
INDEX: Final = "index.html"
UNBUILT: Final = "unbuilt.html"  # stands in for the dashboard where its libraries were not built
VENDOR: Final = "vendor/"
LIBRARIES: Final = VENDOR + "vendor.js"
_NAMED: Final = re.compile(rb"""(vendor/[\w.-]+\.(?:js|css))(?=["'])""")
_NAMED_FONT: Final = re.compile(rb"(?<=url\()([\w.-]+\.woff2)(?=\))")

logger = logging.getLogger("wf.web")


@attrs.frozen
class Asset:
    """A file as it is sent; `packed` is it with gzip, empty where that is not done. `stamp` is what an address may add
    to its name (`?v=`) when it means just these bytes, empty where files change under their name."""

    body: bytes
    content_type: str
    etag: str
    packed: bytes = b""
    stamp: str = ""


def read_assets(static: Traversable | None = None) -> Mapping[str, Asset]:
    """All files of web/static by name, those of others as `vendor/…`. Every mention of such a file in our own gets its
    stamp, so that a browser keeps it until it changes. Without libraries the dashboard is `UNBUILT`.
    Blocking: call it from a thread."""
    static = static or files("web").joinpath("static")
    ours, theirs = dict(_read(static)), dict(_read(static.joinpath(VENDOR.rstrip("/")), VENDOR))
    theirs = {name: body for name, body in theirs.items() if not name.endswith(".d.ts")}
    stamp = _stamp(theirs)
    mark = rb"\1?v=" + stamp.encode()
    assets = {name: _asset(name, _NAMED.sub(mark, body) if stamp else body) for name, body in ours.items()}
    assets |= {name: _asset(name, _NAMED_FONT.sub(mark, body), stamp) for name, body in theirs.items()}
    if LIBRARIES not in assets:
        logger.warning(
            "the dashboard's libraries were not built; its page says what to do. The engine needs none of them"
        )
        assets[INDEX] = assets[UNBUILT]
    return assets


def _read(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    if folder.is_dir():
        for entry in folder.iterdir():
            if _suffix(entry.name) in CONTENT_TYPES:
                yield prefix + entry.name, entry.read_bytes()


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]


def _stamp(theirs: Mapping[str, bytes]) -> str:
    """One for all of them: they are built together. Empty where there are none."""
    if not theirs:
        return ""
    whole = hashlib.sha256()
    for name in sorted(theirs):
        whole.update(hashlib.sha256(theirs[name]).digest())
    return whole.hexdigest()[:8]


def _asset(name: str, body: bytes, stamp: str = "") -> Asset:
    suffix = _suffix(name)
    return asset_of(body, CONTENT_TYPES[suffix], packed=suffix not in PACKED, stamp=stamp)


def asset_of(body: bytes, content_type: str, *, packed: bool = True, stamp: str = "") -> Asset:
    """`body` with its tag, and with gzip where `packed`. Blocking for a moment where it is large."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return Asset(body, content_type, tag, gzip.compress(body, mtime=0) if packed else b"", stamp)


def respond(asset: Asset) -> Response:
    """The answer to the request at hand: 304 where the caller has these bytes, packed where it can unpack them."""
    kept = FOREVER if asset.stamp and request.args.get("v") == asset.stamp else "no-cache"
    headers = {"etag": asset.etag, "cache-control": kept, "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(b"", status=304, headers=headers)
    if asset.packed and request.accept_encodings["gzip"] > 0:
        packing = {"content-encoding": "gzip"}
        return Response(asset.packed, content_type=asset.content_type, headers=headers | packing)
    return Response(asset.body, content_type=asset.content_type, headers=headers)
