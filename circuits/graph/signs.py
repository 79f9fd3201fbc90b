"""What the sign of an edge's score says: whether the edge helps or hurts, where the scores have a direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from interp.measurement.ability import LOW_IS_GOOD
from interp.tasks.metrics import METRICS

HELPS, HURTS = "helps", "hurts"


class Signs(NamedTuple):
    """A word for edges of negative and one for those of positive score, and why."""

    negative: str
    positive: str
    why: str

    @property
    def known(self) -> bool:
        """Whether a sign says that an edge helps."""
        return self.negative in (HELPS, HURTS)

    def of(self, score: float) -> str:
        """The word for a score; "" for 0 and for no score."""
        return self.negative if score < 0 else self.positive if score > 0 else ""


def signs(provenance: Mapping[str, Any]) -> Signs:
    """From the provenance of scores, or of a circuit that was chosen from them.

    A score of direction "noising" is the change of the metric when the edge carries the corrupted prompt's value: where
    more of the metric is better, a negative one says that the edge helps. It is the other way round for "denoising",
    and once more for metrics of which less is better (`interp.measurement.ability.LOW_IS_GOOD`).
    """
    own = provenance.get("scores") or provenance
    call = own.get("call") or {}
    mode = {**call.get("defaults", {}), **call.get("passed", {})}.get("mode")
    direction, metric = own.get("direction", mode), own.get("metric", provenance.get("metric"))
    if direction not in ("noising", "denoising") or metric not in METRICS:
        return Signs("negative", "positive", "")
    lost, better_low = direction == "noising", metric in LOW_IS_GOOD
    kept = "corrupted" if lost else "clean"
    name = str(metric).replace("_", " ")
    why = f"A score is the change of {name} when the edge alone carries what it carries on the {kept} prompt"
    why += f"; less {name} is better." if better_low else "."
    return Signs(HELPS, HURTS, why) if lost != better_low else Signs(HURTS, HELPS, why)
