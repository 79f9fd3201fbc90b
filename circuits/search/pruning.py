"""Circuits found by learning a mask: every edge (or node) gets a gate, and gates close as far as the output allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from circuits.evaluation._faithfulness import portions
from circuits.graph.graph import Graph
from circuits.methods import circuit_method
from circuits.search.hard_concrete import Gates, Schedule, Target, train
from circuits.wiring.case import Case
from circuits.wiring.edges import run_edges
from circuits.wiring.ports import ports
from interp.components import LOGITS
from interp.edits import Edit
from interp.errors import SchemaError
from interp.model import Model
from interp.results.provenance import recorded
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

Progress = Callable[[int, float, float], None]


@recorded
def edge_pruning(
    model: Model,
    task: PromptTask,
    *,
    edges: int | None = None,
    sparsity: float = 0.95,
    node_sparsity: float | None = None,
    ablation: str = "resample",
    batch_size: int = 16,
    schedule: Schedule | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    edits: Sequence[Edit] = (),
) -> Graph:
    """The edges whose gates stay open when KL(model || circuit) + Lagrangian of the share of edges closed is minimised.

    Every slot reads sum_u z_uw a_u + (1 - z_uw) a'_u with a' the corrupted run's activations and z a hard-concrete gate
    per edge, drawn anew in every step. `scores` is P(z > 0) at the end. The circuit is what is left when the edges with
    the smallest are closed until the target is met: exactly so many edges, dangling ones among them (`.pruned()` drops
    those; they do next to nothing).

    Against ACDC no order decides and edges can replace one another while training; but the result depends on the seed
    (circuits of two seeds may share half their edges), and an edge that is open is not thereby needed: where edges are
    redundant one of them is kept by chance. Cost: a forward and a backward pass over `batch_size` prompts a step.

    Bhaskar et al. 2024 (arXiv 2406.16778): 3000 steps of 32 prompts with the target warmed up over 2500 for GPT-2;
    fewer here, and a lower rate (see `Schedule`).

    Args:
        model: any backend with its weights at hand.
        task: prompts.
        edges: of the circuit; or
        sparsity: share of the model's edges to close.
        node_sparsity: also give every sender but `embed` a gate that multiplies its edges', and close this share.
        ablation: what closed edges carry: see `circuits.evaluation._faithfulness`.
        batch_size: prompts of a step; drawn by the seed where the task has more.
        schedule: steps and rates.
        seed: of gates and batches.
        progress: told the step, the loss and the share closed.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: a number of edges the model does not have, or a share outside 0 to 1.
    """
    steps = schedule or Schedule()
    training = _Training(Case.of(model, task, metric="kl"), ablation, batch_size, seed)
    layout = training.case.layout
    n_edges = round((1 - sparsity) * layout.n_edges) if edges is None else edges
    _check_share(sparsity, "sparsity")
    if not 0 < n_edges <= layout.n_edges:
        raise SchemaError(f"{n_edges} edges asked for; expected 1 to {layout.n_edges}")
    rows, columns = map(torch.from_numpy, np.nonzero(layout.exists))
    gates = Gates(layout.n_edges, training.device)
    parts = [(gates, Target(1 - n_edges / layout.n_edges, training.device))]
    if node_sparsity is not None:
        _check_share(node_sparsity, "node_sparsity")
        parts.append((Gates(len(layout.senders) - 1, training.device), Target(node_sparsity, training.device)))

    def step(drawn: list[Tensor], number: int) -> Tensor:
        z = drawn[0]
        if len(drawn) > 1:
            z = z * torch.cat([z.new_ones(1), drawn[1]])[rows]
        return training.loss(z.new_zeros(layout.exists.shape).index_put((rows, columns), z), number)

    n_steps, loss = train(parts, step, steps, seed=seed, progress=progress)
    gate_logits = [part.a.detach().double() for part, _ in parts]
    score = gate_logits[0]
    if len(gate_logits) > 1:  # an edge is as open as the narrower of its two gates
        score = torch.minimum(score, torch.cat([score.new_full((1,), torch.inf), gate_logits[1]])[rows])
    scores = np.full(layout.exists.shape, np.nan)
    scores[rows, columns] = _probability(score)
    own = {"method": "edge-pruning", "sparsity": 1 - n_edges / layout.n_edges, "node_sparsity": node_sparsity}
    return training.hard_circuit(
        scores, n_edges, {**own, "steps": n_steps, "loss": loss, "closed": _closed_share(gates)}
    )


@recorded
def subnetwork_probing(
    model: Model,
    task: PromptTask,
    *,
    nodes: int,
    ablation: str = "resample",
    batch_size: int = 16,
    schedule: Schedule | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    edits: Sequence[Edit] = (),
) -> Graph:
    """The nodes whose gates stay open, `edge_pruning` with one gate per head and MLP; all edges between them.

    `scores` of an edge is the smaller P(z > 0) of its two ends. Cao et al. 2021 (arXiv 2104.03514) penalise the number
    of open gates by a weight; here that number is given and the Lagrangian finds the weight.

    Args:
        model: any backend with its weights at hand.
        task: prompts.
        nodes: heads and MLPs of the circuit.
        ablation: what closed nodes write.
        batch_size: prompts of a step.
        schedule: steps and rates.
        seed: of gates and batches.
        progress: told the step, the loss and the share closed.
        edits: changes under which the model runs, as in an `editing` context; provenance lists them.

    Raises:
        SchemaError: a number of nodes the model does not have.
    """
    training = _Training(Case.of(model, task, metric="kl"), ablation, batch_size, seed)
    layout = training.case.layout
    n = len(layout.senders) - 1
    if not 0 < nodes <= n:
        raise SchemaError(f"{nodes} nodes asked for; expected 1 to {n}")
    gates = Gates(n, training.device)
    exists = torch.from_numpy(layout.exists).to(training.device)

    def step(drawn: list[Tensor], number: int) -> Tensor:
        return training.loss(torch.cat([drawn[0].new_ones(1), drawn[0]])[:, None] * exists, number)

    parts = [(gates, Target(1 - nodes / n, training.device))]
    n_steps, loss = train(parts, step, schedule or Schedule(), seed=seed, progress=progress)
    open_probability = np.concatenate([[1.0], _probability(gates.a.detach().double())])
    reads = np.where(layout.owners, open_probability[None, :], 0.0).max(1)
    reads[[name == LOGITS for name, _ in layout.slots]] = 1.0
    scores = np.where(layout.exists, np.minimum(open_probability[:, None], reads[None, :]), np.nan)
    cutoff = np.sort(open_probability[1:])[::-1][nodes - 1]
    inside = np.where(layout.exists, scores, -1.0) >= cutoff
    own = {
        "method": "subnetwork-probing",
        "nodes": nodes,
        "steps": n_steps,
        "loss": loss,
        "closed": _closed_share(gates),
    }
    graph = training.hard_circuit(scores, layout.n_edges, own)
    return replace(graph, mask=inside, provenance={**graph.provenance, "kl": training.mean_kl(inside)})


class _Training:
    """Prompts of each step, and what closed gates let through."""

    def __init__(self, case: Case, ablation: str, batch_size: int, seed: int) -> None:
        whole, other = next(portions(case, ablation, batch_size=len(case)))
        self.case, self.other = whole, other
        self.size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: list[int] = []
        self.device = whole.task.clean.ids.device

    def loss(self, edge_mask: Float[Tensor, "sender slot"], number: int) -> Float[Tensor, ""]:
        """KL of a step's prompts, each seen once before any is seen again."""
        del number
        part, other = self._step_batch()
        run = run_edges(part.model, part.ports, part.task.clean, edge_mask, other, gradients=True)
        return part.value(run.logits).mean()

    @torch.no_grad()
    def mean_kl(self, mask: ndarray) -> float:
        """KL of a mask, mean over all prompts."""
        edge_mask = torch.from_numpy(mask).to(self.device)
        run = run_edges(self.case.model, self.case.ports, self.case.task.clean, edge_mask, self.other)
        return float(self.case.value(run.logits).double().mean())

    def hard_circuit(self, scores: Float[ndarray, "sender slot"], n: int, own: dict[str, Any]) -> Graph:
        """The n most open edges, with the KL that they alone have."""
        own = {**own, "metric": "kl"}
        graph = Graph.full(self.case.layout, scores, provenance=own).top(n, absolute=False, prune=False)
        return replace(graph, provenance={**own, "kl": self.mean_kl(graph.mask)})

    def _step_batch(self) -> tuple[Case, Tensor]:
        if len(self.case) <= self.size:
            return self.case, self.other
        if len(self.rows) < self.size:
            self.rows += torch.randperm(len(self.case), generator=self.generator).tolist()
        rows, self.rows = self.rows[: self.size], self.rows[self.size :]
        part = self.case.select(rows)
        width = part.task.clean.ids.shape[1]
        other = self.other[:, rows] if self.other.shape[1] > 1 else self.other
        return part, other[:, :, :width]


