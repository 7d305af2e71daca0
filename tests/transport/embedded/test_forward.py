"""The numbers of the forward pass, against values computed elsewhere and against a slow and obvious one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import UpstreamProtocolError
from tests.transport.embedded import gguf_writer
from transport.runtimes.embedded import gguf
from transport.runtimes.embedded.answer import Model
from transport.runtimes.embedded.forward import CONTEXT_MAX, PREFILL_MAX, Transformer
from transport.runtimes.embedded.runtime import WEIGHTS_DIR
from transport.runtimes.embedded.sampler import log_softmax, ranked


def test_golden_log_probabilities(models: dict[str, Model], golden: tuple[str, dict[str, Any]]):
    name, case = golden
    transformer, tokenizer = models[name].transformer, models[name].tokenizer
    logprobs = log_softmax(transformer.feed([tokenizer.end_id, *case["ids"]], transformer.new_cache()))
    ids = [id_ for id_, _, _ in case["top"]]
    assert ranked(logprobs, 10).tolist() == ids
    assert logprobs[ids] == pytest.approx([logprob for _, _, logprob in case["top"]], abs=1e-4)
    assert -(np.exp(logprobs) * logprobs).sum() == pytest.approx(case["entropy_nats"], abs=1e-4)


def test_one_by_one_equals_all_at_once(models: dict[str, Model]):
    transformer = models["mixed"].transformer
    ids = np.random.default_rng(1).integers(0, transformer.shape.vocabulary, PREFILL_MAX + 40).tolist()
    together, single = transformer.new_cache(), transformer.new_cache()
    expected = transformer.feed(ids, together)
    for id_ in ids:
        scores = transformer.feed([id_], single)
    assert scores == pytest.approx(expected, abs=1e-3)
    assert single.length == together.length == len(ids)
    assert single.keys == pytest.approx(together.keys, abs=1e-3)


def slow_scores(metadata: dict[str, Any], w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """The llama architecture in float64, written down head by head and position by position, without a cache."""
    read = {key: value for key, (_, value) in metadata.items()}
    heads, kv_heads = read["llama.attention.head_count"], read["llama.attention.head_count_kv"]
    size, turning = 16 // heads, read["llama.rope.dimension_count"]

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean() + read["llama.attention.layer_norm_rms_epsilon"]) * weight

    def rope(head: np.ndarray, position: int) -> np.ndarray:
        out = head.copy()
        for n in range(0, turning, 2):
            angle = position * read["llama.rope.freq_base"] ** (-n / turning)
            out[n] = head[n] * np.cos(angle) - head[n + 1] * np.sin(angle)
            out[n + 1] = head[n] * np.sin(angle) + head[n + 1] * np.cos(angle)
        return out

    xs = [w["token_embd.weight"][n].astype(np.float64) for n in ids]
    for layer in range(read["llama.block_count"]):
        at = {
            key.split(".")[2]: value.astype(np.float64) for key, value in w.items() if key.startswith(f"blk.{layer}.")
        }
        normed = [norm(x, at["attn_norm"]) for x in xs]
        queries, keys, values = ([at[name] @ x for x in normed] for name in ("attn_q", "attn_k", "attn_v"))
        for t in range(len(xs)):
            mixed = []
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                shared = slice(head // (heads // kv_heads) * size, (head // (heads // kv_heads) + 1) * size)
                query = rope(queries[t][own], t)
                scores = np.array([query @ rope(keys[s][shared], s) for s in range(t + 1)]) / np.sqrt(size)
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed.append(sum(weight * values[s][shared] for s, weight in enumerate(weights)))
            xs[t] = xs[t] + at["attn_output"] @ np.concatenate(mixed)
            normed_t = norm(xs[t], at["ffn_norm"])
            gate = at["ffn_gate"] @ normed_t
            xs[t] = xs[t] + at["ffn_down"] @ (gate / (1 + np.exp(-gate)) * (at["ffn_up"] @ normed_t))
    return w.get("output.weight", w["token_embd.weight"]).astype(np.float64) @ norm(xs[-1], w["output_norm.weight"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_head_groups_rotation_and_norm_come_from_the_file(kv_heads: int, tied: bool):
    metadata, tensors = gguf_writer.tiny_parts(kv_heads=kv_heads, tied=tied)
    transformer = Transformer.from_gguf(gguf.parse(gguf_writer.write(metadata, tensors), "x"))
    ids = [0, 40, 7, 257, 99, 41, 258, 3, 3]
    cache = transformer.new_cache()
    transformer.feed(ids[:4], cache)
    transformer.feed(ids[4:5], cache)
    assert transformer.feed(ids[5:], cache) == pytest.approx(slow_scores(metadata, tensors, ids), abs=1e-3)


TINY = Transformer.from_gguf(gguf.parse(gguf_writer.tiny_model(context=160), "x"))
id_lists = st.lists(st.integers(0, TINY.shape.vocabulary - 1), min_size=1, max_size=150)


@given(id_lists, st.data())
def test_any_way_of_feeding_gives_the_same(ids: list[int], data: st.DataObject):
    cut = data.draw(st.integers(0, len(ids) - 1))
    cache = TINY.new_cache()
    if cut:
        TINY.feed(ids[:cut], cache)
    assert TINY.feed(ids[cut:], cache) == pytest.approx(TINY.feed(ids, TINY.new_cache()), abs=1e-3)


def test_rewinding_forgets():
    cache = TINY.new_cache()
    TINY.feed([1, 2, 3], cache)
    expected = TINY.feed([4], cache)
    TINY.feed([9, 8, 7], cache)
    cache.rewind(3)
    assert cache.length == 3
    assert TINY.feed([4], cache) == pytest.approx(expected, abs=1e-6)


def test_a_cache_is_bounded_by_the_context(models: dict[str, Model]):
    assert TINY.shape.context == 160
    huge = Transformer.from_gguf(gguf.parse(gguf_writer.tiny_model(context=1 << 20), "x"))
    assert huge.shape.context == models["mixed"].transformer.shape.context == CONTEXT_MAX
    cache = TINY.new_cache()
    TINY.feed([1] * 160, cache)
    with pytest.raises(ValueError, match="1 tokens for a cache with room for 0"):
        TINY.feed([1], cache)


def test_resident_bytes_are_four_a_weight(models: dict[str, Model]):
    file, _ = gguf.read(WEIGHTS_DIR / "mixed.gguf")
    weights = sum(tensor.size for tensor in file.tensors.values())
    turns = CONTEXT_MAX * 16 * 8  # complex64, one for each pair of a head's 32 dimensions
    assert models["mixed"].transformer.resident_bytes == 4 * weights + turns


def test_an_overflow_is_an_error_and_no_number():
    metadata, tensors = gguf_writer.tiny_parts()
    for name, tensor in tensors.items():
        if "ffn" in name:
            tensors[name] = np.full(tensor.shape, 3e38, np.float32)
    transformer = Transformer.from_gguf(gguf.parse(gguf_writer.write(metadata, tensors), "loud.gguf"))
    with pytest.raises(UpstreamProtocolError, match=r"loud\.gguf: the forward pass overflowed"):
        transformer.feed([1, 2], transformer.new_cache())
