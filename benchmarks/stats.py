"""Medians and ratios of measured rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.least)} to {short(self.greatest)})"


def ratios(values: Sequence[float], of: Sequence[float]) -> list[float]:
    """Ratios paired by round, because only measurements of one round are comparable."""
    return [value / other for value, other in zip(values, of, strict=True)]


def short(value: float) -> str:
    """Three significant digits, with no-break spaces between thousands."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}")
    return f"{value:.2f}" if abs(value) < 10 and abs(value) >= 0.095 else f"{value:.3g}"
