"""The llama architecture in numpy: from token ids to the scores of every possible next token.

Shapes: T positions fed at once, W width, H query heads, K key-value heads (H a multiple of K: grouped-query attention),
D = W / H dimensions a head, F feed-forward width, V vocabulary. All weights and activations are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.domain.errors import UpstreamProtocolError
from transport.runtimes.embedded.gguf import GgufFile

CONTEXT_MAX: Final = 512  # positions of a cache, also for a file that declares more
PREFILL_MAX: Final = 128  # positions in one matrix pass, so that a long prompt needs no large intermediates

Floats = NDArray[np.float32]


@attrs.frozen
class Shape:
    """The hyperparameters of a model, as its file declares them."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context: int
    rope_dimensions: int
    rope_base: float
    rms_epsilon: float

    @property
    def head_dimensions(self) -> int:
        return self.width // self.heads

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Shape:
        if file.text("general.architecture") != "llama":
            file.fail(f"the architecture is {file.text('general.architecture')!r}; only 'llama' is supported")
        heads = file.integer("llama.attention.head_count", 1, 1024)
        width = file.integer("llama.embedding_length", 2, 1 << 16)
        kv_heads = file.integer("llama.attention.head_count_kv", 1, heads, default=heads)
        dimensions = width // heads
        if width % heads or heads % kv_heads or dimensions % 2:
            file.fail(f"a width of {width} cannot be shared by {heads} heads with {kv_heads} key-value heads")
        rope_dimensions = file.integer("llama.rope.dimension_count", 2, dimensions, default=dimensions)
        if rope_dimensions % 2:
            file.fail(f"llama.rope.dimension_count must be even, not {rope_dimensions}")
        tokens = file.array("tokenizer.ggml.tokens", str)
        return cls(
            layers=file.integer("llama.block_count", 1, 1024),
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            feed_forward=file.integer("llama.feed_forward_length", 1, 1 << 20),
            vocabulary=len(tokens),
            context=min(file.integer("llama.context_length", 8, 1 << 30), CONTEXT_MAX),
            rope_dimensions=rope_dimensions,
            rope_base=file.number("llama.rope.freq_base", 1.0, 1e12, default=10_000.0),
            rms_epsilon=file.number("llama.attention.layer_norm_rms_epsilon", 1e-12, 1.0),
        )


@attrs.frozen(eq=False)
class Layer:
    attention_norm: Floats  # (W,)
    qkv: Floats  # ((H + 2K)·D, W); the queries are already divided by √D
    attention_out: Floats  # (W, W)
    ffn_norm: Floats  # (W,)
    gate_up: Floats  # (2F, W)
    down: Floats  # (W, F)

    @classmethod
    def from_gguf(cls, file: GgufFile, index: int, shape: Shape) -> Layer:
        def weights(name: str, *size: int) -> Floats:
            return file.tensor(f"blk.{index}.{name}.weight", size)

        width, kv_width = shape.width, shape.kv_heads * shape.head_dimensions
        queries = weights("attn_q", width, width) * np.float32(shape.head_dimensions**-0.5)
        keys, values = weights("attn_k", kv_width, width), weights("attn_v", kv_width, width)
        gate, up = weights("ffn_gate", shape.feed_forward, width), weights("ffn_up", shape.feed_forward, width)
        return cls(
            attention_norm=weights("attn_norm", width),
            qkv=np.vstack((queries, keys, values)),
            attention_out=weights("attn_output", width, width),
            ffn_norm=weights("ffn_norm", width),
            gate_up=np.vstack((gate, up)),
            down=weights("ffn_down", width, shape.feed_forward),
        )


