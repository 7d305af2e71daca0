"""A file that is being downloaded: it gets its name only when all of it is there, checked and on the disk.

Everything here blocks and belongs into worker threads, one call at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Final

import attrs

from engine.domain.errors import ModelLoadFailed

HASH_BYTES: Final = 16 << 20  # a step: some 15 ms


@attrs.define(eq=False)
class PartFile:
    """`path` is the name at the end. `identity` tells this content from another version of it: what an earlier download
    left is gone on with only when it is the same.

    All methods raise ModelLoadFailed for what the disk refuses: it says what to do.
    """

    path: Path
    identity: str
    size_bytes: int = attrs.field(default=0, init=False)  # what is there, and in the digest
    _file: BinaryIO | None = attrs.field(default=None, init=False)
    _digest: hashlib._Hash = attrs.field(factory=hashlib.sha256, init=False)

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.{self.identity}.part")

    def open(self, total_bytes: int) -> int:
        """Open what is there, or begin. Returns its size, at most `total_bytes`; `hash_step` has to read it before
        anything is appended. Parts of other versions are removed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for other in self.path.parent.glob(f"{self.path.name}.*.part"):
                if other != self.part:
                    other.unlink()
            fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._file = os.fdopen(fd, "r+b", buffering=0)
            size_bytes = os.fstat(fd).st_size
            if size_bytes > total_bytes:
                self._file.truncate(0)
                size_bytes = 0
            free_bytes = shutil.disk_usage(self.path.parent).free
        except OSError as error:
            raise self._refused(error) from error
        if free_bytes < total_bytes - size_bytes:
            raise ModelLoadFailed(
                f"the disk of {self.path.parent} has {_gib(free_bytes)} free and the rest of the download takes "
                f"{_gib(total_bytes - size_bytes)}; make room, or choose a smaller quantisation",
                free_bytes=free_bytes,
                needed_bytes=total_bytes - size_bytes,
            )
        return size_bytes

    def hash_step(self) -> int:
        """Take the next bytes of an earlier download into the digest; how many, 0 at the end."""
        try:
            data = self._open_file.read(HASH_BYTES)
        except OSError as error:
            raise self._refused(error) from error
        self._digest.update(data)
        self.size_bytes += len(data)
        return len(data)

    def append(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        try:
            while view:
                written = self._open_file.write(view)
                self._digest.update(view[:written])
                self.size_bytes += written
                view = view[written:]
        except OSError as error:
            raise self._refused(error) from error

    def clear(self) -> None:
        """Begin again."""
        try:
            self._open_file.seek(0)
            self._open_file.truncate(0)
        except OSError as error:
            raise self._refused(error) from error
        self.size_bytes, self._digest = 0, hashlib.sha256()

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Give it its name: it is whole or not there, also after a power cut."""
        try:
            os.fsync(self._open_file.fileno())
            self.part.rename(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._refused(error) from error

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def _open_file(self) -> BinaryIO:
        assert self._file is not None, "open comes first"
        return self._file

    def _refused(self, error: OSError) -> ModelLoadFailed:
        return ModelLoadFailed(
            f"cannot write {self.part}: {error.strerror}; what is there is kept, and the next download goes on with it"
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.2f} GiB"
