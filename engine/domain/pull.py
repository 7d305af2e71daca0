"""How far the download of a model is."""

from __future__ import annotations

import attrs


@attrs.frozen
class PullProgress:
    """One step of a download. `status` is a word for people; the counts are null where they are not known (yet);
    `completed_bytes` falls when a download has to begin again."""

    status: str
    completed_bytes: int | None = None
    total_bytes: int | None = None

    @property
    def share(self) -> float | None:
        """What is done, 0–1; null while the size is not known."""
        if self.completed_bytes is None or not self.total_bytes:
            return None
        return min(1.0, self.completed_bytes / self.total_bytes)
