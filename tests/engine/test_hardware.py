"""What is read of GPUs: programs and files that stand in for drivers, real processes and real files."""

from __future__ import annotations

import pytest

from engine import hardware
from engine.hardware import MIB, gpu_bytes, ram_is_short, read_machine
from tests.fakes.processes import WATCHDOG_S


@pytest.fixture
def nvidia(tmp_path, monkeypatch):
    """Installs a program as nvidia-smi. It is waited for longer than in the engine: a busy machine takes its time to
    start one."""
    monkeypatch.setattr(hardware, "NVIDIA_TIMEOUT_S", WATCHDOG_S)

    def install(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return [str(tmp_path / "missing"), str(path)]

    return install


@pytest.fixture
def drm(tmp_path):
    folder = tmp_path / "drm"
    folder.mkdir()

    def card(number, text):
        device = folder / f"card{number}" / "device"
        device.mkdir(parents=True)
        (device / "mem_info_vram_total").write_text(text)
        return folder

    card.folder = folder
    return card


def test_the_memory_of_all_gpus_is_added_up(nvidia, drm):
    assert gpu_bytes(nvidia("echo 24564; echo 8188"), drm.folder) == (24564 + 8188) * MIB


def test_it_is_asked_for_what_it_knows_without_our_environment(nvidia, drm, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "do not pass on")
    script = '[ -z "$SECRET_KEY" ] && [ "$1" = "--query-gpu=memory.total" ] && echo 4096'
    assert gpu_bytes(nvidia(script), drm.folder) == 4096 * MIB


@pytest.mark.parametrize(
    "script", ["exit 9", "echo 'No devices were found'", "echo '[N/A]'", "echo -5", ":", "echo 512"]
)
def test_a_driver_that_tells_nothing_useful_is_no_gpu(nvidia, drm, script):
    assert gpu_bytes(nvidia(script), drm.folder) is None


def test_a_driver_that_never_answers_is_no_gpu(nvidia, drm, monkeypatch):
    monkeypatch.setattr(hardware, "NVIDIA_TIMEOUT_S", 0.05)
    assert gpu_bytes(nvidia("exec sleep 60"), drm.folder) is None


def test_amd_says_it_in_a_file(drm):
    drm(0, f"{16 * 1024 * MIB}\n")
    drm(1, f"{512 * MIB}\n")  # set aside by a processor with graphics
    drm(2, "unknown\n")
    assert gpu_bytes([], drm.folder) == 16 * 1024 * MIB


def test_a_machine_without_a_gpu(drm):
    assert gpu_bytes([], drm.folder) is None
    assert gpu_bytes([], drm.folder / "missing") is None


def test_this_machine_has_main_memory():
    machine = read_machine()
    assert machine.ram_bytes > 2**28
    assert machine.vram_bytes is None or machine.vram_bytes >= hardware.GPU_MIN_BYTES


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("MemTotal:       1000 kB\nMemFree: 5 kB\nMemAvailable:    99 kB\n", True),
        ("MemTotal:       1000 kB\nMemAvailable:   101 kB\n", False),
        ("MemTotal:       1000 kB\n", False),  # an old kernel does not tell
        ("", False),
    ],
)
def test_memory_is_short_when_nine_tenths_are_in_use(tmp_path, text, short):
    (tmp_path / "meminfo").write_text(text)
    assert ram_is_short(tmp_path / "meminfo") is short


def test_memory_is_not_short_where_nobody_tells(tmp_path):
    assert ram_is_short(tmp_path / "no such file") is False
