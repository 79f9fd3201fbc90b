"""What the rows of the attention benchmark say: ratios between providers, and which targets are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from harness import Row

CASE = "attention_cpu"  # time and memory of every provider
GROWTH = "attention_cpu_growth"  # memory of ours alone, at more lengths
JUDGED = 4096  # length at which the targets are set
DOUBLING = 2.2  # largest growth of memory over a doubling of length that still counts as linear


@dataclass(frozen=True)
class Target:
    """A promise with what was measured: at most (or at least) `bound`. `measured` is None without the rows for it."""

    text: str
    measured: float | None
    bound: float
    at_most: bool

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.text}: not measured"
        met = self.measured <= self.bound if self.at_most else self.measured >= self.bound
        off = 100 * abs(self.measured / self.bound - 1)
        state = "met" if met else f"MISSED by {off:.0f} %"
        return f"{self.text}: {self.measured:.3g}, {state}"


def targets(rows: Sequence[Row]) -> list[Target]:
    """The targets of this benchmark, judged on the rows of one run."""
    at = {r.provider: r for r in rows if r.case == CASE and r.size == JUDGED}
    own = at.get("ours")
    found = [
        Target(f"ours at {JUDGED}, time over plain <= 1.05", own.ratio_to_plain if own else None, 1.05, True),
        Target(f"time of transformer_lens over ours at {JUDGED} >= 3", speedup(at, "transformer_lens"), 3, False),
        Target(f"time of output_attentions over ours at {JUDGED} >= 3", speedup(at, "output_attentions"), 3, False),
        Target(
            f"extra memory of transformer_lens over ours at {JUDGED} >= 20", saving(at, "transformer_lens"), 20, False
        ),
        Target(
            f"extra memory of output_attentions over ours at {JUDGED} >= 20", saving(at, "output_attentions"), 20, False
        ),
    ]
    memory = {r.size: r.peak_extra_mb for r in rows if r.case == GROWTH and r.peak_extra_mb}
    half, whole = memory.get(JUDGED // 2), memory.get(JUDGED)
    growth = None if half is None or whole is None else whole / half
    text = f"extra memory of ours from {JUDGED // 2} to {JUDGED} grows <= {DOUBLING} times (linear 2, quadratic 4)"
    return [*found, Target(text, growth, DOUBLING, True)]


def speedup(at: dict[str, Row], peer: str) -> float | None:
    """Median time of a peer over ours."""
    return _over(at, peer, "median_s")


def saving(at: dict[str, Row], peer: str) -> float | None:
    """Extra peak memory of a peer over ours."""
    return _over(at, peer, "peak_extra_mb")


def _over(at: dict[str, Row], peer: str, column: str) -> float | None:
    theirs, own = (getattr(at[name], column) if name in at else None for name in (peer, "ours"))
    return theirs / own if theirs and own else None


def ratios(rows: Sequence[Row], size: int) -> str:
    """One line: how ours compares at a length."""
    at = {r.provider: r for r in rows if r.case == CASE and r.size == size}
    parts = {
        "ours/plain": at["ours"].ratio_to_plain if "ours" in at else None,
        "ours+logits/plain": at["ours+logits"].ratio_to_plain if "ours+logits" in at else None,
        "transformer_lens/ours": speedup(at, "transformer_lens"),
        "output_attentions/ours": speedup(at, "output_attentions"),
        "memory transformer_lens/ours": saving(at, "transformer_lens"),
        "memory output_attentions/ours": saving(at, "output_attentions"),
    }
    return "; ".join(f"{name} {value:.2f}" for name, value in parts.items() if value is not None)


def growth(rows: Sequence[Row]) -> str | None:
    """Straight line through the extra memory of ours against length, and how far off it the points are."""
    points = sorted((r.size, r.peak_extra_mb) for r in rows if r.case == GROWTH and r.peak_extra_mb is not None)
    if len(points) < 3:
        return None
    n, mb = np.array(points, dtype=float).T
    slope, start = np.polyfit(n, mb, 1)
    off = np.abs(mb - (slope * n + start)).max() / mb.max()
    return (
        f"{1e3 * slope:.1f} kB per token + {start:.0f} MB; "
        f"largest distance from that line {100 * off:.1f} % of the memory at {points[-1][0]}"
    )
