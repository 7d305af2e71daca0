"""What the head of a GGUF file says about its model, read without the weights: a few megabytes of any file.

Files of any size and of every weight type are read, llama.cpp understands more of them than we do. Lists (such as
vocabularies) are stepped over and never built. Every count and length is bounded before it is used.
"""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import attrs

from engine.domain.errors import ModelLoadFailed

HEAD_MAX_BYTES: Final = 256 << 20
STRING_MAX_BYTES: Final = 16 << 20  # chat templates are long
ENTRIES_MAX: Final = 1 << 16  # metadata keys, and tensors
ITEMS_MAX: Final = 1 << 24  # of a list
DIMENSIONS_MAX: Final = 4
DEPTH_MAX: Final = 2
VERSIONS: Final = (2, 3)

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_QUANTIZATIONS: Final = {  # llama.cpp's numbers for how most of a file's weights are stored
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip

_POOLINGS: Final = {1: "mean", 2: "cls", 3: "last"}  # llama.cpp's numbers; 0: none
_RANK: Final = 4

Value = int | float | bool | str | None  # None: a list, not kept


@attrs.frozen
class Pooling:
    """How the vectors of a text's tokens become one: `mean`, `cls` (that of the first token) or `last`. `at_once`: only
    where the whole text is computed in one go."""

    name: str
    at_once: bool


LAST: Final = Pooling("last", at_once=False)


@attrs.frozen
class GgufHeader:
    """`parameters` counts the weights. None: the file does not say. `modified_at` is RFC 3339. `embedding_length` is
    the width of the model, and of its vectors. `pooling` is what the file says of it: then the model was made for
    vectors. `causal`: a token sees those before it and no others; without that nothing can be generated."""

    size_bytes: int
    modified_at: str
    architecture: str
    parameters: int
    context_length: int | None
    quantization: str | None
    chat_template: bool
    embedding_length: int | None = None
    pooling: str | None = None
    causal: bool = True

    @property
    def answers(self) -> bool:
        """Whether it is a model for text; else it is one for vectors."""
        return self.causal and self.pooling is None

    @property
    def pools(self) -> Pooling:
        """As the file says. Where it says nothing: the last token, which has seen all others; where each token sees
        all, their mean."""
        name = self.pooling or ("last" if self.causal else "mean")
        return LAST if self.causal and name == "last" else Pooling(name, at_once=True)


def read_header(path: Path) -> GgufHeader:
    """Blocks: call it from a worker thread (0.2 s for a large vocabulary). Raises ModelLoadFailed with file and fault
    when the file cannot be read or is no GGUF."""
    try:
        with path.open("rb") as file:
            stat = path.stat()
            reader = _Reader(file, path.name, min(stat.st_size, HEAD_MAX_BYTES))
            metadata, parameters = reader.metadata_and_parameters()
    except OSError as error:
        raise ModelLoadFailed(f"{path.name} cannot be read: {error.strerror}", file=path.name) from error
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        reader.fail("does not say which architecture its model has")
    if architecture == "clip":
        reader.fail("holds an image encoder, no language model")
    pooling, file_type = metadata.get(f"{architecture}.pooling_type"), metadata.get("general.file_type")
    if type(pooling) is int and pooling == _RANK:
        reader.fail("holds a model that ranks texts: it gives neither answers nor vectors")
    return GgufHeader(
        size_bytes=stat.st_size,
        modified_at=datetime.fromtimestamp(int(stat.st_mtime), UTC).isoformat().replace("+00:00", "Z"),
        architecture=architecture[:80],
        parameters=parameters,
        context_length=_size(metadata.get(f"{architecture}.context_length")),
        quantization=_QUANTIZATIONS.get(file_type) if type(file_type) is int else None,
        chat_template="tokenizer.chat_template" in metadata,
        embedding_length=_size(metadata.get(f"{architecture}.embedding_length")),
        pooling=_POOLINGS.get(pooling) if type(pooling) is int else None,
        causal=metadata.get(f"{architecture}.attention.causal") is not False,
    )


def _size(value: Value) -> int | None:
    return value if type(value) is int and value > 0 else None


@attrs.define(eq=False)
class _Reader:
    """Reads forward; `limit` is the size of what may be read."""

    file: BinaryIO
    name: str
    limit: int

    def fail(self, fault: str) -> NoReturn:
        raise ModelLoadFailed(f"{self.name} {fault}", file=self.name)

    def metadata_and_parameters(self) -> tuple[dict[str, Value], int]:
        if self._bytes(4) != b"GGUF":
            self.fail("is no GGUF file: it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            self.fail(f"is a GGUF file of version {version}; versions 2 and 3 are supported")
        tensors, entries = self._number("Q", ENTRIES_MAX), self._number("Q", ENTRIES_MAX)
        metadata = {self._string(): self._value(self._number("I")) for _ in range(entries)}
        return metadata, sum(self._tensor_size() for _ in range(tensors))

    def _tensor_size(self) -> int:
        self._skip(self._number("Q", STRING_MAX_BYTES))
        size = math.prod(self._number("Q", 1 << 40) for _ in range(self._number("I", DIMENSIONS_MAX)))
        self._skip(12)  # type and offset
        return size

    def _value(self, kind: int, depth: int = 0) -> Value:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            if depth == DEPTH_MAX:
                self.fail(f"nests lists more than {DEPTH_MAX} deep")
            self._skip_array(depth + 1)
            return None
        value: int | float | bool = struct.unpack(f"<{self._code(kind)}", self._bytes(self._width(kind)))[0]
        return value

    def _skip_array(self, depth: int) -> None:
        kind, count = self._number("I"), self._number("Q", ITEMS_MAX)
        if kind not in (_STRING, _ARRAY):
            self._skip(count * self._width(kind))
            return
        for _ in range(count):
            if kind == _STRING:
                self._skip(self._number("Q", STRING_MAX_BYTES))
            else:
                self._value(kind, depth)

    def _code(self, kind: int) -> str:
        code = _SCALARS.get(kind)
        if code is None:
            self.fail(f"is damaged: there is no value type {kind}")
        return code

    def _width(self, kind: int) -> int:
        return struct.calcsize(f"<{self._code(kind)}")

    def _string(self) -> str:
        return self._bytes(self._number("Q", STRING_MAX_BYTES)).decode("utf-8", "replace")

    def _number(self, code: str, limit: int | None = None) -> int:
        value: int = struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]
        if limit is not None and value > limit:
            self.fail(f"is damaged: it counts {value} where {limit} is the most")
        return value

    def _bytes(self, size: int) -> bytes:
        data = self.file.read(size) if self.file.tell() + size <= self.limit else b""
        if len(data) < size:
            self.fail("is damaged: it ends inside its header")
        return data

    def _skip(self, size: int) -> None:
        if self.file.tell() + size > self.limit:
            self.fail("is damaged: it ends inside its header")
        self.file.seek(size, 1)
