"""Downloading from Hugging Face: what is asked of whom, what is chosen, and what is left when something goes wrong."""

from __future__ import annotations

import os
import resource
import shutil
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
import trio

from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    Overloaded,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from engine.domain.pull import PullProgress
from tests.fakes.hub import REPO, TOKEN, TREE, WEIGHTS, FakeHub, answer, listed
from tests.fakes.ollama import Break, Send, Silence, Step
from transport.runtimes.llama_cpp.hub import HUB_URL, STALL_S, WRITE_BYTES
from transport.runtimes.llama_cpp.part_file import HASH_BYTES


async def download(fake: FakeHub, path: Path, quant: str | None = None) -> list[PullProgress]:
    async with aclosing(fake.hub.download(REPO, quant, path)) as reports:
        return [report async for report in reports]


async def failure_of(fake: FakeHub, path: Path, quant: str | None = None) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await download(fake, path, quant)
    assert content(path) is None
    assert TOKEN not in f"{caught.value.message} {caught.value.details} {caught.value.__cause__}"
    assert "X-Signature" not in f"{caught.value.message} {caught.value.details}"
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "org" / "model-GGUF.gguf"


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def left(path: Path) -> list[bytes]:
    """The parts of downloads that are kept."""
    return [part.read_bytes() for part in path.parent.glob("*.part")]


# ── a download ──


async def test_a_file_arrives_whole_and_checked(path: Path):
    fake = FakeHub([listed("model-Q4_K_M.gguf")])
    reports = await download(fake, path)
    assert content(path) == WEIGHTS
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert left(path) == []
    assert reports[0] == PullProgress(f"looking up {REPO}")
    assert reports[1] == PullProgress("downloading model-Q4_K_M.gguf", 0, len(WEIGHTS))
    assert reports[-2:] == [
        PullProgress("verifying", len(WEIGHTS), len(WEIGHTS)),
        PullProgress("success", len(WEIGHTS), len(WEIGHTS)),
    ]
    assert fake.asked == [
        f"{HUB_URL}{TREE}?recursive=true",
        f"{HUB_URL}/{REPO}/resolve/main/model-Q4_K_M.gguf",
        fake.location,
    ]


async def test_the_token_goes_to_hugging_face_and_to_nobody_it_sends_us_to(path: Path):
    fake = FakeHub([listed("model-Q4_K_M.gguf")])
    await download(fake, path)
    assert [request.headers.get("authorization") for request in fake.requests] == [f"Bearer {TOKEN}"] * 2 + [None]


async def test_progress_is_told_every_four_megabytes(path: Path):
    data = os.urandom(2 * WRITE_BYTES + 5)
    fake = FakeHub([listed("a-Q4_K_M.gguf", data)], data)
    fake.steps = [[Send(data[at : at + 65_536]) for at in range(0, len(data), 65_536)]]
    reports = await download(fake, path)
    told = [report.completed_bytes for report in reports if report.status.startswith("downloading")]
    assert told == [0, WRITE_BYTES, 2 * WRITE_BYTES, len(data)]
    assert content(path) == data


async def test_a_file_outside_the_large_file_storage_is_checked_by_its_size(path: Path):
    await download(FakeHub([listed("a.gguf", lfs=None)]), path)
    assert content(path) == WEIGHTS


async def test_a_relative_redirect_stays_with_hugging_face(path: Path):
    fake = FakeHub([listed("a.gguf")], location="/somewhere/else")
    fake.answers["/somewhere/else"] = answer(200, WEIGHTS)
    await download(fake, path)
    assert content(path) == WEIGHTS


# ── the choice ──


@pytest.mark.parametrize(
    ("quant", "paths", "chosen"),
    [
        (None, ["a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-Q2_K.gguf"], "a-Q4_K_M.gguf"),
        (None, ["sub/a.q4_k_m.gguf", "a-Q8_0.gguf"], "sub/a.q4_k_m.gguf"),
        (None, ["README.md", "only.gguf", "mmproj-a.gguf"], "only.gguf"),
        ("Q8_0", ["a-Q8_0.gguf", "a-Q4_K_M.gguf"], "a-Q8_0.gguf"),
        ("q8_0", ["a_Q8_0.gguf", "a-Q4_K_M.gguf"], "a_Q8_0.gguf"),
        ("Q4_K", ["a-Q4_K_M.gguf", "a-Q4_K.gguf"], "a-Q4_K.gguf"),
        (None, ["a-Q4_K_M-00001-of-00002.gguf", "a-Q4_K_M-00002-of-00002.gguf", "b-Q4_K_M.gguf"], "b-Q4_K_M.gguf"),
    ],
)
async def test_which_file_is_chosen(path: Path, quant: str | None, paths: list[str], chosen: str):
    fake = FakeHub([listed(name) for name in paths])
    await download(fake, path, quant)
    assert fake.asked[1] == f"{HUB_URL}/{REPO}/resolve/main/{chosen}"


