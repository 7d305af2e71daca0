"""The broker's record on disk: private, whole lines, bounded, and read again whatever is in it."""

from __future__ import annotations

import hashlib
import json
import os
import stat

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.broker_log import ASIDE_NAME, FILE_NAME, GENESIS, BrokerFile, hash_of, verify_chain
from engine.check import run_checks
from engine.config import load_settings


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
    log = BrokerFile(tmp_path, bytes_max=1000)
    for number in range(10):
        await log.write({"call": str(number), "pad": "x" * 50})
    assert {path.name for path in tmp_path.iterdir()} == {FILE_NAME, f"{FILE_NAME}.1"}
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    read = [int(line["call"]) for line in log.read()]
    assert read == list(range(10 - len(read), 10))
    assert 3 <= len(read) < 10
    chain = verify_chain(tmp_path)  # across both files, though what was before them is gone
    assert (chain.lines, chain.broken, chain.last) == (len(read), None, log.read()[-1]["hash"])


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


# ── the chain ──


async def written(folder, count=4, log=None):
    log = log or BrokerFile(folder)
    for number in range(count):
        would_leave = {"b": 1, "a": "é"}
        await log.write({"call": str(number), "tokens": number, "usd": 0.5, "would_leave": would_leave})
    return folder / FILE_NAME


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


async def test_each_line_holds_the_hash_of_the_one_before(tmp_path):
    prev = GENESIS
    for raw in lines_of(await written(tmp_path)):
        line = json.loads(raw)
        told = {key: value for key, value in line.items() if key not in ("prev", "hash")}
        canonical = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert line["prev"] == prev
        prev = line["hash"]
        assert prev == hashlib.sha256((line["prev"] + canonical).encode()).hexdigest()
    chain = verify_chain(tmp_path)
    assert (chain.lines, chain.last, chain.broken) == (4, prev, None)


def test_without_a_record_there_is_nothing_to_look_at(tmp_path):
    assert verify_chain(tmp_path) is None


async def test_the_chain_goes_on_after_a_restart(tmp_path):
    await written(tmp_path, 2)
    await written(tmp_path, 2)  # another engine
    assert verify_chain(tmp_path).lines == 4


async def test_the_chain_goes_on_when_the_restart_comes_right_after_a_file_was_put_aside(tmp_path):
    path = await written(tmp_path, 2)
    path.rename(tmp_path / ASIDE_NAME)
    await written(tmp_path, 2)
    chain = verify_chain(tmp_path)
    assert (chain.lines, chain.broken) == (4, None)


async def test_a_line_that_was_being_written_when_the_machine_stopped_spoils_nothing(tmp_path):
    path = await written(tmp_path, 2)
    path.write_bytes(path.read_bytes() + b'{"event":"asked","ca')
    assert (verify_chain(tmp_path).lines, verify_chain(tmp_path).broken) == (2, None)
    await written(tmp_path, 2)
    assert [line["call"] for line in BrokerFile(tmp_path).read()] == ["0", "1", "0", "1"]
    assert (verify_chain(tmp_path).lines, verify_chain(tmp_path).broken) == (4, None)


async def test_a_write_that_failed_leaves_the_chain_whole(tmp_path, monkeypatch):
    log = BrokerFile(tmp_path)
    path = await written(tmp_path, 2, log)
    with monkeypatch.context() as patch:
        patch.setattr("os.write", _half_a_write)
        with pytest.raises(OSError, match="full"):
            await log.write({"event": "ended", "call": "1"})
    assert path.read_bytes().count(b"\n") == 2
    await written(tmp_path, 1, log)
    assert (verify_chain(tmp_path).lines, verify_chain(tmp_path).broken) == (3, None)


