"""The Anthropic SDK itself, without a network: it writes the requests that we parse, and reads the answers we make."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.errors import EngineError, InvalidRequest, ModelNotFound, Overloaded, UpstreamTruncated
from engine.domain.generation import Chunk, EndReason, GenerationEnd, Message, TokenKind, ToolCall, ToolCallPart
from transport.wire.dialects import anthropic as dialect
from transport.wire.dialects.reply import Asked, ReplyEnd, ReplyFacts

if importlib.util.find_spec("anthropic") is None and not os.environ.get("CI"):
    pytest.skip("the Anthropic SDK is not installed: pip install -e '.[test]'", allow_module_level=True)

import anthropic
import httpx2

if TYPE_CHECKING:
    from anthropic.types import MessageParam

CALL = ToolCallPart(0, "get_weather", id="c0")
CHUNKS = (
    Chunk("The user", 0, TokenKind.THINKING),
    Chunk(" asks.", 0, TokenKind.THINKING),
    Chunk("Let me ", 0),
    Chunk("look 😀\u2028\n", 0),
    Chunk("", 0, TokenKind.TOOL, tool_calls=(CALL,)),
    Chunk("", 0, TokenKind.TOOL, tool_calls=(ToolCallPart(0, arguments='{"city":'),)),
    Chunk("", 0, TokenKind.TOOL, tool_calls=(ToolCallPart(0, arguments='"Oslo"}'),)),
    Chunk("", 0, TokenKind.TOOL, tool_calls=(ToolCallPart(1, "now", "{}"),)),
)
TOOLS: Any = [{"name": "get_weather", "description": "d", "input_schema": {"type": "object"}}]
HI: list[MessageParam] = [{"role": "user", "content": "hi"}]


class Server:
    """Answers as our server would, from `chunks`; what it was asked last is kept."""

    def __init__(self, chunks: Sequence[Chunk] = CHUNKS, fault: EngineError | None = None, at: int = 0) -> None:
        self.chunks, self.fault, self.at = chunks, fault, at
        self.asked: Asked | None = None

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        try:
            self.asked = dialect.parse(request.url.path, request.read())
            if self.fault and not self.at:
                raise self.fault
        except EngineError as error:
            body = dialect.error_body(error, "req_1")
            return httpx2.Response(error.status, headers={"content-type": "application/json"}, content=body)
        reply = dialect.reply_for(self.asked, False, ReplyFacts("1", 0.0, self.asked.model))
        sent = [reply.feed(chunk) for chunk in self.chunks[: self.at or None]]
        if reply.content_type == "text/event-stream":
            for at in (0, 3):
                sent.insert(at, b": keep-alive\n\n")  # what keeps a silent stream alive
        end = ReplyEnd(GenerationEnd(EndReason.FINISHED, 21, 8), 8, 1.0, None, None, None)
        sent.append(reply.fail(self.fault) if self.fault else reply.finish(end))
        return httpx2.Response(200, headers={"content-type": reply.content_type}, content=b"".join(sent))


def client(server: Callable[[httpx2.Request], httpx2.Response]) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="unused",
        base_url="http://127.0.0.1:1",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(server)),
    )


def check(message: Any) -> None:
    thinking, text, call, now = message.content
    assert (message.id, message.role, message.model, message.stop_reason) == ("msg_1", "assistant", "m", "tool_use")
    assert (thinking.type, thinking.thinking, thinking.signature) == ("thinking", "The user asks.", "")
    assert (text.type, text.text) == ("text", "Let me look 😀\u2028\n")
    assert (call.type, call.id, call.name, call.input) == ("tool_use", "c0", "get_weather", {"city": "Oslo"})
    assert (now.name, now.input) == ("now", {})
    assert (message.usage.input_tokens, message.usage.output_tokens) == (21, 8)


def test_whole() -> None:
    server = Server()
    with client(server) as sdk:
        message = sdk.messages.create(model="m", max_tokens=99, messages=HI, tools=TOOLS, system="be kind")
    check(message)
    assert server.asked is not None
    assert server.asked.request.messages == (Message("system", "be kind"), Message("user", "hi"))
    assert json.loads(server.asked.request.tools[0].parameters) == {"type": "object"}


def test_streamed() -> None:
    server = Server()
    with client(server) as sdk, sdk.messages.stream(model="m", max_tokens=99, messages=HI, tools=TOOLS) as stream:
        seen = list(stream)
        check(stream.get_final_message())
    assert server.asked is not None
    assert server.asked.stream
    assert "".join(event.text for event in seen if event.type == "text") == "Let me look 😀\u2028\n"
    assert "".join(event.thinking for event in seen if event.type == "thinking") == "The user asks."
    assert [event.snapshot for event in seen if event.type == "input_json"][-2] == {"city": "Oslo"}


def test_raw_events() -> None:
    with client(Server()) as sdk:
        types = [event.type for event in sdk.messages.create(model="m", max_tokens=9, messages=HI, stream=True)]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    delta = "content_block_delta"
    assert types == [
        "message_start",
        *(block[0], delta, delta, delta, block[2]),  # the third delta of the thinking is its signature
        *(block[0], delta, delta, block[2]),
        *(block[0], delta, delta, block[2]),
        *(block[0], delta, block[2]),
        "message_delta",
        "message_stop",
    ]


def test_an_answer_goes_back_as_it_came() -> None:
    with client(Server()) as sdk:
        message = sdk.messages.create(model="m", max_tokens=99, messages=HI, tools=TOOLS)
    server = Server((Chunk("Cold.", 0),))
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "c0", "content": "-3 °C"}],
    }
    with client(server) as sdk:
        answer = sdk.messages.create(model="m", max_tokens=99, messages=[*HI, message.to_param(), result], tools=TOOLS)
    assert [block.type for block in answer.content] == ["text"]
    assert answer.stop_reason == "end_turn"
    assert server.asked is not None
    calls = server.asked.request.messages[1].tool_calls
    assert server.asked.request.messages[1:] == (
        Message("assistant", "Let me look 😀\u2028\n", thinking="The user asks.", tool_calls=calls),
        Message("tool", "-3 °C", tool_call_id="c0", tool_name="get_weather"),
    )
    assert [(call.name, json.loads(call.arguments), call.id) for call in calls] == [
        ("get_weather", {"city": "Oslo"}, "c0"),
        ("now", {}, "toolu_1_3"),
    ]
    assert isinstance(calls[0], ToolCall)


def test_count_tokens() -> None:
    with client(Server()) as sdk:
        assert sdk.messages.count_tokens(model="m", messages=HI, tools=TOOLS).input_tokens == 21


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (InvalidRequest("x"), anthropic.BadRequestError),
        (ModelNotFound("no model m"), anthropic.NotFoundError),
        (Overloaded("x"), anthropic.InternalServerError),
    ],
)
def test_refused(fault: EngineError, raised: type[anthropic.APIStatusError]) -> None:
    with client(Server(fault=fault)) as sdk, pytest.raises(raised) as refused:
        sdk.messages.create(model="m", max_tokens=9, messages=HI)
    assert refused.value.status_code == fault.status
    assert refused.value.body == json.loads(dialect.error_body(fault, "req_1"))


def test_our_own_refusal_reaches_the_caller() -> None:
    image: Any = {"type": "image", "source": {"type": "url", "url": "http://example.com/a.png"}}
    with client(Server()) as sdk, pytest.raises(anthropic.BadRequestError, match="nothing is fetched"):
        sdk.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": [image]}])


def test_broken_in_the_middle() -> None:
    texts = []
    with client(Server(fault=UpstreamTruncated("broke off"), at=3)) as sdk:
        with sdk.messages.stream(model="m", max_tokens=9, messages=HI) as stream:
            with pytest.raises(anthropic.APIStatusError, match="broke off"):
                for event in stream:
                    texts.append(event.text if event.type == "text" else "")
    assert "".join(texts) == "Let me "
