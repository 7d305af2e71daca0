"""The types that the page's modules state in their comments hold, and no module is left out or too heavy."""

from __future__ import annotations

import gzip
import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from tests.fakes.npm import NODE, installed

TOOLS = Path(__file__).parents[1] / "browser" / "node"

STATIC: Final = Path(str(files("web").joinpath("static")))
MODULE_LINES_MAX: Final = 500
VENDOR: Final = STATIC / "vendor"
PAGE_BYTES_MAX: Final = 250_000
OWN_BYTES_MAX: Final = 150_000  # of it, what is ours: there are 100 kB for libraries and fonts
COMPILE_S: Final = 300.0  # generous: only something stuck runs into it
OPTIONS: Final = (
    "--noEmit --allowJs --checkJs --strict --target es2023 --lib es2024,dom,dom.iterable "
    "--module esnext --moduleResolution bundler"
).split()


def imports(name: str, seen: set[str] | None = None) -> set[str]:
    """A module and all it imports, by name."""
    seen = seen if seen is not None else set()
    if name not in seen:
        seen.add(name)
        for imported in re.findall(r'^import .* from "\./([\w.]+)";$', (STATIC / name).read_text(), re.MULTILINE):
            imports(imported, seen)
    return seen


def test_the_types_in_the_comments_hold(request: pytest.FixtureRequest) -> None:
    if not (VENDOR / "vendor.d.ts").is_file():
        pytest.skip("the libraries were not built here, and their types are part of them: pip install -e .")
    compiler = installed(request.config, TOOLS) / "node_modules" / "typescript" / "bin" / "tsc"
    command = [str(NODE), str(compiler), *OPTIONS, *(str(path) for path in sorted(STATIC.glob("*.js")))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
    assert found.stdout == ""
    assert found.returncode == 0, found.stderr


def test_every_module_is_used_and_of_a_readable_length() -> None:
    modules = {path.name for path in STATIC.glob("*.js")}
    assert modules == imports("app.js") | imports("docs.js")
    too_long = {name for name in modules if len((STATIC / name).read_text().splitlines()) > MODULE_LINES_MAX}
    assert too_long == set()


def test_the_page_is_light() -> None:
    """As sent to a browser: text with gzip, fonts as they are."""
    names = {"index.html", "style.css", "favicon.svg"} | imports("app.js")
    own = sum(len(gzip.compress((STATIC / name).read_bytes())) for name in names)
    assert own <= OWN_BYTES_MAX
    if VENDOR.is_dir():
        theirs = {path: path.read_bytes() for path in VENDOR.iterdir() if path.suffix in (".js", ".css", ".woff2")}
        sent = {path: body if path.suffix == ".woff2" else gzip.compress(body) for path, body in theirs.items()}
        assert own + sum(map(len, sent.values())) <= PAGE_BYTES_MAX


def test_nothing_makes_elements_out_of_text() -> None:
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function\(|srcdoc")
    assert {path.name for path in STATIC.glob("*.js") if forbidden.search(path.read_text())} == set()
