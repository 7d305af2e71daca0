"""The broker's record on disk: private, whole lines, bounded, and read again whatever is in it."""

from __future__ import annotations

import stat

import pytest
import trio

from engine.broker_log import FILE_NAME, BrokerFile


async def test_lines_are_appended_and_read_again(tmp_path):
    log = BrokerFile(tmp_path)
    assert log.read() == []
    await log.write({"event": "asked", "call": "1", "would_leave": {"messages": 1}})
    await log.write({"event": "ended", "call": "1", "tokens": 3, "usd": 0.5, "counted": True, "x": None})
    assert [line["event"] for line in BrokerFile(tmp_path).read()] == ["asked", "ended"]
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


async def test_many_writers_do_not_mix_their_lines(tmp_path):
    log = BrokerFile(tmp_path)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(log.write, {"call": str(number), "text": "x" * 1000})
    assert sorted(int(line["call"]) for line in log.read()) == list(range(20))


async def test_a_full_file_is_put_aside_and_still_read(tmp_path):
    log = BrokerFile(tmp_path, bytes_max=200)
    for number in range(10):
        await log.write({"call": str(number), "pad": "x" * 50})
    assert {path.name for path in tmp_path.iterdir()} == {FILE_NAME, f"{FILE_NAME}.1"}
    assert all(path.stat().st_size <= 200 for path in tmp_path.iterdir())
    read = [int(line["call"]) for line in log.read()]
    assert read == list(range(10 - len(read), 10))
    assert len(read) >= 3


async def test_what_is_no_line_of_ours_is_passed_over(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(
        b'{"event":"asked"}\nnonsense\n\xff\xfe\n[1]\n' + b"[" * 5000 + b'\n{"a":' + b'"x' * 20_000 + b'\n{"event":"end'
    )
    assert BrokerFile(tmp_path).read() == [{"event": "asked"}]


async def test_a_folder_that_takes_nothing_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        await BrokerFile(tmp_path / "gone").write({"event": "asked"})
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        await BrokerFile(tmp_path).write({"event": "asked"})
