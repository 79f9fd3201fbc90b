"""Numbers as a table shows them, with the raw number that the table is sorted by."""

from __future__ import annotations

import math
from typing import NamedTuple

DASH = "–"


class Cell(NamedTuple):
    """One number of a table: what is read, and what is sorted by (empty where there is no number)."""

    text: str
    raw: str = ""

    def __str__(self) -> str:
        return self.text

    def __bool__(self) -> bool:
        """Whether there is a number."""
        return self.text != DASH


def number(value: float, digits: int = 3) -> str:
    """A number as a table shows it: what is too small for the digits says so, what does not apply is a dash."""
    if math.isnan(value):
        return DASH
    least = 10.0**-digits
    if value != 0 and abs(value) < least / 2:
        return f"<{least:g}" if value > 0 else f">\u2212{least:g}"
    text = f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.4g}"
    return text.replace("-", "\u2212")


def cell(value: float | int, digits: int = 3, *, text: str | None = None) -> Cell:
    """A number as a cell, written as `text` where that is given."""
    content = number(value, digits) if text is None else text
    return Cell(content, "" if math.isnan(value) else f"{value:.7g}")


def signed(value: float, digits: int = 3) -> Cell:
    """What something added, with its sign: +1.234; next to nothing is ≈0."""
    text = number(value, digits)
    if text[0] in "<>":
        return cell(value, text="≈0")
    return cell(value, text=f"+{text}" if value > 0 else text)


def interval(low: float, high: float, digits: int = 3) -> Cell:
    """An interval, sorted by its lower end."""
    return cell(low, text=DASH if math.isnan(low) else f"{number(low, digits)} to {number(high, digits)}")


def percent(share: float) -> str:
    """A share in percent, on one line."""
    return f"{100 * share:.1f} %"


def small(value: float) -> str:
    """A small number by its size, as errors are told: 3e-05; an exact zero is 0."""
    return "0" if value == 0 else f"{value:.0e}"
