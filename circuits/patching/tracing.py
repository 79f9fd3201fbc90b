"""The iterative procedure of the IOI paper: from the logits down, from the heads that speak to those they listen to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from circuits.methods import circuit_method
from circuits.patching.paths import GROUPS, Policy, path_of, path_values, policy_of, sets_of, slot_of
from circuits.wiring.case import Case
from interp.components import LOGITS, Port, kind
from interp.edits import Edit
from interp.errors import SchemaError, nearest
from interp.model import Model
from interp.patching.effect_table import Mode, checked, effects
from interp.results.provenance import recorded
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

SHARE = 0.1
"""Of the metric's change, that a sender must have where `circuit` traces."""
QKV: tuple[Port, ...] = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Traced:
    """What was found from the logits down.

    Attributes:
        graph: edges from each sender that was kept to each receiver that it was kept for.
        stages: one row per stage, port and sender, kept or not.
    """

    graph: Graph
    stages: pd.DataFrame

    @property
    def provenance(self) -> Mapping[str, Any]:
        """That of the graph."""
        return self.graph.provenance

    def with_provenance(self, provenance: Mapping[str, Any]) -> Traced:
        """The same with another provenance."""
        return replace(self, graph=replace(self.graph, provenance=provenance))

    def table(self) -> pd.DataFrame:
        """The senders that were kept, stage by stage, the strongest first."""
        kept_rows = self.stages[self.stages["kept"]]
        order = kept_rows.assign(size=-kept_rows["value"].abs()).sort_values(["stage", "port", "size"], kind="stable")
        return order.drop(columns=["kept", "size"]).reset_index(drop=True)


@dataclass(frozen=True)
class Rule:
    """How many senders of a sweep go on: the k largest, or all beyond a bound on the effect's magnitude."""

    k: int | None = None
    sd: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        """One of them."""
        bounds = [name for name in ("k", "sd", "share") if getattr(self, name) is not None]
        if len(bounds) != 1:
            raise SchemaError(f"one of k, sd and share says who is kept; got {', '.join(bounds) or 'none'}")
        if getattr(self, bounds[0]) <= 0:
            raise SchemaError(f"{bounds[0]}={getattr(self, bounds[0])}: expected more than 0")

    def keeps(self, values: np.ndarray, normalised: np.ndarray) -> np.ndarray:
        """Which effects are kept."""
        if self.k is not None:
            mask = np.zeros(len(values), dtype=bool)
            mask[np.argsort(-np.abs(values), kind="stable")[: self.k]] = True
            return mask & (values != 0)
        if self.sd is not None:
            return np.abs(values - values.mean()) > self.sd * values.std()
        return np.abs(normalised) >= (self.share or 0.0)


