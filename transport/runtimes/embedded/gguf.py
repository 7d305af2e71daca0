"""GGUF, the model file format of llama.cpp, read without trusting it.

Layout (little-endian): magic, version, tensor count, metadata count; the metadata as (key, type, value); one entry per
tensor (name, dimensions, type, offset); padding; the data. Versions 2 and 3, tensors of type F32 and F16.

Every count and length is checked against the bytes that are left before anything is allocated for it, so that a damaged
or hostile file costs no more than its own size. Whatever is wrong with a file is a `ModelLoadFailed` that names the
file and the fault.
"""

from __future__ import annotations

import math
import reprlib
import struct
from pathlib import Path
from typing import Any, Final, NoReturn

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.domain.errors import ModelLoadFailed

FILE_MAX_BYTES: Final = 64 << 20
STRING_MAX_BYTES: Final = 1 << 20
ARRAY_MAX_ITEMS: Final = 1 << 20
ARRAY_MAX_DEPTH: Final = 2
ENTRIES_MAX: Final = 4096  # metadata keys, and tensors
DIMENSIONS_MAX: Final = 4
ALIGNMENT_DEFAULT: Final = 32

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_ITEM_MIN_BYTES: Final = {_STRING: 8, _ARRAY: 12} | {t: struct.calcsize(f"<{f}") for t, f in _SCALARS.items()}
_TENSOR_DTYPES: Final[dict[int, np.dtype[Any]]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}

Tensor = NDArray[np.floating[Any]]


