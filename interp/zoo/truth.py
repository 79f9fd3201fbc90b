"""What is known about a planted model because it was written, not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Truth:
    """The mechanism of a planted model: which heads play which role, and the scores that follow."""

    roles: Mapping[str, tuple[tuple[int, int], ...]]
    """Role -> its (layer, head) pairs; every head not named has no part in the mechanism."""
    expected: Mapping[str, float]
    """Role -> score in closed form (mean attention probability on the role's key), for the
    sequences that `docs` describes."""
    docs: str
    """The mechanism in words: what each role reads and writes, and what the other heads do."""