def _half_a_write(descriptor, data, write=os.write):
    return write(descriptor, data[: len(data) // 2])


@pytest.mark.parametrize(
    ("change", "lines", "fault"),
    [
        (lambda lines: [lines[0], lines[1].replace(b'"tokens":1', b'"tokens":0'), *lines[2:]], 1, "line 2 was changed"),
        (lambda lines: [lines[0], lines[1].replace(b"{", b'{"tokens":9,', 1), *lines[2:]], 1, "line 2 was changed"),
        (lambda lines: [lines[0], b" " + lines[1], *lines[2:]], 1, "line 2 was changed"),
        (lambda lines: [lines[0], *lines[2:]], 1, "line 2 does not follow"),
        (lambda lines: lines[1:], 0, "line 1 does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 1, "line 2 does not follow"),
        (lambda lines: [*lines, lines[3]], 4, "line 5 does not follow"),
        (lambda lines: [*lines[:2], b'{"event":"asked"}\n', *lines[2:]], 2, "line 3 has no hash"),
        (lambda lines: [*lines[:2], b"nonsense\n", *lines[2:]], 2, "line 3 is no line of the broker"),
        (lambda lines: [*lines[:3], b'{"a":"' + b"x" * 40_000 + b'"}\n'], 3, "line 4 is too long"),
        (lambda lines: [*lines[:3], b"[" * 9000 + b"\n"], 3, "line 4 is no line of the broker"),
    ],
)
async def test_what_was_done_to_the_record_shows_at_its_line(tmp_path, change, lines, fault):
    path = await written(tmp_path)
    path.write_bytes(b"".join(change(lines_of(path))))
    chain = verify_chain(tmp_path)
    assert chain.lines == lines
    assert chain.broken.startswith(f"{FILE_NAME} {fault}")


async def test_a_file_that_was_put_aside_and_is_gone_is_missed(tmp_path):
    log = BrokerFile(tmp_path, bytes_max=1000)
    await written(tmp_path, 6, log)
    (tmp_path / ASIDE_NAME).unlink()
    assert verify_chain(tmp_path).broken.startswith(f"{FILE_NAME} line 1 does not follow")


async def test_a_record_that_is_exchanged_under_a_running_engine_shows(tmp_path):
    log = BrokerFile(tmp_path)
    path = await written(tmp_path, 2, log)
    path.unlink()
    await written(tmp_path, 1, log)
    assert verify_chain(tmp_path).broken.startswith(f"{FILE_NAME} line 1 does not follow")


def test_a_record_that_is_none_is_told(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    assert verify_chain(tmp_path).broken.startswith(f"{FILE_NAME} cannot be read")


def test_check_tells_whether_it_is_whole(tmp_path):
    environ, state = {"WF_DATA_DIR": str(tmp_path / "state")}, tmp_path / "state"
    text = "ollama: {enabled: false}\nllama_cpp: {enabled: false}\nhttp: {port: 0}\nws: {port: 0}\n"
    (tmp_path / "wf.yaml").write_text(text)

    def told():
        report = run_checks(lambda: load_settings(argv_config=None, flags={}, environ={}, cwd=tmp_path), environ)
        return report["ok"], [(one["ok"], one["found"]) for one in report["checks"] if one["what"] == "broker's record"]

    assert told() == (True, [])
    state.mkdir()
    path = trio.run(written, state)
    assert told() == (True, [(True, f"4 lines, as they were written; the last hash is {verify_chain(state).last}")])
    path.write_bytes(b"".join(lines_of(path)[1:]))
    ok, ((of_record, found),) = told()
    assert (ok, of_record) == (False, False)
    assert found.startswith("broker.jsonl line 1 does not follow")


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)


@given(st.dictionaries(st.text(max_size=5), _VALUES, max_size=5), st.text(max_size=5), _VALUES)
def test_any_other_content_has_another_hash(line, key, value):
    other = {**line, key: value}
    same = json.dumps(other, sort_keys=True) == json.dumps(line, sort_keys=True)
    if key not in ("prev", "hash"):
        assert (hash_of(GENESIS, line) == hash_of(GENESIS, other)) == same
    assert hash_of("1" * 64, line) != hash_of(GENESIS, line)
