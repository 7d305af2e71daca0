"""Downloading one GGUF file of a repository on Hugging Face, when somebody asks for it and never else.

Only the name of the repository goes out. The file comes from where Hugging Face points to, over https and only from its
own hosts; a token goes to Hugging Face itself and to none of these. What arrives is checked against the size and, for
files kept in its large file storage, the SHA-256 that the listing states.

A download that broke off is gone on with by the next one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import attrs
import msgspec
import trio

from engine.domain.errors import (
    EngineError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RuntimeFault,
    RuntimeUnavailable,
    UpstreamProtocolError,
    UpstreamTruncated,
)
from engine.domain.pull import PullProgress
from policies.egress import Permit, Purpose
from transport.runtimes.llama_cpp.part_file import PartFile
from transport.runtimes.upstream import Transport, Upstream, UpstreamResponse
from transport.wire.ollama import decode

HUB_URL: Final = "https://huggingface.co"
HOSTS: Final = ("huggingface.co", "hf.co")  # and their subdomains
QUANT_DEFAULT: Final = "Q4_K_M"
CONNECT_S: Final = 15.0
LIST_S: Final = 30.0
HEAD_S: Final = 30.0
STALL_S: Final = 60.0  # without a byte
REDIRECTS_MAX: Final = 5
FILE_MAX_BYTES: Final = 1 << 50
WRITE_BYTES: Final = 4 << 20  # one trip to a thread, and one step of progress
FILES_MAX: Final = 20_000  # of a repository
FILES_SHOWN: Final = 8  # in an error

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PARTS: Final = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.gguf$", re.IGNORECASE)
_NO_MODEL: Final = ("mmproj", "imatrix")  # image encoders and calibration data, in files of the same kind
_RANGE: Final = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/(?:[0-9]{1,15}|\*)")

T = TypeVar("T")


class _Lfs(msgspec.Struct):
    oid: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _File(msgspec.Struct):
    """One entry of a repository. `lfs` is there for files in the large file storage, with their SHA-256."""

    type: str
    path: Annotated[str, msgspec.Meta(max_length=1024)]
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_MAX_BYTES)] = 0
    lfs: _Lfs | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def sha256(self) -> str | None:
        return None if self.lfs is None else self.lfs.oid


_Files = Annotated[list[_File], msgspec.Meta(max_length=FILES_MAX)]


def _origin(url: str) -> str:
    return url.rstrip("/")


@attrs.define(eq=False)
class HuggingFace:
    """Hugging Face, or a mirror that has its API at `url`. `token` is one of an account's, for gated repositories;
    nothing is read from the environment. `transport` is a network in memory, for tests."""

    url: str = attrs.field(default=HUB_URL, converter=_origin)
    token: str | None = attrs.field(default=None, repr=False)
    transport: Transport | None = None

    async def download(self, repo: str, quant: str | None, path: Path) -> AsyncGenerator[PullProgress, None]:
        """Download a file of `repo` to `path`, reporting on the way; the last report says `success`. Use it under
        `aclosing`. Of `quant` (such as Q8_0; any case), or else Q4_K_M, or else the smallest.

        Raises ModelNotFound (no such repository or file, or one that needs a token), InvalidRequest (split into several
        files), RuntimeUnavailable, UpstreamTimeout, UpstreamTruncated (broke off), UpstreamProtocolError, Overloaded,
        and ModelLoadFailed when the disk refuses. What has come is kept for the next time, also when cancelled; not
        when it is found to be wrong.
        """
        yield PullProgress(f"looking up {repo}")
        file = choose(await self._files(repo), repo, quant)
        part = PartFile(path, (file.sha256 or f"size{file.size}")[:16])
        try:
            there = await _in_thread(partial(part.open, file.size))
            while part.size_bytes < there and await _in_thread(part.hash_step) > 0:
                yield PullProgress("reading what is there", part.size_bytes, file.size)
            target = f"/{repo}/resolve/main/{quote(file.path)}"
            yield PullProgress(f"downloading {file.name}", part.size_bytes, file.size)
            while part.size_bytes < file.size:
                async with self._open(target, part.size_bytes) as response:
                    await _continue(response, part, repo)
                    while await _receive(response, part, file.size):
                        yield PullProgress(f"downloading {file.name}", part.size_bytes, file.size)
            yield PullProgress("verifying", part.size_bytes, file.size)
            await _verify(part, file)
            await _in_thread(part.finish)
        finally:
            part.close()
        yield PullProgress("success", file.size, file.size)

    async def _files(self, repo: str) -> list[_File]:
        upstream = self._upstream(self.url, {})
        answer = await upstream.ask("GET", f"/api/models/{repo}/tree/main?recursive=true", timeout_s=LIST_S)
        if answer.status != 200:
            raise _refusal(answer.status, repo)
        return decode(answer.body, _Files)

    @asynccontextmanager
    async def _open(self, target: str, offset: int) -> AsyncIterator[UpstreamResponse]:
        """The answer for the file's bytes from `offset` on, wherever they are kept."""
        url = self.url + target
        headers = {"range": f"bytes={offset}-"} if offset else {}
        for _ in range(REDIRECTS_MAX + 1):
            origin, rest = _split(url)
            upstream = self._upstream(origin, headers)
            async with upstream.open_stream("GET", rest, head_timeout_s=HEAD_S) as response:
                if response.status not in _REDIRECTS:
                    yield response
                    return
                url = self._followed(url, response.header("location") or "")
        raise UpstreamProtocolError(f"Hugging Face sent us on more than {REDIRECTS_MAX} times")

    def _followed(self, url: str, location: str) -> str:
        """Where a redirect leads. Raises UpstreamProtocolError when that is not Hugging Face."""
        target = urljoin(url, location)
        parts = urlsplit(target)
        host = parts.hostname or ""
        if _split(target)[0] == self.url:
            return target
        if parts.scheme == "https" and "@" not in parts.netloc and parts.port in (None, 443):
            if any(host == known or host.endswith(f".{known}") for known in HOSTS):
                return target
        raise UpstreamProtocolError("Hugging Face sent us to another place, and we do not go there", host=host[:200])

    def _upstream(self, origin: str, headers: dict[str, str]) -> Upstream:
        if self.token is not None and origin == self.url:
            headers = headers | {"authorization": f"Bearer {self.token}"}
        parts = urlsplit(origin)
        tls = parts.scheme == "https"
        permit = Permit(Purpose.DOWNLOAD, parts.hostname or "", parts.port or (443 if tls else 80), tls)
        return Upstream("Hugging Face", origin, self.transport, headers, CONNECT_S, permit)