async def test_without_a_wish_the_smallest_is_chosen(path: Path):
    small = b"small"
    fake = FakeHub([listed("a-Q8_0.gguf"), listed("a-IQ1_S.gguf", small)], small)
    await download(fake, path)
    assert content(path) == small


@pytest.mark.parametrize(
    ("quant", "paths", "error", "text"),
    [
        (None, ["README.md"], ModelNotFound, "no GGUF file"),
        ("Q4_K", ["a-Q4_K_M.gguf"], ModelNotFound, "no file of Q4_K; it has a-Q4_K_M.gguf"),
        ("Q8_0", ["a-Q4_K_M.gguf", "a-Q2_K.gguf"], ModelNotFound, "no file of Q8_0; it has a-Q4_K_M.gguf, a-Q2_K.gguf"),
        (None, ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], InvalidRequest, "split into several files"),
        ("Q8_0", ["a-Q8_0-00001-of-00002.gguf", "b-Q4_K_M.gguf"], InvalidRequest, "split into several files"),
    ],
)
async def test_what_cannot_be_chosen(
    path: Path, quant: str | None, paths: list[str], error: type[EngineError], text: str
):
    fake = FakeHub([listed(name) for name in paths])
    refused = await failure_of(fake, path, quant)
    assert type(refused) is error
    assert text in refused.message
    assert len(fake.requests) == 1


async def test_a_name_from_the_server_is_never_a_place_on_the_disk(path: Path, tmp_path: Path):
    fake = FakeHub([listed("../../../../outside?x#y.gguf")])
    await download(fake, path)
    assert [file for folder in os.walk(tmp_path) for file in folder[2]] == [path.name]
    assert content(path) == WEIGHTS
    assert fake.asked[1].endswith("outside%3Fx%23y.gguf")


# ── broken off, and gone on with ──


@pytest.mark.parametrize("last", [Break(), None], ids=["reset", "ended early"])
async def test_a_broken_download_is_gone_on_with(path: Path, last: Step | None):
    fake = FakeHub([listed("a.gguf")], steps=[[Send(WEIGHTS[:1000]), *([last] if last else [])]])
    error = await failure_of(fake, path)
    assert type(error) is UpstreamTruncated
    assert error.message.startswith(f"the download broke off after 1000 of {len(WEIGHTS)} bytes")
    assert left(path) == [WEIGHTS[:1000]]
    reports = await download(fake, path)
    assert fake.requests[-1].headers["range"] == "bytes=1000-"
    assert PullProgress("reading what is there", 1000, len(WEIGHTS)) in reports
    assert content(path) == WEIGHTS


async def test_a_large_part_is_read_in_steps(path: Path):
    data = os.urandom(HASH_BYTES + 7)
    fake = FakeHub([listed("a.gguf", data)], data, steps=[[Send(data[:-5]), Break()]])
    await failure_of(fake, path)
    reports = await download(fake, path)
    read = [report.completed_bytes for report in reports if report.status == "reading what is there"]
    assert read == [HASH_BYTES, HASH_BYTES + 2]
    assert content(path) == data


async def test_a_cancelled_download_is_gone_on_with(path: Path):
    first = os.urandom(WRITE_BYTES)
    data = first + b"the rest"
    fake = FakeHub([listed("a.gguf", data)], data, steps=[[Send(first), Silence()]])
    with trio.CancelScope() as scope:
        async with aclosing(fake.hub.download(REPO, None, path)) as reports:
            async for report in reports:
                if report.completed_bytes == WRITE_BYTES:
                    scope.cancel()
    assert left(path) == [first]
    await download(fake, path)
    assert content(path) == data


async def test_a_download_that_only_lacked_its_end_asks_for_no_bytes(path: Path):
    fake = FakeHub([listed("a.gguf")])
    async with aclosing(fake.hub.download(REPO, None, path)) as reports:
        async for report in reports:
            if report.status == "verifying":
                break
    count = len(fake.requests)
    await download(fake, path)
    assert len(fake.requests) == count + 1
    assert content(path) == WEIGHTS


async def test_a_server_that_sends_all_again_makes_us_begin_again(path: Path):
    fake = FakeHub([listed("a.gguf")], steps=[[Send(WEIGHTS[:1000]), Break()]], ranges=False)
    await failure_of(fake, path)
    await download(fake, path)
    assert content(path) == WEIGHTS


async def test_another_part_than_asked_for_is_not_taken(path: Path):
    fake = FakeHub([listed("a.gguf")], steps=[[Send(WEIGHTS[:1000]), Break()]])
    await failure_of(fake, path)
    wrong = answer(206, b"x", content_range="bytes 999-9/10")
    fake.answers["/blob/1"] = wrong
    assert type(await failure_of(fake, path)) is UpstreamProtocolError
    assert left(path) == [WEIGHTS[:1000]]


