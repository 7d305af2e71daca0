"""The reader takes every value type, and from bytes that are not a sound file it raises `ModelLoadFailed` only."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import ModelLoadFailed, UpstreamProtocolError
from tests.transport.embedded import gguf_writer
from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.bpe import Tokenizer
from transport.runtimes.embedded.forward import Transformer

EVERY_TYPE = {
    "u8": ("u8", 255),
    "i8": ("i8", -128),
    "u16": ("u16", 65535),
    "i16": ("i16", -32768),
    "u32": ("u32", 4294967295),
    "i32": ("i32", -2147483648),
    "f32": ("f32", 0.5),
    "bool": ("bool", True),
    "u64": ("u64", 2**64 - 1),
    "i64": ("i64", -(2**63)),
    "f64": ("f64", 1e-300),
    "text": ("str", "½ 北京 🙂"),
    "numbers": ("[i16]", [1, -2, 3]),
    "texts": ("[str]", ["", "a"]),
    "nested": ("[[u8]]", [[1, 2], []]),
    "empty": ("[f64]", []),
}
TINY = gguf_writer.tiny_model()


@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type_and_both_tensor_types(version: int):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([0.5, -2], np.float16)}
    file = gguf.parse(gguf_writer.write(EVERY_TYPE, tensors, version=version), "odd.gguf")
    assert file.version == version
    assert file.metadata == {key: value for key, (_, value) in EVERY_TYPE.items()}
    assert {name: tensor.tolist() for name, tensor in file.tensors.items()} == {
        "a": [[0, 1, 2], [3, 4, 5]],
        "b": [0.5, -2],
    }
    assert not file.tensors["a"].flags.writeable


def test_alignment_of_the_file_counts():
    tensors = {"a": np.ones(3, np.float32), "b": np.full(2, 7, np.float32)}
    data = gguf_writer.write({"general.alignment": ("u32", 64)}, tensors, alignment=64)
    assert gguf.parse(data, "x").tensors["b"].tolist() == [7, 7]


HEAD = b"GGUF" + struct.pack("<I", 3)


def with_value(kind: int, value: bytes) -> bytes:
    return HEAD + struct.pack("<QQ", 0, 1) + gguf_writer.string("k") + struct.pack("<I", kind) + value


def with_tensor(dimensions: tuple[int, ...], kind: int = 0, offset: int = 0, room: int = 64) -> bytes:
    info = gguf_writer.string("t") + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    head = HEAD + struct.pack("<QQ", 1, 0) + info + struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + bytes(room)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "ends inside the magic"),
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "has version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "has version 50331648"),
        (HEAD + struct.pack("<QQ", 2**63, 0), "for the tensor count; the limit is 4096"),
        (HEAD + struct.pack("<QQ", 0, 5), "ends inside a metadata key"),
        (HEAD + struct.pack("<QQQ", 0, 1, 2**40), "for a metadata key; the limit is"),
        (with_value(13, b""), "unknown value type 13"),
        (with_value(8, struct.pack("<Q", 3) + b"ab"), "ends inside 'k'"),
        (with_value(8, struct.pack("<Q", 2) + b"\xc3\x28"), "is not UTF-8"),
        (with_value(9, struct.pack("<IQ", 0, 2**20)), "ends inside 'k'"),
        (with_value(9, struct.pack("<IQ", 8, 2**20)), "ends inside 'k'"),
        (with_value(9, struct.pack("<IQ", 0, 2**60)), "the limit is 1048576"),
        (with_value(9, struct.pack("<IQIQIQ", 9, 1, 9, 1, 9, 0)), "nests arrays more than 2 deep"),
        (with_tensor((4, 4), kind=2), "has type 2; types 0 (F32) and 1 (F16)"),
        (with_tensor((2**32, 2**32)), "reaches beyond the end of the file"),
        (with_tensor((16,), offset=32), "reaches beyond the end of the file"),
        (with_tensor((4,), offset=8), "does not begin at a multiple of 32"),
        (with_tensor((4, 0)), "is empty"),
        (with_tensor((1, 1, 1, 1, 1)), "the limit is 4"),
    ],
)
def test_the_message_names_the_file_and_the_fault(data: bytes, fault: str):
    with pytest.raises(ModelLoadFailed) as caught:
        gguf.parse(data, "weights.gguf")
    assert caught.value.message.startswith("weights.gguf: ")
    assert fault in caught.value.message
    assert caught.value.details == {"file": "weights.gguf"}


def test_a_claimed_length_costs_nothing_until_the_bytes_are_there():
    claims = [with_value(9, struct.pack("<IQ", kind, gguf.ARRAY_MAX_ITEMS)) for kind in (*range(13), 99)]
    tracemalloc.start()
    try:
        for data in claims:
            with pytest.raises(ModelLoadFailed):
                gguf.parse(data, "x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_keys_and_tensors_must_be_distinct():
    once = gguf_writer.string("k") + struct.pack("<IB", 0, 1)
    with pytest.raises(ModelLoadFailed, match="the metadata key 'k' twice"):
        gguf.parse(HEAD + struct.pack("<QQ", 0, 2) + once * 2, "x")
    info = gguf_writer.string("t") + struct.pack("<IQIQ", 1, 1, 0, 0)
    with pytest.raises(ModelLoadFailed, match="the tensor 't' twice"):
        gguf.parse(HEAD + struct.pack("<QQ", 2, 0) + info * 2 + bytes(64), "x")


def test_every_truncation_is_refused():
    data = gguf_writer.write(EVERY_TYPE, {"a": np.ones((2, 3), np.float32), "b": np.ones(9, np.float16)})
    for length in range(len(data)):
        with pytest.raises(ModelLoadFailed):
            gguf.parse(data[:length], "x")


@given(st.binary(max_size=200))
def test_random_bytes_after_the_magic(data: bytes):
    with pytest.raises(ModelLoadFailed):
        gguf.parse(b"GGUF\x03\0\0\0\x01" + bytes(7) + data, "x")


HEADER_BYTES = TINY.index(b"output_norm.weight") + 700
edits = st.lists(
    st.tuples(st.integers(0, HEADER_BYTES), st.sampled_from([1, 4, 8]), st.binary(min_size=8, max_size=8)),
    min_size=1,
    max_size=4,
)


@given(edits)
def test_a_mutated_model_loads_or_is_refused(changes: list[tuple[int, int, bytes]]):
    data = bytearray(TINY)
    for at, width, new in changes:
        data[at : at + width] = new[:width]
    with suppress(ModelLoadFailed, UpstreamProtocolError):  # any other error fails the test
        file = gguf.parse(bytes(data), "x")
        tokenizer, transformer = Tokenizer.from_gguf(file), Transformer.from_gguf(file)
        scores = transformer.feed(tokenizer.encode("the end")[:8], transformer.new_cache())
        assert len(scores) == len(tokenizer.display)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("general.architecture", ("str", "gemma"), "only 'llama' is supported"),
        ("llama.attention.head_count", ("u32", 0), "llama.attention.head_count must be a whole number from 1"),
        ("llama.attention.head_count", ("u32", 3), "a width of 16 cannot be shared by 3 heads"),
        ("llama.attention.head_count_kv", ("u32", 3), "with 3 key-value heads"),
        ("llama.block_count", ("u32", 3), "tensor blk.2.attn_q.weight is missing"),
        ("llama.feed_forward_length", ("u32", 25), "where [25, 16] is expected"),
        ("llama.attention.layer_norm_rms_epsilon", ("f32", float("nan")), "must be a number from 1e-12"),
        ("llama.context_length", ("str", "512"), "llama.context_length must be a whole number"),
        ("tokenizer.ggml.model", ("str", "llama"), "only 'gpt2' is supported"),
        ("tokenizer.ggml.tokens", ("[str]", ["a"]), "must be distinct, with one token_type each"),
        ("tokenizer.ggml.merges", ("[str]", ["t h", "e the"]), "lacks, at position 1"),
        ("tokenizer.ggml.eos_token_id", ("u32", 5), "must be both the begin and the end of text"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(key: str, value: tuple[str, object], fault: str):
    metadata, tensors = gguf_writer.tiny_parts()
    file = gguf.parse(gguf_writer.write(metadata | {key: value}, tensors), "x")
    read = Tokenizer.from_gguf if key.startswith("tokenizer.") else Transformer.from_gguf
    with pytest.raises(ModelLoadFailed) as caught:
        read(file)
    assert fault in caught.value.message


def test_weights_must_be_finite():
    metadata, tensors = gguf_writer.tiny_parts()
    tensors["blk.1.ffn_up.weight"][3, 3] = np.inf
    with pytest.raises(ModelLoadFailed, match=r"blk\.1\.ffn_up\.weight holds numbers that are not finite"):
        Transformer.from_gguf(gguf.parse(gguf_writer.write(metadata, tensors), "x"))


def test_reading_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "tiny.gguf"
    with pytest.raises(ModelLoadFailed, match=r"tiny\.gguf: cannot be read: No such file"):
        gguf.read(path)
    path.write_bytes(TINY)
    file, data = gguf.read(path)
    assert file.name == "tiny.gguf"
    assert data == TINY
    monkeypatch.setattr(gguf, "FILE_MAX_BYTES", len(TINY) - 1)
    with pytest.raises(ModelLoadFailed, match="is larger than"):
        gguf.read(path)
