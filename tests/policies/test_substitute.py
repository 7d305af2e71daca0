from __future__ import annotations

import attrs
import pytest

from engine.domain.models import Capability, ModelInfo
from policies.load import load_policies
from policies.substitute import substitute

GB = 10**9
LOW = load_policies().tiers.low  # models up to 4 GB
CHAT = (Capability.COMPLETION, Capability.CHAT)


@attrs.frozen
class Server:
    kind: str = "ollama"
    name: str = "ollama"


@attrs.frozen
class Offer:
    name: str
    info: ModelInfo
    runtime: Server = Server()


def offer(name, size_gb, *, family=None, can=CHAT, digest=None, kind="ollama"):
    size = None if size_gb is None else round(size_gb * GB)
    details = {} if family is None else {"family": family}
    info = ModelInfo(name, "ollama", size, digest=digest, capabilities=can, details=details)
    return Offer(name, info, Server(kind))


WANTED = offer("llama3.1:70b", 40, family="llama", digest="d0")


def test_the_same_name_first_then_the_family_then_the_largest():
    same, family = offer("llama3.1:1b", 1, family="llama"), offer("vicuna:7b", 3.5, family="llama")
    small, large = offer("qwen:1b", 1, family="qwen"), offer("qwen:3b", 2, family="qwen")
    assert substitute(WANTED, [small, large, family, same], LOW) is same
    assert substitute(WANTED, [small, large, family], LOW) is family
    assert substitute(WANTED, [small, large], LOW) is large


@pytest.mark.parametrize(
    "out",
    [
        offer("llama3.1:8b", 4.9),  # larger than the tier takes
        offer("llama3.1:70b", 1),  # itself
        offer("copy:latest", 1, digest="d0"),
        offer("embedder", 1, can=(Capability.COMPLETION,)),  # cannot chat
        offer("somewhere", None),  # of unknown size
        offer("embedded/lexicon", 0.01, kind="embedded"),
        offer("synthetic/steady", 0.01, kind="synthetic"),
    ],
    ids=lambda out: out.name,
)
def test_who_can_never_stand_in(out):
    assert substitute(WANTED, [out], LOW) is None


def test_nobody_there():
    assert substitute(WANTED, [], LOW) is None
