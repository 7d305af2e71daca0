"""Everything that can be set, one table per area. A row gives type, default, unit, range and what it does;
policies/wf.example.yaml shows them all. Values only: reading them is engine/config.py's."""

# ruff: noqa: RUF009  # row() and section() make attrs fields

from __future__ import annotations

import re
from typing import Any, Final, Literal

import attrs

from engine.domain.generation import ResumeRules
from engine.domain.models import is_model_name
from engine.domain.synthesis import CouncilMethod
from policies.council import NAMED, CouncilSpec
from policies.leaving import LEAVE_PATTERN, LEAVE_WORDS
from policies.providers import check_providers
from policies.schema import Misfit, row, section

_HOST: Final = r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45}"
_HOST_WORDS: Final = "an IP address or a host name"
_RUNTIME: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}"
_MODEL: Final = rf"{_RUNTIME}(?:/{_RUNTIME}){{0,2}}(?::{_RUNTIME})?"
_ALLOWED_HOST: Final = r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
_ORIGIN: Final = r"[a-z][a-z0-9+.-]{0,31}://" + _ALLOWED_HOST
RUNTIME_URL: Final = (
    r"https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%/-]{0,256})?"
)
KEY_WORDS: Final = "1–256 visible ASCII characters"
_MIB: Final = 1_048_576
_COUNCIL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_COUNCIL_KEYS: Final = {field.name for field in attrs.fields(CouncilSpec)} - {"name"}


@attrs.frozen(repr=False)
class Secret:
    """A text that no message, log line or repr shows. Compare with `hmac.compare_digest(secret.reveal(), ...)`."""

    _value: str

    def reveal(self) -> str:
        return self._value

    @property
    def fits_a_header(self) -> bool:
        text = self._value
        return 1 <= len(text) <= 256 and text.isascii() and text.isprintable() and " " not in text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


def _visible_ascii(_instance: object, field: attrs.Attribute[Any], keys: tuple[Secret, ...]) -> None:
    for index, key in enumerate(keys):
        if not key.fits_a_header:
            raise Misfit(KEY_WORDS, None, (field.name, index))


def _visible_ascii_or_none(_instance: object, field: attrs.Attribute[Any], key: Secret | None) -> None:
    if key is not None and not key.fits_a_header:
        raise Misfit(KEY_WORDS, None, (field.name,))


@attrs.frozen
class HttpSettings:
    host: str = row("127.0.0.1", doc="address of the API and the dashboard", pattern=_HOST, expectation=_HOST_WORDS)
    port: int = row(8145, doc="port of the API and the dashboard; 0 takes any free one", minimum=0, maximum=65535)


@attrs.frozen
class WsSettings:
    host: str | None = row(
        None, doc="address of the frames WebSocket; null is http.host", pattern=_HOST, expectation=_HOST_WORDS
    )
    port: int = row(8146, doc="port of the frames WebSocket; 0 takes any free one", minimum=0, maximum=65535)
    stall_s: float = row(
        5.0, doc="a client that completes no write for this long is closed", unit="s", minimum=0.1, maximum=300
    )
    ping_interval_s: float = row(5.0, doc="time between pings", unit="s", minimum=0.1, maximum=300)
    pong_timeout_s: float = row(
        10.0, doc="a client without a pong for this long is closed", unit="s", minimum=0.1, maximum=300
    )
    pending_bytes_max: int = row(
        524_288,
        doc="text waiting for one client; more closes it (4008)",
        unit="bytes",
        minimum=65_536,
        maximum=64 * _MIB,
    )
    messages_per_s_max: int = row(
        100, doc="messages one client may send; more closes it (1008)", unit="messages/s", minimum=1, maximum=10_000
    )
    message_bytes_max: int = row(
        65_536, doc="size of one message of a client; more closes it (1009)", unit="bytes", minimum=1024, maximum=_MIB
    )
    connections_max: int = row(1024, doc="WebSocket connections at once", unit="connections", minimum=1, maximum=65_536)


