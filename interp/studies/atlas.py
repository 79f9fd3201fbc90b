"""The head atlas: every head score of a checkpoint in one table, with roles, agreement of detectors, and stability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.components import parse_head
from interp.errors import SchemaError
from interp.measurement.classes import class_variants, labelled_rows
from interp.measurement.declaration import PATTERN, Stage
from interp.measurement.registry import detect, find
from interp.results.results import Result
from interp.results.stats import spearman
from interp.several import several

if TYPE_CHECKING:
    from interp.model import Model
    from interp.plots.theme import Figure

__all__ = ["Atlas", "atlas"]

SHOWN = 20  # rows of roles in a notebook
DOUBTFUL = 0.5  # a label is kept if more than this share of the seeds gives it


@dataclass(frozen=True, eq=False)
class Atlas:
    """Head scores of one checkpoint joined, over one or several seeds (each has prompts of its own).

    Attributes:
        model: its name.
        results: one per seed.
        analyses: those with a score per head, in the order they are shown.
        table: one row per head: `component, layer, head`, then for each analysis its headline score (mean over seeds),
            `NAME_q` (largest over seeds) and `NAME_label` (given by more than half of the seeds; NA where it has none).
    """

    model: str
    results: tuple[Result, ...]
    analyses: tuple[str, ...]
    table: pd.DataFrame

    def roles(self) -> pd.DataFrame:
        """One row per head and role it was labelled with: `component, role, stage, analysis, score, q`.

        Roles and stages are what the analysis declares (`interp.measurement.declaration.Stage`): the survey's words
        where it has them.
        """
        rows = []
        for name in self.analyses:
            stage, kinds = find(name).stage or Stage(name.replace("_", " ")), self._kinds(name)
            for head in self.table.to_dict("records"):
                if head[f"{name}_label"] is True:
                    own = stage.of(kinds.get(head["component"]))
                    where = {k: head[k] for k in ("component", "layer", "head")}
                    score = {"analysis": name, **self._score(name, head, kinds.get(head["component"]))}
                    rows.append({**where, "role": own.role, "stage": own.stage, **score})
        columns = ["component", "layer", "head", "role", "stage", "analysis", "score", "q"]
        return pd.DataFrame(rows, columns=columns).sort_values(["layer", "head"], kind="stable", ignore_index=True)

    def agreement(self, *, k: int = 5) -> pd.DataFrame:
        """Each two detectors: Spearman correlation over heads, and the heads their top k share, with chance k^2 / n.

        Columns `a, b, spearman, overlap, chance`. Agreement is no confirmation where two detectors ask the same thing;
        most heads score near nothing, so the top k says more than the correlation.
        """
        rows = []
        for a, b in combinations(self.analyses, 2):
            both = self.table[[a, b]].dropna()
            top = [set(both[name].nlargest(k).index) for name in (a, b)]
            chance = k * k / len(both) if len(both) else np.nan
            rho = _rank_correlation(both[a], both[b])
            rows.append({"a": a, "b": b, "spearman": rho, "overlap": len(top[0] & top[1]), "chance": chance})
        return pd.DataFrame(rows, columns=["a", "b", "spearman", "overlap", "chance"])

    def stability(self) -> pd.DataFrame:
        """Each detector over seeds: `n_seeds`, mean and lowest `spearman`, heads `labelled` by any, `flips`.

        A flip is a head labelled with some seeds and not with others. With one seed there is nothing to compare.
        """
        rows = []
        for name in self.analyses:
            headlines = [r for r in (_headline(result, name) for result in self.results) if r is not None]
            pairs = [_rank_correlation(a["value"], b["value"]) for a, b in combinations(headlines, 2)]
            labels = pd.DataFrame([r["label"].fillna(False).astype(bool) for r in headlines if "label" in r])
            any_label = labels.any() if len(labels) else pd.Series(dtype=bool)
            rows.append(
                {
                    "analysis": name,
                    "n_seeds": len(headlines),
                    "spearman": float(np.mean(pairs)) if pairs else np.nan,
                    "lowest": min(pairs, default=np.nan),
                    "labelled": int(any_label.sum()),
                    "flips": int((any_label & ~labels.all()).sum()) if len(labels) else 0,
                }
            )
        return pd.DataFrame(rows)

    def summary(self, *, heads: int = 12) -> list[str]:
        """Lines of text: the roles of each head that has one beyond where it looks, those with most roles first."""
        roles = self.roles()
        role_rows = roles[roles["stage"] != PATTERN]
        lines = [
            f"{role_rows['component'].nunique()} of {len(self.table)} heads have a role ({len(self.analyses)} analyses)"
        ]
        by_head = sorted(role_rows.groupby("component", sort=False), key=lambda item: -len(item[1]))
        for component, own in by_head[:heads]:
            lines.append(f"  {component}: {', '.join(dict.fromkeys(own['role']))}")
        if len(by_head) > heads:
            lines.append(f"  and {len(by_head) - heads} more")
        patterns = roles[roles["stage"] == PATTERN].groupby("role", sort=False)["component"].nunique()
        if len(patterns):
            lines.append("attention patterns: " + ", ".join(f"{n} {role}" for role, n in patterns.items()))
        return lines

    def plot(self) -> Figure:
        """The role map: a cell for each head, coloured by its main role; see `interp.plots.role_map`."""
        from interp.plots.roles import HeadRole, role_map
        from interp.plots.titles import titled

        columns = ("layer", "head", "role", "stage", "score")
        rows: Any = self.roles()[list(columns)].itertuples(index=False, name=None)
        roles = [HeadRole(layer, head, role, stage == PATTERN, score) for layer, head, role, stage, score in rows]
        layers = sorted({int(layer) for layer in self.table["layer"]})
        figure = role_map(roles, layers=layers, n_heads=1 + int(self.table["head"].max()))
        seeds = len(self.results)
        of = f"{len(self.analyses)} analyses, {seeds} seed{'s' * (seeds != 1)}"
        return titled(figure, [self.model, "role map", of])

    def __repr__(self) -> str:
        """One line."""
        sizes = f"{len(self.table)} heads, {len(self.analyses)} analyses, {len(self.results)} seeds"
        return f"<Atlas of {self.model}: {sizes}>"

    def _repr_html_(self) -> str:
        """Roles and stability for a notebook."""
        from interp.results.shown import count

        summary, roles = f"<p>{escape(self.summary()[0])}; .plot() is the role map.</p>", self.roles()
        return summary + count(roles.head(SHOWN), len(roles)) + count(self.stability(), len(self.analyses))

    def _score(self, name: str, head: dict[Any, Any], kind: str | None) -> dict[str, float]:
        """Score and q by which a head was labelled: of its kind's own variant where there is one, else the headline."""
        spec, tables = find(name), [result.table for result in self.results]
        if kind not in class_variants(spec, tables[0])[1:]:
            return {"score": head[name], "q": head[f"{name}_q"]}
        rows = pd.concat([t[(t["analysis"] == name) & (t["variant"] == kind)] for t in tables])
        rows = rows[rows["component"] == head["component"]]
        return {"score": float(rows["value"].mean()), "q": float(rows["q"].max())}

    def _kinds(self, name: str) -> dict[str, str]:
        """What the analysis itself calls each head, where it does."""
        rows = _headline(self.results[0], name)
        if rows is None or "role" not in rows:
            return {}
        return {str(c): str(role) for c, role in rows["role"].items() if not pd.isna(role)}


