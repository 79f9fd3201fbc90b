"""Edges of an attribution graph checked by intervention: the source is taken out, the change of the target measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from circuits.features.graph_files import AttributionGraph
from circuits.features.local import HOLDS, LocalModel
from circuits.features.own_neurons import neurons
from circuits.features.sources import Sources, Target
from interp.dictionaries import Dictionaries, Dictionary
from interp.edits import Edit
from interp.errors import SchemaError
from interp.model import Model, with_edits
from interp.results.stats import spearman
from interp.sites import Site

CLASSES = 4
"""Classes of strength, within which targets are exchanged for the control."""
CONDITIONS = {
    "held": HOLDS,
    "patterns": ("norms", "gates"),
    "norms": ("patterns", "gates"),
    "gates": ("patterns", "norms"),
    "model": (),
}
"""Column -> what is held while a source is taken out; "patterns" says that patterns follow, "model" that all do."""
SIZES = (1.0, 0.01)
CONTROL = "random"


@dataclass(frozen=True, eq=False)
class EdgeCheck:
    """What interventions say of edges.

    Attributes:
        table: a row for each edge and size: `source`, `target`, `kind` (of the source), `weight`, `size` (share of the
            source that is taken out), `predicted` = -size x weight, and the change of the target: `held` in the held
            model, `model` in the model itself, where patterns, divisors and gates follow, `patterns`, `norms` and
            `gates` where only these do; `random`: change in the held model at another edge's target of the same
            strength class.
        ranks: Spearman's rank correlation of `predicted` with each, a row for each size and for all sources, features,
            errors and embeddings by themselves; nan where one does not vary, or fewer than three edges are there.
    """

    table: pd.DataFrame
    ranks: pd.DataFrame

    @property
    def held(self) -> float:
        """Rank correlation in the held model, of all sources, at the first size."""
        return float(self.ranks["held"].iloc[0])

    @property
    def model(self) -> float:
        """That in the model itself."""
        return float(self.ranks["model"].iloc[0])

    @property
    def random(self) -> float:
        """That of the control."""
        return float(self.ranks[CONTROL].iloc[0])

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<EdgeCheck: {self.ranks['n'].iloc[0]} edges; rank correlation {self.held:.3f} held, {self.model:.3f} in "
            f"the model, {self.random:.3f} random>"
        )


@with_edits
@torch.no_grad()
def check_edges(
    model: Model,
    graph: AttributionGraph,
    dictionary: Dictionary | Dictionaries | None = None,
    *,
    n: int = 256,
    batch: int = 32,
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> EdgeCheck:
    """Take the source of each of `n` edges out at its token, others held, and measure the target before its activation.

    In the held model that is the direct effect, which the weight predicts; in the model itself (`model`) patterns,
    divisors and gates follow. The control exchanges targets between edges of about the same |weight|. A small part of
    the source (`sizes`) tells apart what bends over the way from what follows at once: a divisor follows the very
    first step, and undoes most of what scales a whole stream, as a token's embedding does in the first layer.

    Args:
        model: of the graph.
        graph: as `attribution_graph` gives it.
        dictionary: the one it was made with.
        n: edges, drawn at random where there are more.
        batch: sources taken out in a pass, one in each row.
        sizes: shares of the source that are taken out, each at a time.
        seed: of the draw and of the control.
        edits: those that the graph was made under.

    Raises:
        SchemaError: a graph without edges, or of another prompt, model, dictionary or other edits; no sizes, or 0.
    """
    if not len(graph.edges.weight):
        raise SchemaError("a graph without edges; prune it less, or keep more edges")
    if not len(sizes) or any(size == 0 for size in sizes):
        raise SchemaError(f"sizes are shares of a source that are taken out, none of them 0; got {list(sizes)}")
    if [repr(edit) for edit in model.edits] != list(graph.provenance.get("edits", ())):
        raise SchemaError(f"the graph was made under the edits {graph.provenance.get('edits', [])}; give the same")
    local = LocalModel(model, neurons(model) if dictionary is None else dictionary, graph.provenance["ids"])
    sources = Sources(local)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(graph.edges.weight))[:n])
    e = graph.edges.where(torch.from_numpy(np.isin(np.arange(len(graph.edges.weight)), chosen)))
    weight = e.weight.double().numpy()
    other = exchanged(np.abs(weight), e.target.numpy(), rng)
    ends = {int(t): None for t in e.target}
    places = dict(zip(ends, sources.targets([graph.nodes[t] for t in ends]), strict=True))
    drawn = _Drawn(sources, sources.numbers(graph.nodes).cpu()[e.source], places, e.target.tolist(), other.tolist())
    frames = []
    for size in sizes:
        columns = {"source": [graph.nodes[i].name for i in e.source], "target": [graph.nodes[i].name for i in e.target]}
        frame = pd.DataFrame({**columns, "kind": [graph.nodes[i].kind for i in e.source], "weight": weight})
        frames.append(frame.assign(size=size, predicted=-size * weight, **drawn.changes(size, batch)))
    table = pd.concat(frames, ignore_index=True)
    table.loc[np.tile(other == e.target.numpy(), len(sizes)), CONTROL] = np.nan
    return EdgeCheck(table, _ranks(table))


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Edges that are checked: the number of each one's source, its target, and another's."""

    sources: Sources
    owners: Tensor
    places: dict[int, Target]
    target: list[int]
    other: list[int]

    def changes(self, size: float, batch: int) -> dict[str, np.ndarray]:
        """Change of the target by column."""
        local = self.sources.local
        columns = {name: np.zeros(len(self.target)) for name in (*CONDITIONS, CONTROL)}
        if not local.gates:
            columns["gates"] = columns["held"]
        for name, held in CONDITIONS.items():
            if name == "gates" and not local.gates:
                continue
            base = local.run(local.clean_values(1), held=held)
            for some in self.owners.unique().split(batch):
                read = local.run(_without(self.sources, some.to(local.model.device), size), held=held)
                for row, number in enumerate(some.tolist()):
                    for i in (self.owners == number).nonzero()[:, 0].tolist():
                        columns[name][i] = _change(read, base, row, self.places[self.target[i]])
                        if name == "held":
                            columns[CONTROL][i] = _change(read, base, row, self.places[self.other[i]])
        return columns


