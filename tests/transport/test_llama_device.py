"""Where llama.cpp computes: its own choice, the processor, or a GPU that must be there."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import pytest

from transport.runtimes.llama_cpp.process import ServerSettings
from transport.runtimes.llama_cpp.server import ALL_LAYERS, configure, has_cuda, parse

OPTIONS = ["--model=m.gguf", "--alias=m", "--socket=/run/1.sock", "--context=512", "--parallel=1", "--threads=0"]


@pytest.mark.parametrize(("device", "layers"), [("auto", -1), ("cpu", 0), ("cuda", ALL_LAYERS)])
def test_how_many_layers_go_to_the_gpu(device, layers):
    params = Namespace(model=SimpleNamespace(path=""), n_gpu_layers=-1)
    assert configure(params, parse([*OPTIONS, f"--device={device}"])).n_gpu_layers == layers


def test_a_gpu_that_is_not_there_is_not_replaced_in_silence():
    assert has_cuda([{"name": "CPU"}, {"name": "CUDA0"}])
    assert not has_cuda([{"name": "CPU"}, {"name": "Vulkan0"}])
    assert not has_cuda([])


def test_no_other_device():
    with pytest.raises(ValueError, match="device"):
        ServerSettings(device="tpu")
