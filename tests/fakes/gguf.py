"""Model files whose every next-token probability is known beforehand, for any engine that reads GGUF.

They are plain llama-architecture models with a byte-level vocabulary. The embedding is one-hot, attention and
feed-forward are zero, the norm undoes its own scale, and column `t` of the output matrix holds log P(next | t): what a
correct engine computes is the table itself. No weight is trained and nothing is random.

- `bigram`: the transitions of a small text, smoothed. Every probability is a ratio of two counts.
- `scripted`: says given texts piece by piece, each piece at a chosen probability. The last character of the prompt
  picks the text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from tests.transport.embedded import gguf_writer
from transport.runtimes.embedded.gguf import read

END: Final = "<|end|>"
END_ID: Final = 0
HEAD_DIMENSIONS: Final = 32  # the width must be a multiple
EMBEDDED: Final = 1000.0  # a one in the embedding: so large that the norm's epsilon vanishes beside it
PIECE_MIN_BYTES: Final = 3
SMOOTHING: Final = 0.02  # share of a uniform distribution in every row of the bigram table
CONTROL, NORMAL = 3, 1  # token types

# The message itself and nothing around it, so that its last token decides what comes next. The second line is how a
# template tells llama.cpp that the model thinks between these marks.
TEMPLATE: Final = (
    "{% for m in messages %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% endfor %}"
)
TEXT: Final = """
the engine streams tokens to the screen . the screen shows every token as it comes . a local model runs on this machine
. no token leaves this machine . energy is measured from the tokens and not from a guess . when a token is certain the
energy is high . when a token is not certain the energy is low . a stalled stream has no energy . the user can stop a
stream and the engine stops the model . nothing is shown that was not measured . a slow model does not slow the frame .
"""


def byte_characters() -> list[str]:
    """The character that stands for each byte 0–255 in a byte-level vocabulary."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(0x100)]


_CHARACTERS: Final = byte_characters()


def spelled(data: bytes) -> str:
    """How a vocabulary writes these bytes."""
    return "".join(_CHARACTERS[byte] for byte in data)