@attrs.frozen
class LimitSettings:
    body_bytes_max: int = row(_MIB, doc="request body, native API", unit="bytes", minimum=1024, maximum=64 * _MIB)
    header_bytes_max: int = row(16_384, doc="request head", unit="bytes", minimum=1024, maximum=_MIB)
    streams_max: int = row(64, doc="model streams running at once", unit="streams", minimum=1, maximum=4096)
    queued_max: int = row(256, doc="requests waiting for one; more get 503", unit="requests", minimum=1, maximum=65_536)
    connections_max: int = row(256, doc="HTTP connections at once", unit="connections", minimum=1, maximum=65_536)
    connections_reserve: int = row(
        16, doc="more of them, which get /health or 503", unit="connections", minimum=1, maximum=1024
    )
    head_timeout_s: float = row(5.0, doc="a request head must be in by then", unit="s", minimum=0.1, maximum=300)
    body_timeout_s: float = row(10.0, doc="a request body must be in by then", unit="s", minimum=0.1, maximum=300)
    write_timeout_s: float = row(5.0, doc="a stalled write ends the connection", unit="s", minimum=0.1, maximum=300)


@attrs.frozen
class TimeoutSettings:
    first_token_s: float = row(
        300.0, doc="a stream without its first token ends then", unit="s", minimum=1, maximum=86_400
    )
    progress_s: float = row(
        120.0, doc="a stream without a further token ends then", unit="s", minimum=1, maximum=86_400
    )
    load_s: float = row(300.0, doc="loading a model fails then", unit="s", minimum=1, maximum=86_400)
    drain_s: float = row(3.0, doc="what sessions get to end in when the engine stops", unit="s", minimum=0, maximum=4)


@attrs.frozen
class EmbeddedSettings:
    enabled: bool = row(True, doc="offer the built-in demonstration models")
    pace_tps: float = row(
        30.0, doc="the pace they answer at; 0 is as fast as they can", unit="tokens/s", minimum=0, maximum=10_000
    )


@attrs.frozen
class OllamaSettings:
    enabled: bool = row(True, doc="use the Ollama of this machine")
    spawn: bool = row(True, doc="start it (`ollama serve`) when it is installed and nothing answers")
    url: str | None = row(
        None,
        doc="where it listens; null is OLLAMA_HOST, else http://127.0.0.1:11434",
        pattern=RUNTIME_URL,
        expectation="a URL like http://127.0.0.1:11434",
    )
    more: tuple[str, ...] = row(
        (),
        doc="further Ollamas, called ollama2, ollama3, …; they are used where they answer and never started",
        pattern=RUNTIME_URL,
        expectation="a URL like http://127.0.0.1:11435",
    )
    keep_alive: str | None = row(
        None,
        doc="how long it keeps an idle model: 30m, 2h, -1 for ever; null is its own setting",
        pattern=r"-1|0|[0-9]{1,6}(?:s|m|h)",
        expectation="a time like 30m, or -1",
    )


@attrs.frozen
class OpenAISettings:
    base_url: str | None = row(
        None,
        doc="a server that speaks OpenAI's API, such as llama.cpp, vLLM or LM Studio: http://127.0.0.1:8080",
        pattern=RUNTIME_URL,
        expectation="a URL like http://127.0.0.1:8080",
    )


@attrs.frozen
class LlamaCppSettings:
    enabled: bool = row(True, doc="offer downloaded GGUF files too, where llama.cpp is installed")
    model: str | None = row(
        None,
        doc="a GGUF file, or a Hugging Face repository (org/name or org/name:Q4_K_M; `wf pull` downloads it)",
        pattern=r"[\w ./@:+~,()-]{1,1024}",
        expectation="a path or org/name[:quantisation]",
    )
    context_length: int = row(4096, doc="context of an answer", unit="tokens", minimum=128, maximum=1_048_576)
    requests_at_once: int = row(
        2, doc="requests answered at once; each has a context of its own", unit="requests", minimum=1, maximum=32
    )
    hub_token: Secret | None = row(
        None,
        doc="token of an account of Hugging Face, for repositories whose terms must be accepted",
        validator=_visible_ascii_or_none,
        repr=False,
    )
    threads: int = row(0, doc="threads it computes with; 0 is its own choice", unit="threads", minimum=0, maximum=512)