def atlas(
    source: Model | Result | Sequence[Result], *, seeds: Sequence[int] = (0,), analyses: Sequence[str] | None = None
) -> Atlas:
    """Join all head scores of a model, detected anew with each seed, or of results that are there already.

    A score per head of each analysis' headline variant, so scores of unlike units stand side by side: compare ranks and
    labels, not sizes. A role is a label; it says where a head was found, not that it does nothing else.

    Args:
        source: a model, or what `interp.detect` returned for it, with one seed or (a sequence) several.
        seeds: of the runs, if a model is given; more than one show what is stable over prompts.
        analyses: names; every head analysis that suits if not given.

    Raises:
        SchemaError: no results, results of several models, or none with a score per head.

    >>> import interp
    >>> found = interp.atlas(interp.load("zoo:planted-induction"), analyses=["previous_token", "sink"])
    >>> found.roles()["component"].tolist()
    ['L0H4']
    """
    analyses = several(analyses, "names of analyses") or None
    if isinstance(source, Result):
        results: tuple[Result, ...] = (source,)
    elif isinstance(source, Sequence):
        results = tuple(source)
    else:
        results = tuple(detect(source, analyses, seed=seed) for seed in seeds)
    if not results:
        raise SchemaError("an atlas of nothing: no results, or no seeds")
    models = {str(r.provenance.get("model", {}).get("name")) for r in results}
    if len(models) > 1:
        raise SchemaError(f"an atlas is of one model; these results are of {', '.join(sorted(models))}")
    all_names = dict.fromkeys(name for r in results for name in r.table["analysis"].unique())
    names = [n for n in all_names if analyses is None or n in analyses]
    columns = {name: rows for name in names if (rows := _columns(results, name)) is not None}
    if not columns:
        raise SchemaError("no analysis of these results has a score per head")
    table = pd.concat(list(columns.values()), axis=1)
    layers, heads = zip(*map(parse_head, table.index), strict=True)
    table.insert(0, "layer", layers)
    table.insert(1, "head", heads)
    table = table.sort_values(["layer", "head"]).rename_axis("component").reset_index()
    return Atlas(models.pop(), results, tuple(columns), table)


def _columns(results: Sequence[Result], name: str) -> pd.DataFrame | None:
    """Score, q and label of one analysis over seeds, by component."""
    headlines = [r for r in (_headline(result, name) for result in results) if r is not None]
    if not headlines:
        return None
    value = pd.concat([r["value"] for r in headlines], axis=1).mean(axis=1)
    q = pd.concat([r["q"] for r in headlines], axis=1).max(axis=1)
    columns = {name: value, f"{name}_q": q}
    if all("label" in r for r in headlines) and not all(r["label"].isna().all() for r in headlines):
        share = pd.concat([r["label"].fillna(False).astype(float) for r in headlines], axis=1).mean(axis=1)
        columns[f"{name}_label"] = (share > DOUBTFUL).astype("object")
    else:
        columns[f"{name}_label"] = pd.Series(pd.NA, index=value.index, dtype="object")
    return pd.DataFrame(columns)


def _headline(result: Result, name: str) -> pd.DataFrame | None:
    """Rows of the analysis' headline variant by component; None where it is not of heads, or not there."""
    spec = find(name)
    rows = result.table[(result.table["analysis"] == name) & (result.table["variant"] == spec.headline)]
    rows = rows[rows["head"].notna() & rows["layer"].notna()]
    if not len(rows) or not spec.unit.startswith("head") or rows["component"].duplicated().any():
        return None
    rows = rows.set_index("component")
    if len(class_variants(spec, result.table)) > 1:  # labelled is who is of any of its classes
        rows["label"] = rows.index.isin(labelled_rows(spec, result.table)["component"])
    return rows


def _rank_correlation(a: pd.Series, b: pd.Series) -> float:
    """Spearman's, over the components of both."""
    return spearman(*a.align(b, join="inner"), least=3).rho
