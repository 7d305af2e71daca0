"""Bodies of the native API, decoded typed. Unknown fields are refused; every number has its bounds."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec

from engine.domain.errors import InvalidRequest
from engine.domain.generation import GenerationRequest, Message, Parameters
from transport.wire import request_json

OPTION_MAX: Final = 16_777_216
MAX_TOKENS_MAX: Final = 1_048_576
SEED_MAX: Final = 2**53 - 1  # what JSON carries exactly

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=330)]
SessionId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
StopString = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
B = TypeVar("B", bound=msgspec.Struct)


class ParametersBody(msgspec.Struct, forbid_unknown_fields=True):
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS_MAX)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=SEED_MAX)] | None = None
    stop: Annotated[list[StopString], msgspec.Meta(max_length=10)] = []


class MessageBody(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class RunnerOptionsBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How Ollama runs the model. A change of any makes it load the model again."""

    num_ctx: Annotated[int, msgspec.Meta(ge=1, le=OPTION_MAX)] | None = None
    num_batch: Annotated[int, msgspec.Meta(ge=1, le=OPTION_MAX)] | None = None
    num_gpu: Annotated[int, msgspec.Meta(ge=-1, le=OPTION_MAX)] | None = None
    main_gpu: Annotated[int, msgspec.Meta(ge=0, le=1024)] | None = None
    use_mmap: bool | None = None
    num_thread: Annotated[int, msgspec.Meta(ge=0, le=4096)] | None = None


class GenerateBody(msgspec.Struct, forbid_unknown_fields=True):
    """Exactly one of `prompt` and `messages`, and of `model` and `models`. A council takes `models`; `judge` is the
    model that chooses, with method judge."""

    model: Name | None = None
    models: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=64)] | None = None
    mode: Literal["single", "council", "turbo"] = "single"
    method: Literal["best_certainty", "consensus", "first", "judge"] | None = None
    judge: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[MessageBody], msgspec.Meta(min_length=1, max_length=1024)] | None = None
    parameters: ParametersBody = msgspec.field(default_factory=ParametersBody)
    runner_options: RunnerOptionsBody = msgspec.field(default_factory=RunnerOptionsBody)
    substitute: bool = False  # a model that this machine cannot take may be replaced by one that it can; it is told
    on_excess: Literal["truncate", "refuse"] = "truncate"  # of `models`; one model is never too many
    broker: Literal["allow"] | None = None  # consent to an answer from outside this machine
    stream: bool = False


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    warm_up: bool = True
    pin: bool = False


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Name


class PullBody(msgspec.Struct):
    """As Ollama's; fields we do not know are passed over. `name` is the older word for `model`."""

    model: Name | None = None
    name: Name | None = None
    stream: bool = True


class BrokerBody(msgspec.Struct, forbid_unknown_fields=True):
    mode: Literal["disabled", "advisory", "fallback", "hybrid"]


class StopBody(msgspec.Struct, forbid_unknown_fields=True):
    session_id: SessionId


def generation_request(body: GenerateBody, model: str) -> GenerationRequest:
    """The body as a request to a runtime that calls the model `model`. Raises InvalidRequest."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give exactly one of `prompt` and `messages`")
    asked = body.parameters
    return GenerationRequest(
        model=model,
        prompt=body.prompt,
        messages=tuple(Message(m.role, m.content) for m in body.messages or ()),
        parameters=Parameters(
            asked.temperature, asked.top_p, asked.top_k, asked.max_tokens, asked.seed, tuple(asked.stop)
        ),
        runner_options=msgspec.to_builtins(body.runner_options),
    )


def decode(body: bytes | str, type_: type[B]) -> B:
    """The body as `type_`. Raises InvalidRequest that names the field and its limit."""
    data = body.encode() if isinstance(body, str) else body
    return request_json.decode(data, msgspec.json.Decoder(type_))