def _names(_instance: object, field: attrs.Attribute[Any], aliases: dict[str, Any]) -> None:
    for alias, name in aliases.items():
        if not (isinstance(name, str) and is_model_name(name) and is_model_name(str(alias))):
            raise Misfit("a model's name for a model's name", None, (field.name, str(alias)))


def council_specs(councils: dict[str, Any]) -> dict[str, CouncilSpec]:
    """The configured councils by name. Raises Misfit naming the one that is none."""
    return {name: _council(name, asked) for name, asked in councils.items()}


def _council(name: str, asked: Any) -> CouncilSpec:
    words = "a council like {members: [a, b], method: consensus}"
    if not (_COUNCIL_NAME.fullmatch(name) and isinstance(asked, dict) and set(asked) <= _COUNCIL_KEYS):
        raise Misfit(f"{words}, with no keys but {', '.join(sorted(_COUNCIL_KEYS))}", None, ("councils", name))
    try:
        more = {key: value for key, value in asked.items() if key not in ("members", "method")}
        method = CouncilMethod(asked.get("method", CouncilMethod.CONSENSUS))
        return CouncilSpec(NAMED + name, tuple(asked["members"]), method, **more)
    except (KeyError, TypeError, ValueError) as error:
        raise Misfit(f"{words} ({error})", None, ("councils", name)) from None


def _councils(_instance: object, _field: attrs.Attribute[Any], councils: dict[str, Any]) -> None:
    council_specs(councils)


@attrs.frozen
class ResumeSettings:
    enabled: bool = row(
        False, doc="go on with an answer whose runtime broke off, its text so far shown to the model; seams are marked"
    )
    attempts_max: int = row(1, doc="attempts to go on with one answer", unit="attempts", minimum=1, maximum=8)
    who: Literal["same", "other"] = row("same", doc="who goes on: the same model, or the next of models")
    models: tuple[str, ...] = row(
        (),
        doc="models that may go on with the answer of another, in this order",
        pattern=_MODEL,
        expectation="a model's name",
    )
    pause_s: float = row(
        1.0, doc="before the first attempt, and so much longer before each further one", unit="s", minimum=0, maximum=60
    )

    @property
    def rules(self) -> ResumeRules:
        return ResumeRules(self.attempts_max, self.who, self.models, self.pause_s)


@attrs.frozen
class LensSettings:
    mode: Literal["active", "passive"] = row(
        "active", doc="active asks runtimes for log-probabilities and strips them again; passive changes no byte"
    )
    on_disconnect: str = row(
        "cancel",
        doc="what happens to an answer whose client left: cancel, continue or continue_for=30s",
        pattern=LEAVE_PATTERN,
        expectation=LEAVE_WORDS,
    )
    aliases: dict[str, Any] = row(
        attrs.Factory(dict), doc="other names for models, such as gpt-4o-mini: llama3.1:8b", validator=_names
    )
    body_bytes_max: int = row(
        32 * _MIB, doc="request body, drop-in APIs (images)", unit="bytes", minimum=1024, maximum=256 * _MIB
    )
    head_wait_s: float = row(
        10.0,
        doc="a streaming client without an answer yet gets status 200 and keep-alives then; errors come in the stream",
        unit="s",
        minimum=0.1,
        maximum=86_400,
    )
    resume: ResumeSettings = section(ResumeSettings, doc="answers that broke off")


@attrs.frozen
class PoolSettings:
    pin_runner_options: bool = row(
        False,
        doc="drop the runner options (num_ctx and the like) of requests, so that none makes Ollama load a model again",
    )
    prefetch: Literal["auto", "none"] = row(
        "auto",
        doc="auto: bring members of councils and models used often into free memory before they are asked for; or none",
    )
    warm: tuple[str, ...] = row(
        (),
        doc="models to bring into memory at the start, as far as there is room",
        pattern=_MODEL,
        expectation="a model's name like llama3.2:3b",
    )
    cooldown_s: float = row(
        30.0, doc="a model loaded this short a time ago is not evicted for another", unit="s", minimum=0, maximum=3600
    )
    cooldown_against: Literal["all", "thrashing"] = row(
        "all",
        doc="for whom such a model stays: all others, or thrashing (only those that were evicted as short a time ago)",
    )
    size_overhead: float = row(
        1.2,
        doc="what a model takes in memory, by its size on disk, until its runtime says so",
        unit="times",
        minimum=1,
        maximum=10,
    )


