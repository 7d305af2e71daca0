"""The program that a model's process runs: llama.cpp's server on a unix socket, and nothing else.

It is run as a file by an isolated interpreter (`python -I server.py …`), so it imports none of our packages. It ends
with the signal that stops it; llama.cpp has no other way to close its server.
"""

from __future__ import annotations

import argparse
import signal
from typing import Any, Final

DEVICES: Final = ("auto", "cpu", "cuda")
ALL_LAYERS: Final = 999  # more than any model has
ERRORS_ONLY: Final = 1  # from level 4 on llama.cpp writes prompts to its log
POOLINGS: Final = {"mean": 1, "cls": 2, "last": 3}  # llama.cpp's numbers


def configure(params: Any, options: argparse.Namespace) -> Any:
    """`params` with what the engine decides. Everything else stays as llama.cpp has it."""
    params.model.path = options.model
    params.model_alias = {options.alias}  # else answers carry the path
    params.n_ctx = options.context * options.parallel  # llama.cpp divides it among the answers at a time
    params.n_parallel = options.parallel
    params.embedding = True  # it answers all the same, with the same numbers
    params.pooling_type = POOLINGS[options.pooling]
    if options.at_once:
        params.n_batch = params.n_ubatch = options.context  # else texts end at 512 tokens
    if options.threads:
        params.cpuparams.n_threads = options.threads
    if options.device != "auto":
        params.n_gpu_layers = ALL_LAYERS if options.device == "cuda" else 0
    params.hostnames = [options.socket]
    params.verbosity = ERRORS_ONLY
    params.cache_ram_mib = 0  # else prompts of the past are kept in up to 8 GiB
    params.offline = True
    params.ui = False
    return params


def has_cuda(devices: list[Any]) -> bool:
    """`devices` as llama.cpp lists them."""
    return any(str(device["name"]).upper().startswith("CUDA") for device in devices)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--pooling", choices=POOLINGS, default="last")
    parser.add_argument("--at-once", action="store_true")
    return parser.parse_args(argv)


def main() -> None:
    """Serve until a signal ends the process. A model that cannot be loaded ends it with a line that says why."""
    import xllamacpp  # type: ignore[import-untyped, unused-ignore]  # an extra: it may not be there

    options = parse()
    if options.device == "cuda" and not has_cuda(xllamacpp.get_device_info()):
        raise SystemExit("this build of llama.cpp finds no CUDA device here; set device: auto or cpu")
    server = xllamacpp.Server(configure(xllamacpp.CommonParams(), options))  # returns when the model is loaded
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # some releases catch it and go on
    while server.listening_address:  # it serves as long as somebody holds it
        signal.pause()


if __name__ == "__main__":
    main()
