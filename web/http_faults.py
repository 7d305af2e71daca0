"""What is wrong with a request that is none of ours to serve, in words: heads that are legal to h11 and still not
welcome, and what h11 itself refuses. Nothing that was sent is repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11

from engine.domain.errors import EngineError, InvalidRequest, PayloadTooLarge

if TYPE_CHECKING:
    from web.http1 import HttpLimits

HEADER_LINE_BYTES: Final = 4  # ": " and CRLF, which h11 does not count
HEAD_TOO_LARGE: Final = 431

# By words of h11's own messages, the first that fits.
_WORDS: Final = (
    ("Missing mandatory Host", "a Host header is needed: this machine's address, with the port"),
    ("multiple Host", "exactly one Host header is needed"),
    ("Content-Length", "Content-Length must be one whole number"),
    ("Transfer-Encoding", "the only Transfer-Encoding served is chunked, alone"),
    ("request line", "the first line is no request line of HTTP/1.1; https:// and HTTP/2 are not served here"),
    ("header", "a header line is malformed"),
    ("target", "the request target is malformed"),
    ("method", "the request method is malformed"),
    ("chunk", "a chunk of the body is malformed"),
)


class HeadTooLarge(PayloadTooLarge):
    """A request head over the limits: its body may be as small as it likes."""

    status = HEAD_TOO_LARGE


def fault_of(error: BaseException | None, status: int, limits: HttpLimits) -> EngineError:
    """What h11 found, with the `status` that it hints at."""
    if status == HEAD_TOO_LARGE:
        return _too_large(limits)
    said = str(error) if isinstance(error, h11.RemoteProtocolError) else ""
    return InvalidRequest(next((words for part, words in _WORDS if part in said), "the HTTP request is malformed"))


def head_fault(request: h11.Request, limits: HttpLimits, frames_url: str | None) -> EngineError | None:
    """Why a head that h11 takes is refused; None for a good one. `frames_url`: where a WebSocket would be served."""
    headers = list(request.headers)
    size = len(request.target) + sum(len(name) + len(value) + HEADER_LINE_BYTES for name, value in headers)
    if size > limits.head_bytes_max or len(headers) > limits.headers_max:
        return _too_large(limits)
    if request.http_version not in (b"1.1", b"1.0"):
        return InvalidRequest("only HTTP/1.1 and HTTP/1.0 are served here; ask without HTTP/2")
    names = {name for name, _ in headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        return InvalidRequest("Transfer-Encoding and Content-Length do not go together")
    if b"transfer-encoding" in names and request.http_version == b"1.0":
        return InvalidRequest("HTTP/1.0 has no Transfer-Encoding")
    if b"upgrade" in names:
        return _no_upgrade([value.lower() for name, value in headers if name == b"upgrade"], frames_url)
    if not request.target.startswith(b"/"):
        return InvalidRequest("the request target must be a path: this is no proxy")
    return None


def _no_upgrade(wanted: list[bytes], frames_url: str | None) -> InvalidRequest:
    if wanted != [b"websocket"]:
        return InvalidRequest("no upgrade is served here, nor is HTTP/2 (h2c); ask in HTTP/1.1")
    if frames_url is None:
        return InvalidRequest("no WebSocket is served on this port")
    return InvalidRequest(f"no WebSocket is served on this port: frames are at {frames_url}", url=frames_url)


def _too_large(limits: HttpLimits) -> HeadTooLarge:
    return HeadTooLarge(
        f"the request head has more than {limits.head_bytes_max} bytes, or more than {limits.headers_max} headers",
        limit_bytes=limits.head_bytes_max,
        limit=limits.headers_max,
    )