@attrs.frozen
class LogSettings:
    level: Literal["debug", "info", "warning", "error"] = row("info", doc="debug, info, warning or error")
    format: Literal["text", "json"] = row("text", doc="text or json (one object per line)")


@attrs.frozen
class PolicyOverrides:
    """Changes to the shipped policy data, shaped like those files; policies/load.py checks and merges them."""

    energy: dict[str, Any] = row(attrs.Factory(dict), doc="changes to policies/energy.yaml")
    tiers: dict[str, Any] = row(attrs.Factory(dict), doc="changes to policies/tiers.yaml")
    degrade: dict[str, Any] = row(attrs.Factory(dict), doc="changes to policies/degrade.yaml")
    ensemble: dict[str, Any] = row(attrs.Factory(dict), doc="changes to policies/ensemble.yaml")
    prices: dict[str, Any] = row(attrs.Factory(dict), doc="changes to policies/prices.yaml")
    routes: dict[str, Any] = row(attrs.Factory(dict), doc="changes to policies/routes.yaml")
    broker: dict[str, Any] = row(attrs.Factory(dict), doc="changes to policies/broker.yaml")


def _providers(_instance: object, _field: attrs.Attribute[Any], providers: dict[str, Any]) -> None:
    check_providers(providers)


@attrs.frozen
class FallbackSettings:
    enabled: bool = row(False, doc="let another model answer where the one that was asked cannot be had; it is said")
    order: tuple[str, ...] = row(
        ("ollama", "llama_cpp"),
        doc="providers that may, best first; those outside this machine only as the broker allows",
        pattern=_RUNTIME,
        expectation="a provider's name",
    )
    attempts_max: int = row(
        1,
        doc="how often a model of this machine is asked on /generate until it begins; pauses: policies.broker.retry",
        unit="calls",
        minimum=1,
        maximum=10,
    )


@attrs.frozen
class BrokerSettings:
    mode: Literal["disabled", "advisory", "fallback", "hybrid"] = row(
        "disabled",
        doc="what may be asked of providers outside this machine: nothing (disabled), what a request names (advisory), "
        "also where no local model can answer (fallback), also while they are busy (hybrid); only on the tier hybrid, "
        "and only for requests that consent",
    )
    keys_file: str | None = row(
        None,
        doc="their keys, in a file that only you can read (0600), a line each: provider, host, key; null is `keys` in "
        "the state folder. OPENAI_API_KEY and the like in the environment go before it",
        pattern=r"[\w ./@:+~,()-]{1,1024}",
        expectation="a path",
    )


@attrs.frozen
class SessionSettings:
    record_ttl_s: float = row(
        60.0, doc="how long an ended session can be asked about", unit="s", minimum=1, maximum=86_400
    )
    backlog_bytes_max: int = row(
        _MIB, doc="events kept per session for late readers", unit="bytes", minimum=65_536, maximum=64 * _MIB
    )


@attrs.frozen
class ServiceSettings:
    enabled: bool = row(False, doc="offer the local services, each on a port of its own")
    table: dict[str, Any] = row(
        attrs.Factory(dict), doc="changes to policies/services.yaml: ports, models, and services of your own"
    )
    taxonomy: dict[str, Any] = row(
        attrs.Factory(dict), doc="changes to policies/taxonomy.yaml; other labels need another version"
    )
    registry: str = row(
        "serve",
        doc="where the services register: serve (a registry of our own), the URL of another one, or off",
        pattern=r"serve|off|http://(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}/?",
        expectation="serve, off or a URL on this machine like http://127.0.0.1:6121",
    )
    registry_port: int = row(
        6121, doc="port of our own registry of agents; 0 takes any free one", minimum=0, maximum=65535
    )
    router: Literal["serve", "off"] = row("serve", doc="say which model serves a capability: serve or off")
    router_port: int = row(6103, doc="port of that router; 0 takes any free one", minimum=0, maximum=65535)


