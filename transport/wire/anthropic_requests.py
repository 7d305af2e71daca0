"""Requests to Anthropic's Messages API, without IO.

The version of the API is pinned to one that takes sampling parameters. What the API has no word for is refused, never
left out. System messages, wherever they stand, become the one system prompt; the thinking of past turns stays here,
since it counts only with a signature that nobody else can make.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.domain.generation import GenerationRequest, Message, Parameters
from transport.wire import requests

MESSAGES_PATH: Final = "/v1/messages"
MODELS_PATH: Final = "/v1/models"
VERSION: Final = "2023-06-01"
MAX_TOKENS_DEFAULT: Final = 4096  # the API wants to be told one
# How the base64 of each format begins: the API wants to be told what an image is.
_IMAGES: Final = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
}
_HERE: Final = "this provider cannot do that; leave it out, or use another model"


def request_body(request: GenerationRequest) -> bytes:
    """The body for MESSAGES_PATH. Raises InvalidRequest for what cannot be said."""
    _refuse(request)
    turns = requests.turns(request)
    parameters = request.parameters
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": parameters.max_tokens or MAX_TOKENS_DEFAULT,
        "messages": [_message(message) for message in turns if message.role != "system"],
        "stream": True,
    }
    system = "\n\n".join(message.content for message in turns if message.role == "system")
    sampling = {"temperature": parameters.temperature, "top_p": parameters.top_p, "top_k": parameters.top_k}
    body |= {"system": system} if system else {}
    body |= {name: value for name, value in sampling.items() if value is not None}
    body |= {"stop_sequences": list(parameters.stop)} if parameters.stop else {}
    return msgspec.json.encode(body | _tools(request))


def _refuse(request: GenerationRequest) -> None:
    parameters: Parameters = request.parameters
    requests.refuse_penalties(parameters, "Anthropic")
    asked = {
        "seed": parameters.seed is not None,
        "format": request.format is not None,
        "think": request.think not in (None, False),
        "logprobs": request.logprobs_wanted,
    }
    for field, given in asked.items():
        if given:
            raise requests.refused(field, _HERE)
    if parameters.temperature is not None and parameters.temperature > 1:
        raise requests.refused("temperature", "this provider takes 0 to 1")


def _message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        if not message.tool_call_id:
            raise requests.refused("messages", "a tool message answers no call of the messages before it")
        result = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
        return {"role": "user", "content": [result]}
    if not message.images and not message.tool_calls:
        return {"role": message.role, "content": message.content}
    blocks: list[dict[str, Any]] = [_image(data) for data in message.images]
    if message.content:
        blocks.append({"type": "text", "text": message.content})
    for call in message.tool_calls:
        arguments = requests.json_object(call.arguments or "{}", "messages.tool_calls.arguments")
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return {"role": message.role, "content": blocks}


def _image(data: str) -> dict[str, Any]:
    for beginning, kind in _IMAGES.items():
        if data.startswith(beginning):
            return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}
    raise requests.refused("images", "an image must be the base64 of a PNG, JPEG, GIF or WebP file")


def _tools(request: GenerationRequest) -> dict[str, Any]:
    tools, must_call = requests.offered(request)
    if not tools:
        return {}
    told = [
        {"name": tool.name, "input_schema": requests.json_object(tool.parameters, "tools.parameters")}
        | ({"description": tool.description} if tool.description else {})
        for tool in tools
    ]
    return {"tools": told} | ({"tool_choice": {"type": "any"}} if must_call else {})
