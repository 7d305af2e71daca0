"""The one error tree. Every refusal a caller can meet is a subclass with a stable code.

EngineError                        code, HTTP status, retryable, public message, details
 ├─ ConfigError                    the configuration cannot be used                      exit 78
 ├─ AddressInUse                   a port or the state folder is held by someone else    exit 3
 ├─ RestartsExhausted              an actor crashed more often than its policy allows    exit 70
 ├─ CallerError                    the request is at fault
 │   ├─ InvalidRequest 400         ├─ Unauthorized 401       ├─ Forbidden 403         ├─ ForbiddenOrigin 403
 │   ├─ NotFound 404               ├─ ModelNotFound 404      ├─ SessionNotFound 404   ├─ MethodNotAllowed 405
 │   ├─ RequestTimeout 408         ├─ SessionConflict 409    ├─ PayloadTooLarge 413
 │   ├─ UnsupportedMediaType 415   ├─ TierLimitExceeded 429   ├─ LevelLocked 403
 │   ├─ TurboNotAvailable 403      └─ BrokerDisabled 403
 ├─ RuntimeFault                   the far side is at fault
 │   ├─ RuntimeUnavailable 503     ├─ ModelLoadFailed 502    ├─ ModelLoadTimeout 504
 │   ├─ UpstreamProtocolError 502  ├─ UpstreamTruncated 502  └─ UpstreamTimeout 504
 ├─ Overloaded 503                 a bounded queue is full; the details say which and how long
 ├─ InsufficientMemory 507         the models asked for do not fit; the details have the numbers
 └─ InternalError 500              a bug; the request id finds it in the log
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self


class EngineError(Exception):
    """Base of everything the engine raises on purpose.

    `message` is safe to show: it never holds a prompt, an answer or a secret. `details` are plain JSON values.
    """

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details

    def again(self) -> Self:
        """The same for one more who is told of it: what is added to the details of one is not that of another."""
        another = copy.copy(self)
        another.details = dict(self.details)
        return another

    def body(self) -> dict[str, Any]:
        """The native error body: `{"error": {code, message, retryable, details}}`."""
        return {"error": self.as_dict()}

    def as_dict(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "details": self.details,
        }


class ConfigError(EngineError):
    """The configuration or a policy file cannot be used. The message names file, line, path and expectation."""

    code = "CONFIG_ERROR"


class AddressInUse(EngineError):
    """A port or the state folder belongs to another process. The message names the holder and the flag to change."""

    code = "ADDRESS_IN_USE"


class RestartsExhausted(EngineError):
    """An actor crashed more often than its restart policy allows; the last crash is the cause."""


class InternalError(EngineError):
    """A bug of ours."""


class CallerError(EngineError):
    """The request is at fault; repeating it unchanged cannot help."""


class InvalidRequest(CallerError):
    code, status = "VALIDATION_ERROR", 400


class Unauthorized(CallerError):
    code, status = "UNAUTHORIZED", 401


class Forbidden(CallerError):
    code, status = "FORBIDDEN", 403


class ForbiddenOrigin(CallerError):
    code, status = "FORBIDDEN_ORIGIN", 403


class LevelLocked(CallerError):
    """What is asked for is unlocked at a higher level."""

    code, status = "LEVEL_LOCKED", 403


class TurboNotAvailable(CallerError):
    """The tier has no turbo."""

    code, status = "TURBO_NOT_AVAILABLE", 403


class BrokerDisabled(CallerError):
    """The answer would come from outside this machine, and that is not allowed: here, now, or for this request. The
    details say what would leave."""

    code, status = "BROKER_DISABLED", 403


class NotFound(CallerError):
    code, status = "NOT_FOUND", 404


class ModelNotFound(CallerError):
    code, status = "MODEL_NOT_FOUND", 404


class SessionNotFound(CallerError):
    code, status = "SESSION_NOT_FOUND", 404


class MethodNotAllowed(CallerError):
    code, status = "METHOD_NOT_ALLOWED", 405


class RequestTimeout(CallerError):
    code, status, retryable = "REQUEST_TIMEOUT", 408, True


class SessionConflict(CallerError):
    code, status = "SESSION_CONFLICT", 409


class PayloadTooLarge(CallerError):
    code, status = "PAYLOAD_TOO_LARGE", 413


class UnsupportedMediaType(CallerError):
    code, status = "UNSUPPORTED_MEDIA_TYPE", 415


class TierLimitExceeded(CallerError):
    code, status = "TIER_LIMIT_EXCEEDED", 429


class RuntimeFault(EngineError):
    """The runtime, or the way to it, is at fault."""


class RuntimeUnavailable(RuntimeFault):
    code, status, retryable = "RUNTIME_UNAVAILABLE", 503, True


class NobodyListens(RuntimeUnavailable):
    """There is no runtime at its address any more: its process is gone, and what it had in memory with it."""


class ModelLoadFailed(RuntimeFault):
    code, status = "MODEL_LOAD_FAILED", 502


class ModelLoadTimeout(RuntimeFault):
    code, status, retryable = "MODEL_LOAD_TIMEOUT", 504, True


class UpstreamProtocolError(RuntimeFault):
    code, status = "UPSTREAM_PROTOCOL_ERROR", 502


class UpstreamTruncated(RuntimeFault):
    """The stream stopped without its terminal record."""

    code, status, retryable = "UPSTREAM_TRUNCATED", 502, True


class UpstreamTimeout(RuntimeFault):
    code, status, retryable = "UPSTREAM_TIMEOUT", 504, True


class FallbackFailed(EngineError):
    """Nobody who could have answered did; the details say why for each."""

    code, status, retryable = "FALLBACK_FAILED", 503, True


class Overloaded(EngineError):
    code, status, retryable = "OVERLOADED", 503, True


class InsufficientMemory(EngineError):
    """The models asked for do not fit into the memory budget, whatever is evicted. Details: needed_bytes, budget_bytes,
    used_bytes, evictable_bytes; on a machine with GPUs also needed, used and budget of main memory (`…_ram_…`) and of
    GPU memory (`…_vram_…`)."""

    code, status = "INSUFFICIENT_MEMORY", 507
