"""Requests in the OpenAI dialect of local servers, without IO.

A prompt becomes the one message of a user: that applies the model's chat template, as a prompt to Ollama does. Only a
`raw` prompt goes to `/v1/completions`, which has the model continue the text.

What the API itself has no word for is said as llama.cpp and vLLM take it: `top_k` and `min_p` by these names;
`repeat_penalty` (llama.cpp, LM Studio) and the same as `repetition_penalty` (vLLM); `think` as the variable
`enable_thinking` of the chat template, and how much as `reasoning_effort`, for the template and for the server; the
thinking of past turns as `reasoning_content`. A server that does not know one of these passes it over or refuses it; a
template without such a variable is not changed by it.

`keep_alive` and runner options are about memory, which this API knows nothing of: the server's own settings hold.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.domain.generation import GenerationRequest, Message
from engine.domain.runtime import EmbedRequest
from transport.wire import requests
from transport.wire.records import TOP_ASKED_MAX

CHAT_PATH: Final = "/v1/chat/completions"
COMPLETIONS_PATH: Final = "/v1/completions"
EMBED_PATH: Final = "/v1/embeddings"
# How the base64 of each format begins: the API wants to be told what an image is.
_IMAGES: Final = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "Qk": "image/bmp",
}


def request_path(request: GenerationRequest) -> str:
    return COMPLETIONS_PATH if request.raw else CHAT_PATH


def request_body(request: GenerationRequest, *, logprobs: bool = True, hosted: bool = False) -> bytes:
    """The body for `request_path`. Parameters stand in it only where the request gives them. `hosted`: it is for OpenAI
    or OpenRouter, and has nothing in it that only local servers take. Raises InvalidRequest for what cannot be said."""
    return msgspec.json.encode(_fields(request, logprobs, hosted))


def check(request: GenerationRequest, *, hosted: bool = False) -> None:
    """Raises InvalidRequest for what cannot be said."""
    _fields(request, True, hosted)


def _fields(request: GenerationRequest, logprobs: bool, hosted: bool) -> dict[str, Any]:
    if hosted:
        _refuse_local_words(request)
    body: dict[str, Any] = {"model": request.model}
    top_logprobs = min(request.top_logprobs, TOP_ASKED_MAX)
    if request.suffix is not None:
        raise requests.refused("suffix", "servers with this API take none, or pass it over in silence")
    if request.raw:
        body["prompt"] = _bare_prompt(request)
        asked = {"logprobs": top_logprobs}
    else:
        body["messages"] = [_message(message) for message in requests.turns(request)]
        body |= _tools(request) | _thinking(request.think, hosted=hosted) | _format(request.format)
        asked = {"logprobs": True, "top_logprobs": top_logprobs}
    body |= {"stream": True, "stream_options": {"include_usage": True}} | (asked if logprobs else {})
    parameters = requests.options(request.parameters, "max_completion_tokens" if hosted else "max_tokens")
    if "repeat_penalty" in parameters:
        parameters["repetition_penalty"] = parameters["repeat_penalty"]
    return body | parameters


def _bare_prompt(request: GenerationRequest) -> str:
    beside = {
        "messages": request.messages,
        "system": request.system,
        "images": request.images,
        "tools": requests.offered(request)[0],
        "think": request.think,
        "format": request.format,
    }
    for field, given in beside.items():
        if given:
            raise requests.refused(field, "does not go with a raw prompt")
    return request.prompt or ""


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        text = [{"type": "text", "text": message.content}] if message.content else []
        said["content"] = [*text, *({"type": "image_url", "image_url": {"url": _url(data)}} for data in message.images)]
    if message.thinking:
        said["reasoning_content"] = message.thinking
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _text_of(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        if not message.tool_call_id:
            raise requests.refused("messages", "a tool message answers no call of the messages before it")
        said["tool_call_id"] = message.tool_call_id
    return said


def _text_of(text: str) -> str:
    requests.json_object(text or "{}", "messages.tool_calls.arguments")
    return text or "{}"


def _url(data: str) -> str:
    for beginning, kind in _IMAGES.items():
        if data.startswith(beginning):
            return f"data:{kind};base64,{data}"
    raise requests.refused("images", "an image must be the base64 of a PNG, JPEG, GIF, WebP or BMP file")


def _tools(request: GenerationRequest) -> dict[str, Any]:
    tools, must_call = requests.offered(request)
    if not tools:
        return {}
    told: dict[str, Any] = {"tools": [requests.function(tool) for tool in tools]}
    return told | ({"tool_choice": "required"} if must_call else {})


def _refuse_local_words(request: GenerationRequest) -> None:
    """Raises InvalidRequest: these providers refuse a field that they do not know, or take it and do nothing."""
    asked = {
        "raw": request.raw,
        "top_k": request.parameters.top_k is not None,
        "min_p": request.parameters.min_p is not None,
        "repeat_penalty": request.parameters.repeat_penalty is not None,
        "think": isinstance(request.think, bool),
    }
    for field, given in asked.items():
        if given:
            raise requests.refused(field, "this provider has no word for it; leave it out, or use a local model")


def _thinking(think: bool | str | None, *, hosted: bool) -> dict[str, Any]:
    if think is None:
        return {}
    if hosted:
        return {"reasoning_effort": think}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    template = {"enable_thinking": True, "reasoning_effort": think}
    return {"reasoning_effort": think, "chat_template_kwargs": template}


def _format(format_: str | None) -> dict[str, Any]:
    if format_ is None:
        return {}
    if format_ == "json":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "schema": requests.json_object(format_, "format")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def embed_body(request: EmbedRequest) -> bytes:
    """The body for `EMBED_PATH`. The API cannot be asked to cut a text: a server refuses one that is too long."""
    requests.check_inputs(request)
    body: dict[str, Any] = {"model": request.model, "input": list(request.inputs), "encoding_format": "float"}
    return msgspec.json.encode(body if request.dimensions is None else body | {"dimensions": request.dimensions})
