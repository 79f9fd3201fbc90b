"""The attribution graph of a prompt as the page shows it: drawing, nodes, edges, and interventions beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING

from interp.dictionaries import Dictionaries, Dictionary
from interp.dictionaries import load as load_dictionary
from interp.errors import SchemaError
from interp.model import Model
from interp.reports.cells import Cell, cell, number, percent, signed
from interp.reports.charts import graph_figure
from interp.reports.questions import TokenQuestion
from interp.reports.tokens import Piece, pieces, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from circuits.features.edge_check import EdgeCheck
    from circuits.features.graph_files import AttributionGraph

FEATURES, CHECKED, ROWS = 512, 128, 12
"""Features traced back at most, edges checked, rows of a table."""
NEURONS = "neurons"
FOLLOWING = {
    "held": "nothing",
    "norms": "norms’ divisors",
    "patterns": "attention patterns",
    "gates": "MLPs’ gates",
    "model": "all of it: the model",
}


@dataclass(frozen=True)
class GraphNode:
    """A line of the table of nodes."""

    place: str
    token: list[Piece]
    position: int
    value: Cell
    influence: Cell


@dataclass(frozen=True)
class GraphEdge:
    """A line of the table of edges."""

    source: str
    target: str
    weight: Cell
    share: Cell


@dataclass(frozen=True)
class PromptGraph:
    """Everything the template needs of one graph; numbers are written out."""

    logits: list[tuple[list[Piece], str]]
    about: str
    counts: dict[str, int]
    n_edges: int
    kept: str
    replacement: str
    completeness: str
    held: str
    model: str
    features: str
    random: str
    n_checked: int
    nodes: list[GraphNode]
    edges: list[GraphEdge]
    kinds: list[str]
    checks: list[tuple[str, str, list[Cell]]]
    figures: dict[str, go.Figure] = field(default_factory=dict)


Source = Dictionary | Dictionaries | str | PathLike[str] | None


def prompt_graphs(
    model: Model, questions: Sequence[TokenQuestion], dictionary: Source, *, seed: int = 0
) -> list[PromptGraph]:
    """The graph of each prompt; none without a dictionary.

    Raises:
        SchemaError: a dictionary and no prompt to make a graph of.
        ModelLoadError: files that hold none for this model.
        NotApplicable: a model or a dictionary of which there is no graph.
    """
    if dictionary is None:
        return []
    if not questions:
        raise SchemaError("a dictionary, and no prompt whose attribution graph is to be made; give prompts")
    if dictionary == NEURONS:
        from circuits.features.own_neurons import neurons

        dictionary = neurons(model)
    elif not isinstance(dictionary, Dictionary | Dictionaries):
        dictionary = load_dictionary(dictionary, model, measure=False)
    return [prompt_graph(model, question, dictionary, seed=seed) for question in questions]


def prompt_graph(
    model: Model, question: TokenQuestion, dictionary: Dictionary | Dictionaries, *, seed: int = 0
) -> PromptGraph:
    """The pruned graph of a prompt and its check, in the form of the page.

    Raises:
        NotApplicable: a model or a dictionary of which there is no graph.
    """
    from circuits.features.attribute import attribution_graph
    from circuits.features.edge_check import check_edges

    graph = attribution_graph(model, list(question.ids), dictionary, max_features=FEATURES, batch=16)
    check = check_edges(model, graph, dictionary, n=CHECKED, seed=seed) if len(graph.edges.weight) else None
    return _view(graph, check)


def _view(graph: AttributionGraph, check: EdgeCheck | None) -> PromptGraph:
    tokens = [pieces(token) for token in graph.tokens]
    table, edges = graph.node_table(), graph.table().head(ROWS)
    inner = table[table["kind"].isin(["feature", "error", "embedding"])].head(ROWS)
    logits = table[table["kind"] == "logit"].sort_values("value", ascending=False).head(4)
    texts = {node.name: visible(node.label) or str(node.number) for node in graph.nodes if node.kind == "logit"}
    kinds, checks = _checks(check)
    by_kind = {} if check is None else check.ranks.groupby("sources", sort=False)["model"].first().to_dict()
    return PromptGraph(
        logits=[(pieces(row["label"] or str(row["number"])), number(row["value"])) for _, row in logits.iterrows()],
        about=str(graph.provenance["dictionary"]).strip("<>").removeprefix("Dictionary: "),
        counts={kind: int(graph.mask(kind).sum()) for kind in ("feature", "error", "embedding", "logit")},
        n_edges=len(graph.edges.weight),
        kept=percent(graph.kept),
        replacement=number(graph.replacement),
        completeness=number(graph.completeness),
        held=number(math.nan if check is None else check.held),
        model=number(math.nan if check is None else check.model),
        features=number(by_kind.get("feature", math.nan)),
        random=number(math.nan if check is None else check.random),
        n_checked=0 if check is None else int(check.ranks["n"].iloc[0]),
        nodes=[
            GraphNode(
                _place(row["name"], texts),
                tokens[row["position"]],
                row["position"],
                cell(row["value"]),
                cell(row["influence"]),
            )
            for row in inner.to_dict("records")
        ],
        edges=[
            GraphEdge(
                _place(row["source"], texts), _place(row["target"], texts), signed(row["weight"]), cell(row["share"])
            )
            for row in edges.to_dict("records")
        ],
        kinds=kinds,
        checks=checks,
        figures={"graph": graph_figure(graph)},
    )


def _place(name: str, texts: dict[str, str]) -> str:
    """`L2.mlp_in:7@3` of a feature; of others the kind says more than the number, of logits the token."""
    kind, site, number_of, position = name.replace("@", ":").split(":")
    return {
        "feature": f"{site}:{number_of}@{position}",
        "embedding": f"token@{position}",
        "error": f"error {site}@{position}",
    }.get(kind, f"logit {texts.get(name)}")


def _checks(check: EdgeCheck | None) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """Kinds of sources, and for each size and each thing that follows the rank correlations."""
    if check is None:
        return [], []
    kinds = list(dict.fromkeys(check.ranks["sources"]))
    rows = []
    for size, own in check.ranks.groupby("size", sort=False):
        ranks = own.set_index("sources")
        for column, name in FOLLOWING.items():
            if column != "gates" or not (own["gates"] == own["held"]).all():
                values = [cell(float(ranks[column].get(kind, math.nan))) for kind in kinds]
                rows.append((f"{100 * float(str(size)):g} %", name, values))
    return kinds, rows
