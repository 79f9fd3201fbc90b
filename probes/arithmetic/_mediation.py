"""Which attention, MLP and head carries operands and result: causal mediation between sums with other results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch
from interp.components import head_name, mlp_name
from interp.edits import Edit, Replace
from interp.errors import NotApplicable
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows
from interp.measurement.scoring import LEVEL
from interp.model import Model
from interp.patching.activations import patched_values
from interp.patching.case import Case
from interp.patching.places import Place, places
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import Metric, loss_nats
from probes.arithmetic.mediation_controls import LEAST, controls, retrieval_task
from probes.arithmetic.numbers import default_task

ROLES = ("x", "y", "END")
KINDS = {"attention": "attn_out", "mlp": "mlp_out"}
BATCH = 64
VARIANTS = (
    *("effect", "relative", "head", "operands", "share"),
    *("same_result", "exchanged", "operator", "retrieval", "retrieval_share"),
)
"""In the order of the table."""


def answer_log_prob(logits: Tensor, task: PromptTask) -> Float[Tensor, " batch"]:
    """log P(r), r the right answer."""
    return -loss_nats(logits.float(), task)


def other_log_prob(logits: Tensor, task: PromptTask) -> Float[Tensor, " batch"]:
    """log P(r'), r' the answer to the twin."""
    return -loss_nats(logits.float(), replace(task, answers=task.wrong, wrong=task.answers))


def log_odds(logits: Tensor, task: PromptTask) -> Float[Tensor, " batch"]:
    """log P(r') - log P(r), the answer to the twin against the right one, nats."""
    return other_log_prob(logits, task) - answer_log_prob(logits, task)


@analysis(
    name="arithmetic_mediation",
    family="arithmetic",
    title="Mediators of arithmetic",
    headline="effect",
    unit="component at a role",
    order=64,
    figure=dots,
    subject="zoo:modular-addition",
    columns={"site": "str", "role": "str", "kind": "str", "label": "boolean"},
    presumes=(),
    quick={"n_prompts": 24, "n_draws": 5, "n_random": 2},
    exemptions={
        "planted": "sums, of which planted models have none; tests compare the effects with runs made by hand",
        "scale": "means over prompts, of which few differ much",
    },
    means="With this output of another sum in its place the model answers the other sum: what it writes there carries "
    "operands (at x and y) or the result (at END).",
    misleads="An effect is not additive: later parts have all that comes by them, and two that stand in for each other "
    "show little. The relative form divides by probabilities near zero, where one prompt decides the mean: rank by "
    "`effect`.",
    reference="Stolfo et al. 2023, arXiv 2305.15054; heads as in Zhang et al. 2024, arXiv 2409.01659",
)
def arithmetic_mediation(
    model: Model,
    *,
    task: PromptTask | None = None,
    retrieval: PromptTask | str | None = None,
    n_prompts: int = 64,
    n_draws: int = 5,
    n_random: int = 5,
    seed: int = 0,
) -> Findings:
    """Effect = 1/2 [log P*(r') - log P(r')] + 1/2 [log P(r) - log P*(r)] of one output taken from the twin's run, nats.

    P is the clean run, whose answer is r, P* the same with one component's output at one role as in the run of the
    twin, whose answer is r'. Variants:
      effect    a row for attention and MLP of each layer at each of the roles x, y and END (y is left out where it is
                END); null: the output is that of another prompt's twin, of the same template and length, mean over
                `n_draws`; p Student's prediction interval of these draws, q Benjamini-Hochberg; a label needs q < 0.01
                and an effect above zero;
      relative  the paper's form of the same, 1/2 [(P*(r') - P(r')) / P(r') + (P(r) - P*(r)) / P*(r)], of which `effect`
                is the first order, interval over prompts;
      head      effect of each head's output at END, with null, p and q over heads;
      operands  attention of each head at END on the tokens x and y together, a probability, interval over prompts;
                null: an even spread over the keys that END sees;
      share     a row for each kind and role: its part of the sum of |effect| over all of "effect", interval over
                prompts; null: an even spread;
    and controls, a row for each of "effect", on the prompts that have such a twin:
      same_result  the fall log P(r) - log P*(r), nats, with the output of a prompt of other operands and the same
                   result; null: the same prompts' fall with their own twins, of another result;
      exchanged    the same with x and y exchanged; null alike;
      operator     the same with another operator between them; null alike;
      retrieval    `effect` on a task in which the first number has only to be copied, null as there;
      retrieval_share  `share` of that task.
    What carries the result, and no more, loses nothing by `same_result`; what matters for sums but not for copying a
    number computes. Provenance says under `controls_left_out` which there are none of, and why.

    Interventions: the strongest 1, 2 and 4 of "effect" together, and as many drawn at random of the others (`n_random`
    sets): log P(r), log P(r').

    Args:
        model: any model.
        task: prompts with roles x and y whose right and wrong answers are the results of the two twins; the model's own
            modular addition where it has one (or adds in ids), else `arithmetic`.
        retrieval: prompts with roles x and y whose answer is x, or a task's name; `number_retrieval` if not given.
        n_prompts: of the tasks, where they are not given.
        n_draws: draws of the null, 5 at least.
        n_random: random sets.
        seed: of prompts, draws and bootstrap.

    Raises:
        NotApplicable: a task without the roles x and y, without both answers, or without four prompts of one length.

    Reference: Stolfo et al. 2023 (arXiv 2305.15054).
    """
    task = default_task(model, n=n_prompts, seed=seed) if task is None else task
    _check(task)
    case = Case.of(model, task)
    at = [role for role in ROLES if role == "END" or not torch.equal(case.task.role(role), case.task.end)]
    nodes = _nodes(model, at)
    heads = [
        Node(Site("z", layer, head=h), "END", "head") for layer in model.info.attention_layers
        for h in range(model.info.n_heads)
    ]  # fmt: skip
    rng = np.random.default_rng(seed)
    others = [_other_twins(case.task, rng) for _ in range(n_draws)]
    rows = _effect_rows(case, nodes, others, "effect", seed)
    rows += _effect_rows(case, heads, others, "head", seed)
    table = pd.DataFrame([{k: v for k, v in row.items() if k != "values"} for row in rows])
    for variant in ("effect", "head"):
        mask = table["variant"] == variant
        table.loc[mask, "q"] = stats.benjamini_hochberg(table.loc[mask, "p"].to_numpy(dtype=float))
        table.loc[mask, "label"] = (table.loc[mask, "q"] < LEVEL) & (table.loc[mask, "value"] > 0)
    values = {n: row["values"] for n, row in zip(nodes, rows, strict=False)}
    controlled, left_out = _control_rows(case, nodes, retrieval, n_prompts=n_prompts, n_draws=n_draws, seed=seed)
    more = _operand_rows(case, seed) + _share_rows(values, seed) + controlled
    table = pd.concat([table, pd.DataFrame(more)], ignore_index=True)
    strong = sorted(nodes, key=lambda n: -float(np.mean(values[n])))
    effects = _together(case, strong, n_random=n_random, rng=rng)
    table = table.sort_values("variant", key=lambda v: v.map(VARIANTS.index), kind="stable", ignore_index=True)
    return Findings(table, {**task.provenance(), "controls_left_out": left_out}, effects, case)


def _check(task: PromptTask) -> None:
    """Operands, both answers, and prompts of one template and length whose twins can be exchanged."""
    if not {"x", "y"} <= set(task.roles) or not task.wrong.shape[1]:
        raise NotApplicable(f"{task.name} has no operands x and y, or no wrong answers: ask a task of sums")
    if int(task.groups.cpu().unique(return_counts=True)[1].max()) < LEAST:
        raise NotApplicable(f"{task.name}: {len(task)} prompts, fewer than {LEAST} of one template and length")


@dataclass(frozen=True)
class Node:
    """One output at one role."""

    site: Site
    role: str
    kind: str

    @property
    def name(self) -> str:
        """As a table says it: "M0 at END"."""
        layer = int(self.site.first or 0)
        own = head_name(layer, self.site.head) if self.site.head is not None else mlp_name(layer)
        return f"{f'attention {layer}' if self.kind == 'attention' else own} at {self.role}"


def _nodes(model: Model, roles: Sequence[str]) -> list[Node]:
    info = model.info
    nodes = []
    for kind, site in KINDS.items():
        layers = info.attention_layers if kind == "attention" else range(info.n_layers)
        nodes += [Node(Site(site, layer), role, kind) for layer in layers for role in roles]
    return nodes


def _other_twins(task: PromptTask, rng: np.random.Generator) -> PromptTask:
    """The task with each twin exchanged for that of another prompt, of the same template and length."""
    ids, groups = task.corrupt.ids.clone(), task.groups.cpu().numpy()
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        shift = 1 + int(rng.integers(max(len(members) - 1, 1)))
        order = rng.permutation(members)
        ids[torch.tensor(order)] = task.corrupt.ids[torch.tensor(np.roll(order, shift))]
    return replace(task, corrupt=Batch(ids, task.corrupt.mask))


def _changes(case: Case, nodes: Sequence[Node], task: PromptTask, metric: Metric) -> Float[ndarray, "node prompt"]:
    """What a metric gains when an output of the twin's run is put in place."""
    own, changes = Case.of(case.model, task, metric=metric), np.empty((len(nodes), len(task)))
    for role in dict.fromkeys(n.role for n in nodes):
        members = [i for i, n in enumerate(nodes) if n.role == role]
        at: list[Place] = places(case.model, own.task, role)
        sites = [nodes[i].site for i in members]
        patched, base, _ = patched_values(own, sites, at, mode="noising", batch_size=BATCH)
        changes[members] = patched - base
    return changes


def _effects(case: Case, nodes: Sequence[Node], task: PromptTask) -> Float[ndarray, "node prompt"]:
    """1/2 [log P*(r') - log P(r')] + 1/2 [log P(r) - log P*(r)], half the change of the odds: one pass for both."""
    return 0.5 * _changes(case, nodes, task, log_odds)


def head_effects(case: Case, nodes: Sequence[Node]) -> Float[ndarray, "node prompt"]:
    """Effects on the case's own task."""
    return _effects(case, nodes, case.task)


def _relative(
    case: Case, nodes: Sequence[Node], effects: Float[ndarray, "node prompt"]
) -> Float[ndarray, "node prompt"]:
    """The paper's form, by the effects and the change of log P(r)."""
    right = _changes(case, nodes, case.task, answer_log_prob)
    return 0.5 * np.expm1(2 * effects + right) + 0.5 * np.expm1(-right)


def _effect_rows(
    case: Case, nodes: Sequence[Node], others: Sequence[PromptTask], variant: str, seed: int
) -> list[dict]:
    """Rows of the effects, each with its values per prompt, then those of the relative form."""
    values = _effects(case, nodes, case.task)
    nulls = np.stack([_effects(case, nodes, other).mean(1) for other in others])
    p = stats.p_against_nulls(values.mean(1), nulls)
    rows = []
    for i, node in enumerate(nodes):
        rows.append({**_labels(node), "variant": variant, **_mean(values[i], seed), "unit": "nats"})
        rows[-1] |= {"null": float(nulls[:, i].mean()), "p": float(p[i]), "values": values[i]}
    if variant == "effect":
        for node, x in zip(nodes, _relative(case, nodes, values), strict=True):
            rows.append({**_labels(node), "variant": "relative", **_mean(x, seed), "unit": "ratio"})
    return rows


def _labels(node: Node) -> dict[str, object]:
    own = {"site": str(node.site), "role": node.role, "kind": node.kind, "component": node.name}
    return {**own, "layer": node.site.first, "head": node.site.head}


def _mean(x: Float[ndarray, " prompt"], seed: int) -> dict[str, object]:
    interval = stats.bootstrap_mean(x, seed=seed)
    low, high = min(float(interval.low), float(interval.mean)), max(float(interval.high), float(interval.mean))
    return {"value": float(interval.mean), "se": float(interval.se), "ci_low": low, "ci_high": high, "n": interval.n}


def _control_rows(
    case: Case, nodes: Sequence[Node], retrieval: PromptTask | str | None, *, n_prompts: int, n_draws: int, seed: int
) -> tuple[list[dict[str, object]], dict[str, str]]:
    """Rows of the controls, and why some have none."""
    rows: list[dict[str, object]] = []
    made, missing = controls(case.model, case.task, seed)
    for name, (other, own) in made.items():
        fall, beside = (-_changes(case, nodes, twins, answer_log_prob) for twins in (other, own))
        for i, node in enumerate(nodes):
            null = {"null": float(beside[i].mean()), "unit": "nats"}
            rows.append({**_labels(node), "variant": name, **_mean(fall[i], seed), **null})
    try:
        task = retrieval_task(case.model, retrieval, n=n_prompts, seed=seed)
    except NotApplicable as error:
        return rows, missing | {"retrieval": str(error)}
    copying, rng = Case.of(case.model, task), np.random.default_rng(seed)
    copied = _effect_rows(copying, nodes, [_other_twins(copying.task, rng) for _ in range(n_draws)], "retrieval", seed)
    shares = _share_rows({n: row["values"] for n, row in zip(nodes, copied, strict=True)}, seed)
    rows += [{k: v for k, v in row.items() if k not in ("values", "p")} for row in copied]
    return rows + [{**row, "variant": "retrieval_share"} for row in shares], missing


@torch.no_grad()
def _operand_rows(case: Case, seed: int) -> list[dict[str, object]]:
    """Attention of each head at END on both operands."""
    model, task, index = case.model, case.task, torch.arange(len(case))
    at = torch.zeros_like(task.clean.mask)
    for role in ("x", "y"):
        at[index, task.role(role)] = True
    keys = task.lengths.double().cpu()  # END is the last token, so it sees every one
    null = float((at.sum(1).double().cpu() / keys).mean())

    def mass(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head"]:
        here = pattern[index, :, task.end.to(pattern.device)].float()
        return (here * at.to(pattern.device)[:, None]).sum(-1).double().cpu()

    run = model.run(task.clean, capture={Site("pattern", layer): mass for layer in model.info.attention_layers})
    rows = []
    for layer in model.info.attention_layers:
        values = run.acts[Site("pattern", layer)].numpy()
        for head in range(model.info.n_heads):
            labels = {"component": f"{head_name(layer, head)} at END", "layer": layer, "head": head, "role": "END"}
            own = _mean(values[:, head], seed)
            rows.append({"variant": "operands", **labels, **own, "null": null, "unit": "probability", "kind": "head"})
    return rows


def _share_rows(values: Mapping[Node, Float[ndarray, " prompt"]], seed: int) -> list[dict[str, object]]:
    """Parts of the sum of |mean effect|, by kind and role."""
    nodes, x = list(values), np.stack(list(values.values()))
    rows = []
    for kind in KINDS:
        for role in dict.fromkeys(n.role for n in nodes):
            mask = np.array([n.kind == kind and n.role == role for n in nodes])

            def share(w: Float[ndarray, "draw prompt"], mask: ndarray = mask) -> Float[ndarray, " draw"]:
                sizes = np.abs(w @ x.T)
                return sizes[:, mask].sum(1) / np.maximum(sizes.sum(1), 1e-300)

            value = float(share(np.full((1, x.shape[1]), 1 / x.shape[1]))[0])
            drawn = stats.bootstrap(share, x.shape[1], seed=seed, around=value)
            rows.append(
                {
                    "variant": "share", "kind": kind, "role": role, "component": f"{kind} at {role}", "value": value,
                    "se": float(drawn.se), "ci_low": float(drawn.low), "ci_high": float(drawn.high),
                    "null": float(mask.mean()), "n": x.shape[1], "unit": "fraction",
                }
            )  # fmt: skip
    return rows


@torch.no_grad()
def _together(case: Case, nodes: Sequence[Node], *, n_random: int, rng: np.random.Generator) -> list[dict[str, object]]:
    """Intervention rows of the strongest nodes taken from the twin together, beside random sets of the others."""
    model, task = case.model, case.task
    acts = model.run(task.corrupt, capture=list(dict.fromkeys(n.site for n in nodes))).acts

    def measure(members: Sequence[Node]) -> dict[str, float]:
        edits: list[Edit] = [Replace(n.site, acts[n.site], positions=task.role(n.role)) for n in members]
        logits = model.run(task.clean, edits=edits).logits
        assert logits is not None  # no `stop`
        right, other = answer_log_prob(logits, task), other_log_prob(logits, task)
        return {"log P(r)": float(right.mean()), "log P(r')": float(other.mean())}

    clean, rows = measure(()), []
    for k in (1, 2, 4):
        if k >= len(nodes):
            break
        rest = list(nodes[k:])
        sets = [[rest[i] for i in rng.choice(len(rest), min(k, len(rest)), replace=False)] for _ in range(n_random)]
        edited, controls = measure(nodes[:k]), [measure(s) for s in sets]
        control = "any layers" if sets else "none"
        name = f"twin's: {', '.join(n.name for n in nodes[:k])}"
        rows += intervention_rows(name, k, control, clean, edited, controls)
    return rows