@attrs.frozen
class Settings:
    """The whole configuration; without any source it is the defaults."""

    http: HttpSettings = section(HttpSettings, doc="HTTP API and dashboard")
    ws: WsSettings = section(WsSettings, doc="frames WebSocket")
    limits: LimitSettings = section(LimitSettings, doc="what callers may use up")
    timeouts: TimeoutSettings = section(TimeoutSettings, doc="how long things may take")
    tier: Literal["auto", "low", "mid", "high", "hybrid"] = row(
        "auto", doc="auto (by the machine's memory), low, mid, high or hybrid"
    )
    level: int = row(5, doc="what is unlocked: at 1 a request uses one model, at 5 everything", minimum=1, maximum=5)
    runtime: str | None = row(
        None,
        doc="name of the only runtime to use; null is all that answer",
        pattern=_RUNTIME,
        expectation="a runtime's name (letters, digits, . _ -)",
    )
    ollama: OllamaSettings = section(OllamaSettings, doc="Ollama")
    openai: OpenAISettings = section(OpenAISettings, doc="any OpenAI-compatible server")
    llama_cpp: LlamaCppSettings = section(LlamaCppSettings, doc="a GGUF file of yours, run by llama.cpp")
    embedded: EmbeddedSettings = section(EmbeddedSettings, doc="built-in demonstration models")
    synthetic: int | None = row(
        None, doc="seed of a made-up source marked SYNTHETIC, for tests and demos", minimum=0, maximum=2**63 - 1
    )
    councils: dict[str, Any] = row(
        attrs.Factory(dict),
        doc="models that are several: name: {members: [a, b], method: best_certainty|consensus|first|judge, quorum: 2, "
        "grace_s: 10, stop_on_consensus: false, judge: c}; asked as council/name",
        validator=_councils,
    )
    lens: LensSettings = section(LensSettings, doc="drop-in Ollama, OpenAI and Anthropic APIs")
    providers: dict[str, Any] = row(
        attrs.Factory(dict),
        doc="more servers: name: {base_url: http://127.0.0.1:8000, timeout_seconds: 30, preferred_models: [], "
        "auto_discovery: true, preload: false}; preload (of ollama and huggingface) brings the preferred models into "
        "free memory at the start; openai, anthropic and openrouter are outside this machine and need the broker",
        validator=_providers,
    )
    default_provider: str | None = row(
        None, doc="the provider that stands in first, where fallback is enabled", pattern=_RUNTIME, expectation="a name"
    )
    local_first: bool = row(True, doc="providers of this machine stand in before all others")
    fallback: FallbackSettings = section(FallbackSettings, doc="who answers where the model asked for cannot be had")
    broker: BrokerSettings = section(BrokerSettings, doc="models outside this machine")
    pull: Literal["explicit", "auto", "never"] = row(
        "explicit", doc="download models: explicit (when told to), auto (also when one is missing) or never"
    )
    services: ServiceSettings = section(
        ServiceSettings, doc="local services: Llama 3.1, TinyLlama, a classifier, your own"
    )
    pool: PoolSettings = section(PoolSettings, doc="models in memory")
    core_lock: bool = row(
        False, doc="refuse this process every socket that leads out of the machine, as long as it runs; no downloads"
    )
    allow_remote_runtimes: bool = row(False, doc="let a runtime be on another machine: prompts then leave this one")
    allow_remote: bool = row(False, doc="let other machines connect; needs api_keys too")
    api_keys: tuple[Secret, ...] = row(
        (), doc="when not empty, callers must send one of these", validator=_visible_ascii, repr=False
    )
    allowed_hosts: tuple[str, ...] = row(
        (),
        doc="further names that the Host header may hold",
        pattern=_ALLOWED_HOST,
        expectation="a host name with or without :port",
    )
    allowed_origins: tuple[str, ...] = row(
        (),
        doc="further web origins whose pages may connect",
        pattern=_ORIGIN,
        expectation="an origin like https://example.org:8443",
    )
    log: LogSettings = section(LogSettings, doc="log on stderr")
    policies: PolicyOverrides = section(PolicyOverrides, doc="changes to policy data")
    session: SessionSettings = section(SessionSettings, doc="what is kept of a session")

    @property
    def ws_host(self) -> str:
        """Where the WebSocket listens: its own host, else that of HTTP."""
        return self.ws.host or self.http.host
