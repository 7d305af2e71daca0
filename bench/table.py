"""One figure, the limit it is held against, and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import attrs

HEAD = ("what", "measured", "limit", "of the limit", "target", "")


@attrs.frozen
class Row:
    """`limit` was measured in the same run, on the same machine and under the same load; `limit_is` says what it is.
    `target` is the promise; `met` judges `measured` against it. Without a limit or a target their columns are empty."""

    what: str
    measured: float
    unit: str
    limit: float | None = None
    limit_is: str = ""
    target: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        limit = "" if self.limit is None else f"{figure(self.limit)} {self.unit} ({self.limit_is})"
        ratio = "" if not self.limit else f"{figure(self.measured / self.limit)}×"
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        return self.what, f"{figure(self.measured)} {self.unit}", limit, ratio, self.target, verdict

    def as_json(self) -> dict[str, object]:
        """What a baseline keeps: figures as they are, to four digits."""
        ratio = self.measured / self.limit if self.limit else None
        figures = {"measured": self.measured, "limit": self.limit, "ratio": ratio}
        rounded = {name: None if value is None else float(f"{value:.4g}") for name, value in figures.items()}
        return {"what": self.what, "unit": self.unit, **rounded, "limit_is": self.limit_is, "target": self.target}


def at_most(what: str, measured: float, unit: str, most: float, **limit) -> Row:
    return Row(what, measured, unit, target=f"≤ {figure(most)} {unit}", met=measured <= most, **limit)


def at_least(what: str, measured: float, unit: str, least: float, **limit) -> Row:
    return Row(what, measured, unit, target=f"≥ {figure(least)} {unit}", met=measured >= least, **limit)


def at_most_ratio(what: str, measured: float, unit: str, limit: float, limit_is: str, most: float) -> Row:
    return Row(what, measured, unit, limit, limit_is, f"≤ {figure(most)}×", measured <= most * limit)


def show(rows: Iterable[Row]) -> None:
    cells = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEAD))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def figure(value: float) -> str:
    """Counts as they are; else three digits that mean something."""
    if value == 0 or isinstance(value, int):
        return str(round(value))
    if 1e-4 <= abs(value) < 1e6:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:.{digits}f}"
    return f"{value:.1e}"


def percentile(values: Sequence[float], percent: int) -> float:
    """The nearest value below which `percent` of all lie."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


median = statistics.median
