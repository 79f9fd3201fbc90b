"""What a result says first: for each analysis one sentence, with the heads it labelled and what their removal does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interp.components import is_head
from interp.measurement.ability import Ability
from interp.measurement.classes import labelled_by_class, labelled_rows
from interp.measurement.declaration import PATTERN, Analysis, singular
from interp.measurement.registry import analyses
from interp.results.results import Result

NAMED = 4
"""Components of a finding that are named; how many more there are is said."""
HOW = {"zero": "zeroed", "mean": "set to their mean", "resample": "resampled"}


@dataclass(frozen=True)
class Effect:
    """What becomes of a metric when the labelled components are removed, beside random sets of as many."""

    how: str
    metric: str
    clean: float
    edited: float
    random: float
    n_random: int

    def sentence(self) -> str:
        """`without them second copy accuracy 0.998 → 0.001 (random sets 0.997)`."""
        verb = "without them" if self.how.split()[0] in HOW else f"{self.how}:"
        return f"{verb} {self.metric} {self.clean:.3f} \u2192 {self.edited:.3f} (random sets {self.random:.3f})"


@dataclass(frozen=True)
class Finding:
    """What one analysis found.

    Attributes:
        analysis: its name. title: what it looks for, in the plural. pattern: whether that is only where a head looks.
        classes: class -> labelled components, highest first; one class where the analysis does not tell several apart.
        scored: components it scored.
        effect: of removing them, where that was tried.
        caution: what to know of the task that it is measured on, where the model cannot do it; else "".
    """

    analysis: str
    title: str
    pattern: bool
    classes: dict[str, list[str]]
    scored: int
    effect: Effect | None
    caution: str = ""

    @property
    def names(self) -> list[str]:
        """Labelled components of all classes, each once."""
        return list(dict.fromkeys(name for names in self.classes.values() for name in names))

    @property
    def counted(self) -> str:
        """`4 induction heads`."""
        return count_text(self.names, self.title)

    def sentence(self, *, named: int = NAMED) -> str:
        """`4 induction heads: L3H6, L3H4 ..; without them accuracy 0.998 → 0.001 (random sets 0.997)`."""
        groups = {c: names for c, names in self.classes.items() if names}
        if len(self.classes) > 1 and groups:
            listed = "; ".join(f"{len(names)} {c} ({some(names, named)})" for c, names in groups.items())
        else:
            listed = some(self.names, named)
        told = f"{self.counted}: {listed}" if listed else self.counted
        told = told if self.effect is None else f"{told}; {self.effect.sentence()}"
        return f"{told} ({self.caution})" if self.caution else told


def count_text(names: Sequence[str], title: str) -> str:
    """How many things of a title these are: `3 induction heads`, `1 induction head`, `no induction heads`.

    Of a title that is a method's and not of what it finds: `2 heads (direct attribution by source)`.
    """
    several = title if title[1:2].isupper() else title[:1].lower() + title[1:]  # "MLPs" stays as it is
    n = len(names)
    if n and not re.search(r"s\b", several.split(" (")[0]):
        kind = "head" if all(is_head(name) for name in names) else "component"
        return f"{n} {kind}{'s' * (n > 1)} ({several})"
    return f"{n or 'no'} {singular(title) if n == 1 else several}"


def some(names: Sequence[str], k: int) -> str:
    """The first k names, with `..` where there are more."""
    return ", ".join(names[:k]) + (" .." if len(names) > k else "")


def findings(result: Result) -> list[Finding]:
    """A finding for each analysis that can label: functions before attention patterns, what was found before what not.

    Among those, the one first whose removal does most beyond random sets, as a share of the metric.
    """
    specs, own = analyses(), calls(result)
    present = [specs[name] for name in dict.fromkeys(result.table["analysis"]) if name in specs]
    every = [
        _finding(spec, result, cautions(own.get(spec.name, {}))) for spec in present if _labels(spec, result.table)
    ]
    return sorted(every, key=lambda f: (not f.names, f.pattern, -_weight(f.effect)))


def calls(result: Result) -> dict[str, Mapping[str, Any]]:
    """Provenance of each analysis of a result, of one call or of several joined."""
    parts = [{**result.provenance, **own} for own in result.provenance.get("calls", ({},))]
    return {str(part["call"]["analysis"]): part for part in parts if "call" in part}


def cautions(provenance: Mapping[str, Any]) -> str:
    """`the model does this task at chance: .48 of .50`, of each task that it cannot do; "" where it can do all."""
    found = [Ability.from_dict(own) for own in provenance.get("ability", {}).values()]
    return "; ".join(ability.brief for ability in found if not ability.able)


def _labels(spec: Analysis, table: pd.DataFrame) -> bool:
    """Whether an analysis judged anything here."""
    rows = (table["analysis"] == spec.name) & (table["variant"] == spec.headline)
    return "label" in table and bool(table.loc[rows, "label"].notna().any())


def _finding(spec: Analysis, result: Result, caution: str) -> Finding:
    rows = (result.table["analysis"] == spec.name) & (result.table["variant"] == spec.headline)
    pattern = spec.stage is not None and spec.stage.stage == PATTERN and not spec.stage.kinds
    classes = labelled_by_class(spec, result.table)
    names = set(labelled_rows(spec, result.table)["component"])
    effect = _effect(result.interventions, spec.name, names)
    return Finding(spec.name, spec.title, pattern, classes, int(rows.sum()), effect, caution)


def _effect(interventions: pd.DataFrame, name: str, labelled: set[str]) -> Effect | None:
    """Of the largest set of labelled components that was removed beside random ones: an accuracy before a loss."""
    rows = interventions[(interventions["analysis"] == name) & (interventions["n_random"] > 0)]
    candidates = []
    for row in rows.to_dict("records"):
        how, _, heads = str(row["set_id"]).rpartition(": ")
        if labelled and set(heads.split()) <= labelled and "random" not in how:
            effect = Effect(
                how,
                str(row["metric"]).replace("_", " "),
                float(row["clean"]),
                float(row["edited"]),
                float(row["random_mean"]),
                int(row["n_random"]),
            )
            candidates.append((row["k"], "accuracy" in effect.metric, effect))
    return max(candidates, key=lambda c: c[:2])[2] if candidates else None  # the first of equals: its own metric


def _weight(effect: Effect | None) -> float:
    """Size of an effect beyond that of random sets, as a share of the larger of the values."""
    if effect is None:
        return 0.0
    reach = max(abs(effect.clean), abs(effect.edited), 1e-12)
    return max(0.0, abs(effect.edited - effect.clean) - abs(effect.random - effect.clean)) / reach