@attrs.define(eq=False)
class Cache:
    """Keys and values of the positions fed so far; each generation has its own. `length` ≤ the context."""

    keys: Floats  # (layers, K, context, D)
    values: Floats
    length: int = 0

    @property
    def room(self) -> int:
        context: int = self.keys.shape[2]
        return context - self.length

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on."""
        self.length = min(self.length, length)


@attrs.frozen(eq=False)
class Transformer:
    """The weights of one model, in memory once and shared by all generations; nothing here changes after the load."""

    name: str
    shape: Shape
    embedding: Floats  # (V, W)
    layers: tuple[Layer, ...]
    output_norm: Floats  # (W,)
    output: Floats  # (V, W); the embedding itself where the file has no matrix of its own
    _rotations: NDArray[np.complex64]  # (context, 1, D/2)

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Transformer:
        """Raises `ModelLoadFailed` when the file is no llama model or lacks a weight."""
        shape = Shape.from_gguf(file)
        embedding = file.tensor("token_embd.weight", (shape.vocabulary, shape.width))
        tied = "output.weight" not in file.tensors
        return cls(
            name=file.name,
            shape=shape,
            embedding=embedding,
            layers=tuple(Layer.from_gguf(file, index, shape) for index in range(shape.layers)),
            output_norm=file.tensor("output_norm.weight", (shape.width,)),
            output=embedding if tied else file.tensor("output.weight", embedding.shape),
            rotations=_rotations(shape),
        )

    @property
    def resident_bytes(self) -> int:
        """What the weights take in memory."""
        arrays = [self.embedding, self.output_norm, self._rotations]
        arrays += [] if self.output is self.embedding else [self.output]
        arrays += [array for layer in self.layers for array in attrs.astuple(layer, recurse=False)]
        return sum(array.nbytes for array in arrays)

    def new_cache(self) -> Cache:
        shape = self.shape
        size = shape.layers, shape.kv_heads, shape.context, shape.head_dimensions
        return Cache(np.zeros(size, np.float32), np.zeros(size, np.float32))

    def feed(self, ids: Sequence[int], cache: Cache) -> Floats:
        """Append `ids` (1 … `cache.room` of them) to the cache; the scores (V,) of the token after the last one.

        Blocks for about 0.5 ms a token (less in long prompts): call it from a worker thread. Raises
        `UpstreamProtocolError` when the numbers overflow, which only the weights of a damaged file can bring about.
        """
        if not 0 < len(ids) <= cache.room:
            raise ValueError(f"{len(ids)} tokens for a cache with room for {cache.room}")
        with np.errstate(over="ignore", invalid="ignore"):
            for begin in range(0, len(ids), PREFILL_MAX):
                x = self._advance(np.asarray(ids[begin : begin + PREFILL_MAX]), cache)
            scores: Floats = self.output @ self._normalised(x[-1:], self.output_norm)[0]
        if not np.isfinite(scores).all():
            raise UpstreamProtocolError(f"{self.name}: the forward pass overflowed; the file is damaged")
        return scores

    def _advance(self, ids: NDArray[np.int64], cache: Cache) -> Floats:
        """One pass over T positions: (T, W) before the last norm, with the cache T longer."""
        begin, end = cache.length, cache.length + len(ids)
        x: Floats = self.embedding[ids]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            heads = self._attended(self._normalised(x, layer.attention_norm) @ layer.qkv.T, keys, values, begin)
            x = x + heads @ layer.attention_out.T
            gate, up = np.split(self._normalised(x, layer.ffn_norm) @ layer.gate_up.T, 2, axis=1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ layer.down.T
        cache.length = end
        return x

    def _attended(self, qkv: Floats, keys: Floats, values: Floats, begin: int) -> Floats:
        """Causal attention of T new positions over all positions up to their own: (T, W)."""
        shape, count = self.shape, len(qkv)
        end, size, group = begin + count, shape.head_dimensions, shape.heads // shape.kv_heads
        by_head = qkv.reshape(count, shape.heads + 2 * shape.kv_heads, size)
        # Rotary position: neighbours are the two parts of a complex number, so turning a pair is one multiplication.
        pairs = by_head[:, : shape.heads + shape.kv_heads].view(np.complex64)
        turned = (pairs * self._rotations[begin:end]).view(np.float32)
        keys[:, begin:end] = turned[:, shape.heads :].swapaxes(0, 1)
        values[:, begin:end] = by_head[:, shape.heads + shape.kv_heads :].swapaxes(0, 1)
        queries = turned[:, : shape.heads].reshape(count, shape.kv_heads, group, size).transpose(1, 2, 0, 3)
        scores = queries.reshape(shape.kv_heads, group * count, size) @ keys[:, :end].swapaxes(1, 2)
        if count > 1:
            later = np.triu(np.full((count, end), -np.inf, np.float32), k=begin + 1)
            scores = (scores.reshape(shape.heads, count, end) + later).reshape(scores.shape)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed: Floats = (weights @ values[:, :end]).reshape(shape.kv_heads, group, count, size)
        return mixed.transpose(2, 0, 1, 3).reshape(count, shape.width)

    def _normalised(self, x: Floats, weight: Floats) -> Floats:
        """Root-mean-square norm of each row."""
        mean_square = np.einsum("tw,tw->t", x, x)[:, None] / np.float32(self.shape.width)
        normalised: Floats = x / np.sqrt(mean_square + np.float32(self.shape.rms_epsilon)) * weight
        return normalised


def _rotations(shape: Shape) -> NDArray[np.complex64]:
    """The turn of every pair at every position; pairs beyond the rope dimensions do not turn."""
    frequencies = np.zeros(shape.head_dimensions // 2)
    turning = shape.rope_dimensions // 2
    frequencies[:turning] = shape.rope_base ** (-np.arange(turning) / turning)
    angles = np.outer(np.arange(shape.context), frequencies)
    turns: NDArray[np.complex64] = np.exp(1j * angles).astype(np.complex64)[:, None]
    return turns