def choose(files: list[_File], repo: str, quant: str | None) -> _File:
    """The file to download."""
    models = [
        file
        for file in files
        if file.type == "file" and file.size and file.name.lower().endswith(".gguf") and not _is_no_model(file.name)
    ]
    if not models:
        raise ModelNotFound(f"{repo} has no GGUF file; look for a repository whose name ends in -GGUF", model=repo)
    wanted = [file for file in models if _is_of(file.name, quant or QUANT_DEFAULT)]
    if not wanted and quant is not None:
        raise ModelNotFound(f"{repo} has no file of {quant}; it has {_shown(models)}", model=repo)
    single = [file for file in wanted or models if not _PARTS.search(file.name)]
    if not single:
        raise InvalidRequest(
            f"the model in {repo} is split into several files, and those cannot be downloaded here; choose another "
            "quantisation (org/name:Q4_K_M) or repository, or download them yourself and give the path of the first",
            model=repo,
        )
    return min(single, key=lambda file: (file.size, file.path))


def _is_no_model(name: str) -> bool:
    return any(word in name.lower() for word in _NO_MODEL)


def _is_of(name: str, quant: str) -> bool:
    """True when a file's name carries the word: `Q4_K` is not `Q4_K_M`."""
    return re.search(rf"(?:^|[-._]){re.escape(quant)}(?=[-.])", name, re.IGNORECASE) is not None


def _shown(files: list[_File]) -> str:
    names = ["".join(c for c in file.name if c.isprintable())[:80] for file in files[:FILES_SHOWN]]
    more = f" and {len(files) - FILES_SHOWN} more" if len(files) > FILES_SHOWN else ""
    return ", ".join(names) + more


async def _continue(response: UpstreamResponse, part: PartFile, repo: str) -> None:
    """Check that the body begins where the part ends; a server that sends the whole file makes us begin again."""
    if response.status == 206:
        begins = _RANGE.match(response.header("content-range") or "")
        if begins is None or int(begins[1]) != part.size_bytes:
            raise UpstreamProtocolError("Hugging Face sent another part of the file than was asked for")
    elif response.status == 200:
        await _in_thread(part.clear)
    else:
        raise _refusal(response.status, repo)


async def _receive(response: UpstreamResponse, part: PartFile, total_bytes: int) -> bool:
    """Append up to 4 MiB of the body; False at its end. What came before it broke off is kept."""
    block = bytearray()
    try:
        while len(block) < WRITE_BYTES and (data := await response.next_within(STALL_S)) is not None:
            block += data
    except UpstreamTruncated as error:
        await _append(part, block, total_bytes)
        raise _broken_off(part, total_bytes) from error
    except RuntimeFault:
        await _append(part, block, total_bytes)
        raise
    await _append(part, block, total_bytes)
    if not block and part.size_bytes < total_bytes:
        raise _broken_off(part, total_bytes)
    return bool(block)


async def _append(part: PartFile, block: bytearray, total_bytes: int) -> None:
    if part.size_bytes + len(block) > total_bytes:
        await _in_thread(part.discard)
        raise UpstreamProtocolError("Hugging Face sent more than the file has", total_bytes=total_bytes)
    await _in_thread(partial(part.append, block))


async def _verify(part: PartFile, file: _File) -> None:
    if file.sha256 is not None and part.sha256() != file.sha256:
        await _in_thread(part.discard)
        raise UpstreamProtocolError(
            f"{_shown([file])} did not arrive as it was sent (its SHA-256 differs); it was removed: download it again"
        )


def _broken_off(part: PartFile, total_bytes: int) -> UpstreamTruncated:
    return UpstreamTruncated(
        f"the download broke off after {part.size_bytes} of {total_bytes} bytes; start it again, and it goes on there",
        completed_bytes=part.size_bytes,
        total_bytes=total_bytes,
    )


def _refusal(status: int, repo: str) -> EngineError:
    if status in (401, 403):
        return ModelNotFound(
            f"Hugging Face does not give us {repo} ({status}): there is no such repository, or it is private or its "
            "terms must be accepted first. Accept them there and set llama_cpp.hub_token, or download the file "
            "yourself and give its path",
            model=repo,
        )
    if status == 404:
        return ModelNotFound(f"Hugging Face has no {repo}, or not this file", model=repo)
    if status == 429:
        return Overloaded("Hugging Face has had too many requests from here", retry_after_s=60)
    if status >= 500:
        return RuntimeUnavailable(f"Hugging Face has a fault of its own ({status}); try again later", status=status)
    return UpstreamProtocolError(f"Hugging Face answered {status}", status=status)


def _split(url: str) -> tuple[str, str]:
    """Origin, and the rest as it stands in a request."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


async def _in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)