def _probability(a: Float[Tensor, " gate"]) -> Float[ndarray, " gate"]:
    gates = Gates(0, a.device)
    gates.a = a
    return gates.open.cpu().numpy()


def _closed_share(gates: Gates) -> float:
    return float(1 - gates.open.detach().mean())


def _check_share(share: float, name: str) -> None:
    if not 0 <= share < 1:
        raise SchemaError(f"{name} {share}; expected a share of at least 0 and below 1")


@circuit_method(
    name="edge-pruning",
    title="A learned mask over edges",
    gives="circuit",
    costs="a forward and a backward pass a step, 400 steps",
    means="So likely is the edge's gate open after training; those most likely open are the circuit.",
    misleads="Another seed may share half of the edges; of redundant edges one is kept by chance.",
    reference="Bhaskar et al. 2024, arXiv 2406.16778",
    order=90,
    signed=False,
    routine=False,
    quick={"steps": 3},
)
def _edge_pruning(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    edges: int | None = None,
    sparsity: float = 0.95,
    node_sparsity: float | None = None,
    ablation: str = "resample",
    steps: int = Schedule.steps,
) -> Graph:
    """`edges` of them, or what `sparsity` leaves; masks are trained on KL whatever the metric."""
    del metric
    return edge_pruning(
        model,
        task,
        edges=edges,
        sparsity=sparsity,
        node_sparsity=node_sparsity,
        ablation=ablation,
        batch_size=batch_size,
        schedule=Schedule(steps),
        seed=seed,
    )


@circuit_method(
    name="subnetwork-probing",
    title="A learned mask over components",
    gives="circuit",
    costs="a forward and a backward pass a step, 400 steps",
    means="So likely are the gates of both of the edge's ends open after training.",
    misleads="As edge pruning; and all edges between open components count, needed or not.",
    reference="Cao et al. 2021, arXiv 2104.03514",
    order=95,
    signed=False,
    routine=False,
    quick={"steps": 3},
)
def _subnetwork_probing(
    model: Model,
    task: PromptTask,
    *,
    metric: AnyMetric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    nodes: int | None = None,
    ablation: str = "resample",
    steps: int = Schedule.steps,
) -> Graph:
    """`nodes` heads and MLPs, a quarter of them unless said, and all edges between; trained on KL."""
    del metric
    n = nodes or max(1, (len(ports(model).layout.senders) - 1) // 4)
    return subnetwork_probing(
        model, task, nodes=n, ablation=ablation, batch_size=batch_size, schedule=Schedule(steps), seed=seed
    )
