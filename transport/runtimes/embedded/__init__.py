"""Three tiny language models that ship with the engine, run by a forward pass in numpy."""

from transport.runtimes.embedded.runtime import EmbeddedRuntime

__all__ = ["EmbeddedRuntime"]