def _ranks(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for size, own in table.groupby("size", sort=False):
        for kind in ("all", *own["kind"].unique()):
            part = own if kind == "all" else own[own["kind"] == kind]
            predicted = part["predicted"].to_numpy()
            ranks = {c: rank_correlation(predicted, part[c].to_numpy()) for c in (*CONDITIONS, CONTROL)}
            rows.append({"size": size, "sources": kind, "n": len(part), **ranks})
    return pd.DataFrame(rows)


def _without(sources: Sources, some: Tensor, size: float) -> dict[Site, Tensor]:
    """What stands at the cuts with a share of one source taken out in each row."""
    local, pos = sources.local, sources.positions(some)
    values = {site: x.clone() for site, x in local.clean_values(len(some)).items()}
    rows = torch.arange(len(some), device=some.device)
    for site, x in values.items():
        x[rows, pos] -= size * sources.vectors(some, site)
    return values


def _change(read: dict[Site, Tensor], base: dict[Site, Tensor], row: int, target: Target) -> float:
    site, pos, r = target
    return float((read[site][row, pos].double() - base[site][0, pos].double()) @ r.double())


def exchanged(size: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another edge's target for each edge, of the same class of strength; its own where the class has no other."""
    out = target.copy()
    for group in np.array_split(np.argsort(size, kind="stable"), CLASSES):
        for i in group:
            others = target[group][target[group] != target[i]]
            if len(others):
                out[i] = rng.choice(others)
    return out


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of the pairs in which b is a number."""
    return spearman(a[np.isfinite(b)], b[np.isfinite(b)], least=3).rho
