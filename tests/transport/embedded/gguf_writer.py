"""Writes GGUF bytes, for files that must be small, odd or broken."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from transport.runtimes.embedded.bpe import _ALPHABET

CODES = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "u64": 10, "i64": 11, "f64": 12}
FORMS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?"}
FORMS |= {"u64": "Q", "i64": "q", "f64": "d"}
ALIGNMENT = 32


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def kind_of(kind: str) -> int:
    return 9 if kind.startswith("[") else 8 if kind == "str" else CODES[kind]


def packed(kind: str, value: Any) -> bytes:
    """A value of kind `u32`, `str`, or an array: `[u32]`, `[[str]]`."""
    if kind.startswith("["):
        inner = kind[1:-1]
        return struct.pack("<IQ", kind_of(inner), len(value)) + b"".join(packed(inner, item) for item in value)
    return string(value) if kind == "str" else struct.pack("<" + FORMS[kind], value)


def write(
    metadata: dict[str, tuple[str, Any]], tensors: dict[str, np.ndarray], version: int = 3, alignment: int = ALIGNMENT
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        head += string(key) + struct.pack("<I", kind_of(kind)) + packed(kind, value)
    data = b""
    for name, tensor in tensors.items():
        data += bytes(-len(data) % alignment)
        dimensions = tensor.shape[::-1]
        head += string(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        head += struct.pack("<IQ", 1 if tensor.dtype == np.float16 else 0, len(data))
        data += tensor.tobytes()
    return head + bytes(-len(head) % alignment) + data


def tiny_model(*, kv_heads: int = 1, context: int = 24, tied: bool = True, **changes: tuple[str, Any]) -> bytes:
    """A llama with random weights: 2 layers, width 16, 4 heads of 4, the 256 bytes and two merges as vocabulary."""
    return write(*tiny_parts(kv_heads=kv_heads, context=context, tied=tied, **changes))


def tiny_parts(
    *, kv_heads: int = 1, context: int = 24, tied: bool = True, **changes: tuple[str, Any]
) -> tuple[dict[str, tuple[str, Any]], dict[str, np.ndarray]]:
    tokens = ["<|end|>", *_ALPHABET, "th", "the"]
    width, feed_forward, size = 16, 24, 4 * kv_heads
    metadata: dict[str, tuple[str, Any]] = {
        "general.architecture": ("str", "llama"),
        "llama.context_length": ("u32", context),
        "llama.embedding_length": ("u32", width),
        "llama.block_count": ("u32", 2),
        "llama.feed_forward_length": ("u32", feed_forward),
        "llama.attention.head_count": ("u32", 4),
        "llama.attention.head_count_kv": ("u32", kv_heads),
        "llama.rope.dimension_count": ("u32", 2),
        "llama.rope.freq_base": ("f32", 500.0),
        "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", "gpt-2"),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.token_type": ("[i32]", [3] + [1] * (len(tokens) - 1)),
        "tokenizer.ggml.merges": ("[str]", ["t h", "th e"]),
        "tokenizer.ggml.bos_token_id": ("u32", 0),
        "tokenizer.ggml.eos_token_id": ("u32", 0),
    } | changes
    random = np.random.default_rng(7)

    def weights(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float16)

    tensors = {"token_embd.weight": weights(len(tokens), width) * np.float16(4)}
    tensors["output_norm.weight"] = random.uniform(0.5, 1.5, width).astype(np.float32)
    if not tied:
        tensors["output.weight"] = weights(len(tokens), width)
    for layer in range(2):
        for name, shape in (
            ("attn_q", (width, width)),
            ("attn_k", (size, width)),
            ("attn_v", (size, width)),
            ("attn_output", (width, width)),
            ("ffn_gate", (feed_forward, width)),
            ("ffn_up", (feed_forward, width)),
            ("ffn_down", (width, feed_forward)),
        ):
            tensors[f"blk.{layer}.{name}.weight"] = weights(*shape)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = random.uniform(0.5, 1.5, width).astype(np.float32)
    return metadata, tensors
