"""What a WebSocket client may say, decoded typed; and subscriptions, which are pure matching."""

from __future__ import annotations

import re
from typing import Annotated, Final

import attrs
import msgspec

from engine.domain.errors import InvalidRequest
from transport.wire.nesting import refuse_deep

PATTERNS_MAX: Final = 32
ID_CHARS_MAX: Final = 64
PATTERN: Final = re.compile(r"\*|[a-z_]{1,32}\.(?:\*|[a-z_]{1,48})")

Pattern = Annotated[str, msgspec.Meta(max_length=81)]
Patterns = Annotated[list[Pattern], msgspec.Meta(max_length=PATTERNS_MAX)]
Id = Annotated[str, msgspec.Meta(max_length=ID_CHARS_MAX)]
RateHz = Annotated[float, msgspec.Meta(ge=1, le=60)]


class Subscribe(msgspec.Struct, tag="subscribe", forbid_unknown_fields=True):
    """Add patterns. The first one after connecting replaces the default (`*`). Given `session_id`, `rate_hz` and `top`
    replace the connection's."""

    patterns: Patterns = []
    session_id: Annotated[str, msgspec.Meta(max_length=64)] | None | msgspec.UnsetType = msgspec.UNSET
    rate_hz: RateHz | msgspec.UnsetType = msgspec.UNSET
    top: bool | msgspec.UnsetType = msgspec.UNSET
    id: Id | None = None


class Unsubscribe(msgspec.Struct, tag="unsubscribe", forbid_unknown_fields=True):
    """Remove patterns, exactly as they stand in the set."""

    patterns: Patterns
    id: Id | None = None


class Ping(msgspec.Struct, tag="ping", forbid_unknown_fields=True):
    id: Id | None = None


class _Id(msgspec.Struct):
    id: Id | None = None


class Resync(msgspec.Struct, tag="resync", forbid_unknown_fields=True):
    id: Id | None = None


class AckRendered(msgspec.Struct, tag="ack_rendered", forbid_unknown_fields=True):
    """A dashboard's own report, about once a second: the last frame it painted, how many it paints a second, and the
    time from receiving that frame to having painted it."""

    frame: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
    fps: Annotated[float, msgspec.Meta(ge=0, le=1000)] | None = None
    lag_ms: Annotated[float, msgspec.Meta(ge=0, le=3_600_000)] | None = None
    id: Id | None = None


Command = Subscribe | Unsubscribe | Ping | Resync | AckRendered
COMMANDS: Final = ("subscribe", "unsubscribe", "ping", "resync", "ack_rendered")
_QUOTED_VALUE: Final = re.compile(r"(?<=value) (?:'.*'|\".*\")(?= - at|$)", re.DOTALL)
_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_id_decoder: msgspec.json.Decoder[_Id] = msgspec.json.Decoder(_Id)


def parse_command(message: bytes) -> Command:
    """A client message as a command. Raises InvalidRequest that says what is wrong, without repeating the message."""
    try:
        refuse_deep(message)
        command = _decoder.decode(message)
    except InvalidRequest as error:
        raise InvalidRequest(f"bad message: {error.message}", commands=list(COMMANDS)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = misfit(error) if isinstance(error, msgspec.ValidationError) else "the message is not a JSON object"
        raise InvalidRequest(f"bad message: {reason}", commands=list(COMMANDS)) from None
    if isinstance(command, Subscribe | Unsubscribe):
        for pattern in command.patterns:
            if not PATTERN.fullmatch(pattern):
                raise InvalidRequest("bad pattern: use an exact type, `channel.*` or `*`")
    return command


def message_id(message: bytes) -> str | None:
    """The `id` of a message, whatever else is wrong with it."""
    try:
        return _id_decoder.decode(message).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def misfit(error: msgspec.ValidationError) -> str:
    """What does not fit, and where. A value that was sent is left out: it may be somebody's words."""
    return printable(_QUOTED_VALUE.sub("", str(error)))


def printable(text: str, chars_max: int = 300) -> str:
    """Text that may come from outside, safe to show: control characters out, length capped."""
    return "".join(ch if ch.isprintable() else "?" for ch in text[:chars_max])


@attrs.frozen
class Subscription:
    """What a connection wants to see. Equal subscriptions share their encoded frames."""

    patterns: frozenset[str] = frozenset({"*"})
    session_id: str | None = None
    top: bool = False
    explicit: bool = attrs.field(default=False, eq=False)

    def wants(self, type_: str, session_id: str | None) -> bool:
        """`session_id` filters events of sessions; events of no session always pass it."""
        if self.session_id is not None and session_id is not None and session_id != self.session_id:
            return False
        channel = type_.partition(".")[0]
        return "*" in self.patterns or type_ in self.patterns or f"{channel}.*" in self.patterns

    def changed(self, command: Subscribe | Unsubscribe) -> Subscription:
        """The subscription after `command`. Raises InvalidRequest when it would hold too many patterns."""
        if isinstance(command, Unsubscribe):
            return attrs.evolve(self, patterns=self.patterns - set(command.patterns), explicit=True)
        patterns = self.patterns
        if command.patterns:
            patterns = (self.patterns if self.explicit else frozenset()) | set(command.patterns)
        if len(patterns) > PATTERNS_MAX:
            raise InvalidRequest(f"at most {PATTERNS_MAX} patterns per connection", limit=PATTERNS_MAX)
        return Subscription(
            patterns=patterns,
            session_id=self.session_id if command.session_id is msgspec.UNSET else command.session_id,
            top=self.top if command.top is msgspec.UNSET else command.top,
            explicit=self.explicit or bool(command.patterns),
        )