@recorded
def trace(
    model: Model,
    task: PromptTask,
    *,
    k: int | None = None,
    sd: float | None = None,
    share: float | None = None,
    depth: int = 3,
    ports: Sequence[str] = ("q", "k", "v"),
    senders: str = "heads",
    mlps: str = "live",
    mode: str = "noising",
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Traced:
    """Heads with a direct effect on the logits, then on their q, k and v, and so on: Wang et al. 2022's procedure.

    Stage 0 patches every path sender -> logits. Those that are kept become the receivers of stage 1, all of them
    together at one port: sender -> {their q}, then k, then v; and so on from what that keeps. The effect is always that
    on the metric, through whatever lies above the receivers. A head is taken up as a receiver once for every port.

    What misleads: a bound of this kind is no test; a sweep over hundreds of heads always has a largest. Sets of
    receivers hide who of them hears: look at single ones with `path_patching`. Senders whose effects cancel, or that
    others stand in for, are not found.

    Args:
        model: as in `path_patching`, like `task`, `mlps`, `mode`, `metric`, `batch_size` and `seed`.
        task: prompts and their corrupted twins.
        k: keep the k largest of each sweep; one of `k`, `sd` and `share` has to be given.
        sd: keep what lies so many standard deviations of the sweep from its mean.
        share: keep |normalised| of at least so much, of the metric's change from one run to the other.
        depth: stages after the first.
        ports: which ports of heads are followed.
        senders: "heads", or "nodes" with MLPs and the embedding; MLPs are followed at their input.
        mlps: "live" as published, or "frozen".
        mode: "noising" or "denoising".
        metric: a name in `interp.tasks.metrics` or a function (logits, task) -> [batch]; the task's own otherwise.
        batch_size: rows of a forward.
        seed: of the bootstrap.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: not one of `k`, `sd` and `share`, or an unknown group, port, policy or mode.
    """
    rule, case = Rule(k, sd, share), Case.of(model, task, metric=metric)
    if senders not in GROUPS:
        raise SchemaError(f"unknown senders {senders!r}; {nearest(senders, GROUPS)}")
    unknown = [port for port in ports if port not in QKV]
    if unknown:
        raise SchemaError(f"unknown port {unknown[0]!r}; {nearest(unknown[0], QKV)}")
    trace_ports: list[Port] = [port for port in QKV if port in ports]
    how = _How(senders, policy_of(mlps), checked(mode), batch_size, seed)
    sweeps: list[_Sweep] = []
    queue: list[tuple[Port, list[int]]] = [("in", [case.layout.slot_index[LOGITS, "in"]])]
    for stage in range(depth + 1):
        stage_sweeps = [_run_sweep(case, stage, port, slots, rule, how) for port, slots in queue]
        sweeps += stage_sweeps
        visited_slots = {slot for sweep in sweeps for slot in sweep.slots}
        next_slots = _next(
            case.layout, [name for sweep in stage_sweeps for name in sweep.kept_senders], trace_ports, visited_slots
        )
        queue = [(port, slots) for port, slots in next_slots if sets_of(case.layout, senders, slots)]
    return Traced(
        _graph(case.layout, sweeps, case.metric), pd.concat([sweep.table for sweep in sweeps], ignore_index=True)
    )


@dataclass(frozen=True)
class _How:
    """Options of every sweep."""

    senders: str
    policy: Policy
    mode: Mode
    batch_size: int
    seed: int


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Every sender to one set of slots."""

    slots: list[int]
    table: pd.DataFrame

    @property
    def kept_senders(self) -> list[str]:
        """Senders that go on."""
        return self.table.loc[self.table["kept"], "sender"].tolist()


def _run_sweep(case: Case, stage: int, port: Port, slots: list[int], rule: Rule, how: _How) -> _Sweep:
    layout = case.layout
    names = [own[0] for own in sets_of(layout, how.senders, slots)]
    paths = [path_of(layout, [name], slots) for name in names]
    rows = effects(
        *path_values(case, paths, policy=how.policy, mode=how.mode, batch_size=how.batch_size), seed=how.seed
    )
    table = pd.DataFrame(rows, columns=["value", "ci_low", "ci_high", "normalised", "n"])
    table.insert(0, "sender", names)
    table.insert(0, "receivers", ", ".join(layout.slots[slot][0] for slot in slots))
    table.insert(0, "port", port)
    table.insert(0, "stage", stage)
    table["kept"] = rule.keeps(table["value"].to_numpy(), table["normalised"].to_numpy())
    return _Sweep(slots, table)


def _next(
    layout: Layout, senders: Sequence[str], ports: Sequence[Port], visited_slots: set[int]
) -> list[tuple[Port, list[int]]]:
    """Slots of what was kept, port by port; those that something can be heard at, and no slot twice."""
    slots_by_port: dict[Port, dict[int, None]] = {}
    for name in senders:
        own = {"mlp": ("in",), "head": tuple(ports)}.get(kind(name), ())
        for port in own:
            slot = slot_of(layout, name, port)
            if slot not in visited_slots:
                slots_by_port.setdefault(port, {})[slot] = None
    return [(port, sorted(slots)) for port, slots in slots_by_port.items()]


def _graph(layout: Layout, sweeps: Sequence[_Sweep], metric: str) -> Graph:
    """Edges by what their sender's sweep gave; a sender is joined to those receivers that can hear it."""
    scores, mask = np.full(layout.exists.shape, np.nan), np.zeros(layout.exists.shape, dtype=bool)
    for sweep in sweeps:
        for name, value, is_kept in zip(*(sweep.table[c] for c in ("sender", "value", "kept")), strict=True):
            row = layout.sender_index[name]
            receivers = [slot for slot in sweep.slots if layout.exists[row, slot]]
            scores[row, receivers] = value
            mask[row, receivers] |= is_kept
    return Graph(layout, scores, mask, {"method": "tracing", "metric": metric})


@circuit_method(
    name="tracing",
    title="Path patching from the logits down",
    gives="circuit",
    costs="a share of a forward pass for every sender and each of three stages",
    means="This sender, heard at all receivers of its stage together, changes the metric by so much.",
    misleads="A bound is no test: a sweep always has a largest; senders whose effects cancel are not found.",
    reference="Wang et al. 2022, arXiv 2211.00593",
    order=70,
)
def _trace(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 64,
    seed: int = 0,
    k: int | None = None,
    sd: float | None = None,
    share: float | None = None,
    depth: int = 3,
    senders: str = "nodes",
    mlps: str = "frozen",
    mode: str = "noising",
) -> Graph:
    """The edges found by `trace`, direct ones of all components unless said; a tenth of the metric's change is kept."""
    outcome = trace(
        model,
        task,
        k=k,
        sd=sd,
        share=SHARE if k is None and sd is None and share is None else share,
        depth=depth,
        senders=senders,
        mlps=mlps,
        mode=mode,
        metric=metric,
        batch_size=batch_size,
        seed=seed,
    )
    return outcome.graph