@attrs.frozen
class GgufFile:
    """A parsed file. `tensors` are read-only views on its bytes, outermost dimension first (GGUF writes it last).

    The typed getters raise `ModelLoadFailed` when a value is absent, of another type or out of range.
    """

    name: str
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def fail(self, fault: str) -> NoReturn:
        raise _failed(self.name, fault)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.metadata.get(key, default)
        if type(value) is not int or not low <= value <= high:
            self.fail(f"{key} must be a whole number from {low} to {high}, not {_shown(value)}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fail(f"{key} must be a number from {low} to {high}, not {_shown(value)}")
        return float(value)

    def text(self, key: str) -> str:
        value = self.metadata.get(key)
        if not isinstance(value, str):
            self.fail(f"{key} must be a string, not {_shown(value)}")
        return value

    def array(self, key: str, item: type) -> list[Any]:
        value = self.metadata.get(key)
        if not isinstance(value, list) or any(type(entry) is not item for entry in value):
            self.fail(f"{key} must be an array of {item.__name__}, not {_shown(value)}")
        return value

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float32 copy of one tensor; it must have this shape and only finite values."""
        stored = self.tensors.get(name)
        if stored is None:
            self.fail(f"tensor {name} is missing")
        if stored.shape != shape:
            self.fail(f"tensor {name} has the shape {list(stored.shape)} where {list(shape)} is expected")
        copy = stored.astype(np.float32)
        if not np.isfinite(copy).all():
            self.fail(f"tensor {name} holds numbers that are not finite")
        return copy


def read(path: Path) -> tuple[GgufFile, bytes]:
    """Read and parse a file of at most FILE_MAX_BYTES; also returns its bytes. Blocks: call it from a worker thread."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise _failed(path.name, f"cannot be read: {error.strerror}") from error
    if len(data) > FILE_MAX_BYTES:
        raise _failed(path.name, f"is larger than {FILE_MAX_BYTES} bytes")
    return parse(data, path.name), data


def parse(data: bytes, name: str) -> GgufFile:
    """Parse the bytes of one file; `name` is for error messages."""
    cursor = _Cursor(data, name)
    if cursor.take(4, "the magic") != 0 or data[:4] != _MAGIC:
        cursor.fail("does not begin with GGUF")
    version = cursor.unsigned("I", "the version")
    if version not in _VERSIONS:
        cursor.fail(f"has version {version}; versions 2 and 3 are supported")
    tensor_count = cursor.unsigned("Q", "the tensor count", ENTRIES_MAX)
    metadata_count = cursor.unsigned("Q", "the metadata count", ENTRIES_MAX)
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = cursor.string("a metadata key")
        if key in metadata:
            cursor.fail(f"has the metadata key {_shown(key)} twice")
        metadata[key] = cursor.value(cursor.unsigned("I", _shown(key)), _shown(key))
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    return GgufFile(name, version, metadata, _tensors(cursor, infos, metadata))


@attrs.frozen
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


def _tensor_info(cursor: _Cursor) -> _TensorInfo:
    name = cursor.string("a tensor name")
    dimensions = cursor.unsigned("I", f"the dimensions of tensor {_shown(name)}", DIMENSIONS_MAX)
    shape = tuple(cursor.unsigned("Q", f"the shape of tensor {_shown(name)}") for _ in range(dimensions))[::-1]
    kind = cursor.unsigned("I", f"the type of tensor {_shown(name)}")
    if kind not in _TENSOR_DTYPES:
        cursor.fail(f"tensor {_shown(name)} has type {kind}; types 0 (F32) and 1 (F16) are supported")
    return _TensorInfo(name, shape, _TENSOR_DTYPES[kind], cursor.unsigned("Q", f"the offset of tensor {_shown(name)}"))


def _tensors(cursor: _Cursor, infos: list[_TensorInfo], metadata: dict[str, Any]) -> dict[str, Tensor]:
    alignment = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
    if type(alignment) is not int or alignment < 8 or alignment % 8:
        cursor.fail(f"general.alignment must be a multiple of 8, not {_shown(alignment)}")
    start = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for info in infos:
        items = math.prod(info.shape)
        begin = start + info.offset
        if begin + items * info.dtype.itemsize > len(cursor.data):
            cursor.fail(f"tensor {_shown(info.name)} reaches beyond the end of the file")
        if info.offset % alignment:
            cursor.fail(f"tensor {_shown(info.name)} does not begin at a multiple of {alignment}")
        if info.name in tensors:
            cursor.fail(f"has the tensor {_shown(info.name)} twice")
        if items == 0:
            cursor.fail(f"tensor {_shown(info.name)} is empty")
        tensors[info.name] = np.frombuffer(cursor.data, info.dtype, items, begin).reshape(info.shape)
    return tensors


@attrs.define(eq=False)
class _Cursor:
    """A position in the file; every step forward is checked against its end."""

    data: bytes
    name: str
    offset: int = 0

    def fail(self, fault: str) -> NoReturn:
        raise _failed(self.name, fault)

    def take(self, size_bytes: int, what: str) -> int:
        """Step over `size_bytes`; the offset where they begin."""
        begin = self.offset
        if size_bytes > len(self.data) - begin:
            self.fail(f"ends inside {what} (at byte {begin} of {len(self.data)})")
        self.offset += size_bytes
        return begin

    def unsigned(self, code: str, what: str, limit: int | None = None) -> int:
        begin = self.take(struct.calcsize(f"<{code}"), what)
        value: int = struct.unpack_from(f"<{code}", self.data, begin)[0]
        if limit is not None and value > limit:
            self.fail(f"gives {value} for {what}; the limit is {limit}")
        return value

    def string(self, what: str) -> str:
        size_bytes = self.unsigned("Q", what, STRING_MAX_BYTES)
        begin = self.take(size_bytes, what)
        try:
            return self.data[begin : begin + size_bytes].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what, depth)
        return self._scalars(kind, 1, what)[0]

    def _array(self, what: str, depth: int) -> list[Any]:
        if depth == ARRAY_MAX_DEPTH:
            self.fail(f"{what} nests arrays more than {ARRAY_MAX_DEPTH} deep")
        kind = self.unsigned("I", what)
        count = self.unsigned("Q", what, ARRAY_MAX_ITEMS)
        if kind in _SCALARS:
            return self._scalars(kind, count, what)
        if count * _ITEM_MIN_BYTES.get(kind, 1) > len(self.data) - self.offset:
            self.fail(f"ends inside {what} (at byte {self.offset} of {len(self.data)})")
        return [self.value(kind, what, depth + 1) for _ in range(count)]

    def _scalars(self, kind: int, count: int, what: str) -> list[Any]:
        code = _SCALARS.get(kind)
        if code is None:
            self.fail(f"{what} has the unknown value type {kind}")
        form = f"<{count}{code}"
        return list(struct.unpack_from(form, self.data, self.take(struct.calcsize(form), what)))


def _shown(value: Any) -> str:
    """A short picture of a value from the file, safe for a message."""
    return reprlib.repr(value)


def _failed(name: str, fault: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"{name}: {fault}", file=name)