async def test_another_version_of_the_file_begins_anew(path: Path):
    await failure_of(FakeHub([listed("a.gguf")], steps=[[Send(WEIGHTS[:1000]), Break()]]), path)
    other = WEIGHTS[::-1]
    await download(FakeHub([listed("a.gguf", other)], other), path)
    assert content(path) == other
    assert left(path) == []


# ── wrong, refused, full ──


async def test_damaged_bytes_are_found_and_removed(path: Path):
    fake = FakeHub([listed("a.gguf")], steps=[[Send(bytes(len(WEIGHTS)))]])
    error = await failure_of(fake, path)
    assert type(error) is UpstreamProtocolError
    assert "SHA-256" in error.message
    assert left(path) == []


async def test_more_than_the_file_has_is_refused(path: Path):
    fake = FakeHub([listed("a.gguf")], steps=[[Send(WEIGHTS), Send(b"more")]])
    assert "more than the file has" in (await failure_of(fake, path)).message
    assert left(path) == []


async def test_silence_is_not_waited_out(path: Path, autojump_clock: trio.testing.MockClock):
    fake = FakeHub([listed("a.gguf")], steps=[[Send(WEIGHTS[:1000]), Silence()]])
    error = await failure_of(fake, path)
    assert type(error) is UpstreamTimeout
    assert error.details == {"limit_s": STALL_S}
    assert left(path) == [WEIGHTS[:1000]]


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (401, ModelNotFound, "terms must be accepted"),
        (403, ModelNotFound, "llama_cpp.hub_token"),
        (404, ModelNotFound, f"has no {REPO}"),
        (429, Overloaded, "too many requests"),
        (500, RuntimeUnavailable, "fault of its own (500)"),
        (418, UpstreamProtocolError, "answered 418"),
    ],
)
@pytest.mark.parametrize("where", [TREE, "/blob/1"])
async def test_refusals(path: Path, status: int, error: type[EngineError], text: str, where: str):
    fake = FakeHub([listed("a.gguf")])
    fake.answers[where] = answer(status, {"error": "no"})
    refused = await failure_of(fake, path)
    assert type(refused) is error
    assert text in refused.message


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn-lfs.hf.co/blob",
        "https://evil.example/blob",
        "https://huggingface.co.evil.example/blob",
        "https://evilhf.co/blob",
        "https://user@cdn-lfs.hf.co/blob",
        "https://cdn-lfs.hf.co:8443/blob",
        "//evil.example/blob",
        "file:///etc/passwd",
    ],
)
async def test_we_go_nowhere_else(path: Path, location: str):
    fake = FakeHub([listed("a.gguf")], location=location)
    error = await failure_of(fake, path)
    assert type(error) is UpstreamProtocolError
    assert "another place" in error.message
    assert len(fake.requests) == 2


async def test_a_far_server_gets_more_time_for_a_connection_than_one_here(path: Path):
    fake = FakeHub([], answers={TREE: httpx.ConnectTimeout("")})
    error = await failure_of(fake, path)
    assert type(error) is RuntimeUnavailable
    assert error.message == f"Hugging Face at {HUB_URL} did not take a connection within 15 s"
    assert fake.requests[0].extensions["timeout"]["connect"] == 15


async def test_redirects_have_an_end(path: Path):
    fake = FakeHub([listed("a.gguf")], location=f"{HUB_URL}/round/and/round")
    assert "more than 5 times" in (await failure_of(fake, path)).message
    assert len(fake.requests) == 1 + 1 + 5


@pytest.mark.parametrize("body", [b"<html>", b'{"error":"x"}', b'[{"type":"file","path":1}]', b'[{"type":"file"}]'])
async def test_a_listing_that_is_none(path: Path, body: bytes):
    fake = FakeHub([])
    fake.answers[TREE] = answer(200, body)
    assert type(await failure_of(fake, path)) is UpstreamProtocolError


async def test_a_disk_without_room_is_told_before_anything_is_sent_for(path: Path):
    needed = shutil.disk_usage(path.parents[2]).total + 1
    fake = FakeHub([listed("a.gguf", size=needed)])
    error = await failure_of(fake, path)
    assert type(error) is ModelLoadFailed
    assert "make room, or choose a smaller" in error.message
    assert error.details["needed_bytes"] == needed
    assert len(fake.requests) == 1


async def test_what_the_disk_refuses_is_told_and_the_rest_kept(path: Path):
    """A limit on the size of files stands for a disk that fills up meanwhile."""
    fake = FakeHub([listed("a.gguf")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        error = await failure_of(fake, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert type(error) is ModelLoadFailed
    assert "File too large" in error.message
    assert left(path) == [WEIGHTS[:4096]]
    await download(fake, path)
    assert content(path) == WEIGHTS
