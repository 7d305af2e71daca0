"""How much memory this machine has for models: main memory, and that of its GPUs. Plain blocking code: inside the event
loop call it through `trio.to_thread.run_sync`.

NVIDIA's is asked of `nvidia-smi`, by an absolute path and with a time-out; AMD's is read from /sys/class/drm. What no
GPU tells is null, and then main memory alone decides.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from engine.state import ram_total_bytes

NVIDIA_SMI: Final = (
    "/usr/bin/nvidia-smi",
    "/usr/local/bin/nvidia-smi",
    "/usr/local/nvidia/bin/nvidia-smi",
    "/usr/lib/wsl/lib/nvidia-smi",
    "/run/current-system/sw/bin/nvidia-smi",
)
NVIDIA_ASK: Final = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
NVIDIA_TIMEOUT_S: Final = 2.0
DRM: Final = Path("/sys/class/drm")
GPUS_MAX: Final = 64
ANSWER_MAX_BYTES: Final = 4096
MIB: Final = 1_048_576
GPU_MIN_BYTES: Final = 2 * 1024 * MIB  # less is what a processor with graphics sets aside for the screen

logger = logging.getLogger("wf.hardware")


MEMINFO: Final = Path("/proc/meminfo")
RAM_SHORT_SHARE: Final = 0.9  # of main memory in use: from here on new councils are smaller
_MEMINFO: Final = re.compile(rb"^(MemTotal|MemAvailable): +([0-9]+) kB$", re.MULTILINE)


@attrs.frozen
class Machine:
    """`vram_bytes` of all GPUs together; null: there is none that tells."""

    ram_bytes: int
    vram_bytes: int | None


def read_machine() -> Machine:
    """Takes up to 2 s where an NVIDIA driver does not answer; never raises."""
    return Machine(ram_total_bytes(), gpu_bytes())


def ram_is_short(meminfo: Path = MEMINFO) -> bool:
    """Whether RAM_SHORT_SHARE of main memory is in use now; False where the kernel does not tell. It is the kernel's
    memory that is read, no disk: this may be called anywhere."""
    try:
        told = {name: int(kib) for name, kib in _MEMINFO.findall(meminfo.read_bytes())}
    except OSError:
        return False
    total, available = told.get(b"MemTotal", 0), told.get(b"MemAvailable")
    return total > 0 and available is not None and available < (1 - RAM_SHORT_SHARE) * total


def gpu_bytes(nvidia_smi: Sequence[str] = NVIDIA_SMI, drm: Path = DRM) -> int | None:
    """Memory of all GPUs that are worth using, in bytes; null when there is none, or none that tells."""
    sizes = [size for size in (*_nvidia(nvidia_smi), *_amd(drm)) if size >= GPU_MIN_BYTES]
    return sum(sizes) if sizes else None


def _nvidia(paths: Sequence[str]) -> list[int]:
    path = next((path for path in paths if os.access(path, os.X_OK)), None)
    if path is None:
        return []
    try:
        asked = subprocess.run(  # an absolute path, and no words of anybody else
            [path, *NVIDIA_ASK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8", "PATH": os.defpath},
            timeout=NVIDIA_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s does not say what memory its GPUs have: %s", path, type(error).__name__)
        return []
    lines = asked.stdout[:ANSWER_MAX_BYTES].decode("ascii", "replace").split("\n")[:GPUS_MAX]
    return [int(line) * MIB for line in (line.strip() for line in lines) if line.isdecimal()]


def _amd(drm: Path) -> list[int]:
    sizes = []
    for file in sorted(drm.glob("card[0-9]*/device/mem_info_vram_total"))[:GPUS_MAX]:
        try:
            text = file.read_bytes()[:ANSWER_MAX_BYTES].decode("ascii", "replace").strip()
        except OSError:
            continue
        if text.isdecimal():
            sizes.append(int(text))
    return sizes
