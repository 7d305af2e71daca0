"""A model file of an encoder whose vectors are known beforehand, for any engine that reads GGUF.

It is a BERT in which attention and feed-forward are zero and positions mean nothing: every token is its own row of a
table, normalised by each layer, and a text is the mean of its tokens. No weight is trained and nothing is random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.transport.embedded import gguf_writer

WORDS: Final = ("the", "engine", "streams", "tokens", "to", "screen", "energy", "model")
CONTROL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WIDTH: Final = 32
CONTEXT: Final = 256  # tokens, with the two around every text
POOLINGS: Final = {"mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama.cpp's numbers
EPSILON: Final = 1e-12


def table() -> NDArray[np.float64]:
    """A row per token: waves of different lengths, so that no two are alike."""
    count = len(CONTROL) + len(WORDS)
    return np.sin(np.outer(np.arange(1, count + 1), np.arange(1, WIDTH + 1)) * 0.37)


def known_vector(text: str, pooling: str = "mean") -> NDArray[np.float64]:
    """What a correct engine makes of words of WORDS, of length 1."""
    ids = [2, *(len(CONTROL) + WORDS.index(word) for word in text.split()), 3]
    rows = table()[ids].astype(np.float32).astype(np.float64)
    for _ in range(3):  # after the embedding, after attention, after feed-forward
        rows = rows - rows.mean(axis=1, keepdims=True)
        rows = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + EPSILON)
    pooled = {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[pooling]
    return pooled / np.linalg.norm(pooled)


def save_encoder(path: Path, pooling: str | None = "mean", architecture: str = "bert") -> Path:
    """Write the file. `pooling` None: it does not say how the tokens become one vector."""
    tokens = [*CONTROL, *(f"\u2581{word}" for word in WORDS)]
    metadata: dict[str, tuple[str, Any]] = {
        "general.architecture": ("str", architecture),
        "bert.context_length": ("u32", CONTEXT),
        "bert.embedding_length": ("u32", WIDTH),
        "bert.block_count": ("u32", 1),
        "bert.feed_forward_length": ("u32", WIDTH),
        "bert.attention.head_count": ("u32", 1),
        "bert.attention.layer_norm_epsilon": ("f32", EPSILON),
        "bert.attention.causal": ("bool", False),
        "tokenizer.ggml.model": ("str", "bert"),
        "tokenizer.ggml.pre": ("str", "jina-v2-en"),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.token_type": ("[i32]", [3] * len(CONTROL) + [1] * len(WORDS)),
        "tokenizer.ggml.token_type_count": ("u32", 1),
        "tokenizer.ggml.padding_token_id": ("u32", 0),
        "tokenizer.ggml.unknown_token_id": ("u32", 1),
        "tokenizer.ggml.cls_token_id": ("u32", 2),
        "tokenizer.ggml.bos_token_id": ("u32", 2),
        "tokenizer.ggml.eos_token_id": ("u32", 3),
        "tokenizer.ggml.seperator_token_id": ("u32", 3),  # so spelled
    }
    if pooling is not None:
        metadata["bert.pooling_type"] = ("u32", POOLINGS[pooling])
    path.write_bytes(gguf_writer.write(metadata, _tensors(len(tokens))))
    return path


def _tensors(count: int) -> dict[str, np.ndarray]:
    tensors = {
        "token_embd.weight": table().astype(np.float32),
        "token_types.weight": np.zeros((1, WIDTH), np.float32),
        "position_embd.weight": np.zeros((CONTEXT, WIDTH), np.float32),
    }
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        tensors[f"{name}.weight"] = np.ones(WIDTH, np.float32)
        tensors[f"{name}.bias"] = np.zeros(WIDTH, np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{name}.weight"] = np.zeros((WIDTH, WIDTH), np.float32)
        tensors[f"blk.0.{name}.bias"] = np.zeros(WIDTH, np.float32)
    return tensors