@attrs.frozen(eq=False)
class KnownModel:
    """A vocabulary (`written[id]` is what a token writes; nothing for the end) and its table: `logprobs[i, j]` is
    log P(j | i), float64, each row a distribution."""

    written: tuple[bytes, ...]
    merges: tuple[str, ...]
    logprobs: NDArray[np.float64]

    def id_of(self, text: str) -> int:
        return self.written.index(text.encode())

    def best(self, after: int, count: int) -> list[tuple[bytes, float]]:
        """The most probable tokens, by probability."""
        order = np.argsort(-self.logprobs[after], kind="stable")[:count]
        return [(self.written[n], float(self.logprobs[after, n])) for n in order]

    def save(self, path: Path, *, context: int = 4096, feed_forward: int = HEAD_DIMENSIONS) -> Path:
        """Write the file: float32 for the table, float16 for what is zero. A wide `feed_forward` computes nothing and
        takes long: 4096 make about a millisecond of a token."""
        count = len(self.written)
        width = -(-count // HEAD_DIMENSIONS) * HEAD_DIMENSIONS
        tokens = [END, *map(spelled, self.written[1:])]
        metadata = {
            "general.architecture": ("str", "llama"),
            "general.name": ("str", "a table of probabilities"),
            "llama.context_length": ("u32", context),
            "llama.embedding_length": ("u32", width),
            "llama.block_count": ("u32", 1),
            "llama.feed_forward_length": ("u32", feed_forward),
            "llama.attention.head_count": ("u32", width // HEAD_DIMENSIONS),
            "llama.attention.head_count_kv": ("u32", 1),
            "llama.rope.dimension_count": ("u32", HEAD_DIMENSIONS),
            "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-6),
            "llama.vocab_size": ("u32", count),
            "tokenizer.ggml.model": ("str", "gpt2"),
            "tokenizer.ggml.pre": ("str", "gpt-2"),
            "tokenizer.ggml.tokens": ("[str]", tokens),
            "tokenizer.ggml.token_type": ("[i32]", [CONTROL] + [NORMAL] * (count - 1)),
            "tokenizer.ggml.merges": ("[str]", list(self.merges)),
            "tokenizer.ggml.bos_token_id": ("u32", END_ID),
            "tokenizer.ggml.eos_token_id": ("u32", END_ID),
            "tokenizer.ggml.add_bos_token": ("bool", True),
            "tokenizer.chat_template": ("str", TEMPLATE),
        }
        path.write_bytes(gguf_writer.write(metadata, self._tensors(width, feed_forward)))
        return path

    def _tensors(self, width: int, feed_forward: int) -> dict[str, np.ndarray]:
        count = len(self.written)
        embedding, output = np.zeros((2, count, width), np.float32)
        np.fill_diagonal(embedding, EMBEDDED)
        output[:, :count] = self.logprobs.T
        tensors = {
            "token_embd.weight": embedding,
            "output_norm.weight": np.full(width, width**-0.5, np.float32),
            "output.weight": output,
            "blk.0.attn_norm.weight": np.ones(width, np.float32),
            "blk.0.ffn_norm.weight": np.ones(width, np.float32),
        }
        for name, *shape in (
            ("attn_q", width, width),
            ("attn_k", HEAD_DIMENSIONS, width),
            ("attn_v", HEAD_DIMENSIONS, width),
            ("attn_output", width, width),
            ("ffn_gate", feed_forward, width),
            ("ffn_up", feed_forward, width),
            ("ffn_down", width, feed_forward),
        ):
            tensors[f"blk.0.{name}.weight"] = np.zeros(shape, np.float16)
        return tensors


def widened(source: Path, path: Path) -> Path:
    """A copy of a model file with the same weights in float32. An engine may round what it multiplies with a float16
    matrix to float16 as well; with this it has no reason to."""
    file, _ = read(source)
    metadata = {key: (_kind_of(value), value) for key, value in file.metadata.items()}
    tensors = {name: tensor.astype(np.float32) for name, tensor in file.tensors.items()}
    path.write_bytes(gguf_writer.write(metadata, tensors))
    return path


def _kind_of(value: Any) -> str:
    if isinstance(value, list):
        return "[str]" if isinstance(value[0], str) else "[i32]"
    return {str: "str", bool: "bool", int: "u32", float: "f32"}[type(value)]


# ── exact bigram ──


def bigram(text: str = TEXT) -> KnownModel:
    """Words of a text and which follows which. A word is one token, " the" with its blank. The text never ends by
    itself; tokens that are no words, the end too, are as likely as the smoothing makes them."""
    words = [f" {word}" for word in text.split()]
    vocabulary, merges = _with_words(sorted(set(words)))
    index = {data: n for n, data in enumerate(vocabulary)}
    ids = [index[word.encode()] for word in words]
    counts = Counter(pairwise(ids))
    seen = Counter(ids[:-1])
    likely = sorted(set(ids))
    table = np.full((len(vocabulary), len(vocabulary)), SMOOTHING / len(vocabulary))
    for row in range(len(vocabulary)):
        if not seen[row]:
            table[row, likely] += (1 - SMOOTHING) / len(likely)
    for (first, second), n in counts.items():
        table[first, second] += (1 - SMOOTHING) * n / seen[first]
    return KnownModel(tuple(vocabulary), tuple(merges), np.log(table))


def _with_words(words: Iterable[str]) -> tuple[list[bytes], list[str]]:
    """The end, all bytes, and each word with the beginnings it grows through; and the merges for that."""
    vocabulary = [b"", *(bytes([byte]) for byte in range(0x100))]
    known, merges = set(vocabulary), []
    for word in words:
        data = word.encode()
        for size in range(2, len(data) + 1):
            if data[:size] not in known:
                known.add(data[:size])
                vocabulary.append(data[:size])
                merges.append(f"{spelled(data[: size - 1])} {spelled(data[size - 1 : size])}")
    return vocabulary, merges


# ── scripts ──


@attrs.frozen
class Script:
    """A text cut into the pieces it is said in. Each piece comes at `probability`; what is left is spread evenly. After
    the last one the text ends, or begins again when it is `endless`."""

    pieces: tuple[bytes, ...]
    probability: float = 0.999
    endless: bool = False

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode()


def scripted(scripts: Mapping[str, Script]) -> KnownModel:
    """A model that says the script of the prompt's last character (an ASCII one); any other prompt has the first.

    A piece stands for one place in one script: it must not appear twice. Cut texts with `pieces_of`."""
    vocabulary = [b"", *(bytes([byte]) for byte in range(0x100))]
    places = [piece for script in scripts.values() for piece in script.pieces]
    ids = {piece: len(vocabulary) + n for n, piece in enumerate(places)}
    if len(ids) < len(places) or ids.keys() & set(vocabulary):
        raise ValueError("a piece of a script appears twice, or is a single byte")
    vocabulary += places
    first = next(iter(scripts.values()))
    following = dict.fromkeys(range(len(vocabulary)), (ids[first.pieces[0]], first.probability))
    for trigger, script in scripts.items():
        following[1 + ord(trigger)] = ids[script.pieces[0]], script.probability
        after = ids[script.pieces[0]] if script.endless else END_ID
        for piece, then in pairwise((*script.pieces, None)):
            assert piece is not None
            following[ids[piece]] = (after if then is None else ids[then]), script.probability
    table = np.empty((len(vocabulary), len(vocabulary)))
    for row, (column, probability) in following.items():
        table[row] = (1 - probability) / (len(vocabulary) - 1)
        table[row, column] = probability
    return KnownModel(tuple(vocabulary), (), np.log(table))


def pieces_of(*texts: str, whole: Sequence[str] = (), taken: Iterable[bytes] = ()) -> list[tuple[bytes, ...]]:
    """Each text cut into pieces of a few bytes, all different and none of those `taken`, wherever they fall: also
    inside a character. `whole` parts of a text are pieces of their own."""
    used = set(taken)
    return [_cut(text, used, [part.encode() for part in whole]) for text in texts]


def _cut(text: str, taken: set[bytes], whole: Sequence[bytes]) -> tuple[bytes, ...]:
    pattern = b"|".join(map(re.escape, whole))
    found = re.split(b"(" + pattern + b")", text.encode()) if whole else [text.encode()]
    pieces: list[bytes] = []
    for part in filter(None, found):
        if part in whole:
            pieces.append(_taken(part, taken))
            continue
        begin = 0
        for end in range(1, len(part) + 1):
            piece = part[begin:end]
            rest = len(part) - end
            if len(piece) >= PIECE_MIN_BYTES and piece not in taken and (rest == 0 or rest >= PIECE_MIN_BYTES):
                pieces.append(_taken(piece, taken))
                begin = end
        if begin < len(part):
            raise ValueError(f"the end of {text!r} cannot be cut into pieces of its own")
    return tuple(pieces)


def _taken(piece: bytes, taken: set[bytes]) -> bytes:
    if piece in taken:
        raise ValueError(f"{piece!r} stands twice")
    taken.add(piece)
    return piece
