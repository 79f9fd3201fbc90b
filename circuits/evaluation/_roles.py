"""Circuits of heads at token roles: everything that other heads, and these heads at other tokens, do is mean-ablated.

The circuits of Wang et al. 2022 (arXiv 2211.00593) are of this kind: name movers at END, S-inhibition heads at END,
duplicate-token heads at S2. MLPs and embeddings stay as they are. With m(C) the metric under the circuit, m(M) that of
the model and m(0) that with every head ablated everywhere, faithfulness is (m(C) - m(0)) / (m(M) - m(0)), each a mean
over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from circuits.evaluation._faithfulness import LEAST, group_keys, reference_groups
from interp.components import head_name, parse_head
from interp.edits import Replace
from interp.errors import SiteError, TaskError, nearest
from interp.model import Model
from interp.patching.case import Case
from interp.results.provenance import recorded
from interp.results.results import Result, frame
from interp.results.stats import bootstrap
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import AnyMetric

HeadRoles = Mapping[str, str | Sequence[str]]
"""Head -> the role, or roles, at whose tokens it belongs to the circuit: {"L9H9": "END", "L5H5": ("S2", "END")}."""
EXTRA = {
    "metric": "str",
    "metric_circuit": "float64",
    "metric_full": "float64",
    "metric_empty": "float64",
    "pairs": "Int64",
}
Means = dict[tuple[str, int], dict[int, Tensor]]
"""Template and length -> layer -> mean z [pos head d_head]."""


@torch.no_grad()
def role_ablation(
    model: Model, task: PromptTask, heads: HeadRoles, *, reference: PromptTask | None = None
) -> list[Replace]:
    """Edits for the task's prompts that leave a head's z at the tokens of its roles and put means elsewhere.

    A mean is over the reference's corrupted prompts of the same template and length, position by position, so that it
    says nothing of what a prompt is about. The edits are for all prompts of the task at once, `task.clean` or
    `task.corrupt`: `model.run(task.clean, edits=role_ablation(model, task, {"L9H9": "END"}))`.

    Args:
        model: any backend.
        task: prompts with roles.
        heads: which heads are kept at which roles; a prompt that lacks the role keeps the head nowhere.
        reference: whose corrupted prompts the means are taken over; the task's own otherwise.

    Raises:
        SiteError: no such head.
        TaskError: no such role, or a reference without a template of the task.
    """
    return _edits(model, task, _kept(model, task, heads), _means(model, task, reference or task))


@recorded
@torch.no_grad()
def role_faithfulness(
    model: Model,
    task: PromptTask,
    heads: HeadRoles | Mapping[str, HeadRoles],
    *,
    metric: AnyMetric | None = None,
    reference: PromptTask | None = None,
    n_random: int = 20,
    batch_size: int = 16,
    seed: int = 0,
) -> Result:
    """(mean m(C) - mean m(0)) / (mean m(M) - mean m(0)) of one circuit of (head, role) pairs, or of several by name.

    Two runs, one more over the reference, and one for each circuit and random circuit. A random circuit has other heads
    of the same layers, drawn at random, at the same roles: `null` is their mean faithfulness, p the share of them that
    is at least as faithful (the circuit counted among them).

    Args:
        model: any backend.
        task: prompts with roles, best held out from those the circuit was found on.
        heads: as in `role_ablation`; or name -> circuit.
        metric: a name in `interp.tasks.metrics` or a function (logits, task) -> [batch]; the task's own otherwise.
        reference: whose corrupted prompts the means are taken over; the task's own otherwise.
        n_random: random circuits; 0 for none.
        batch_size: prompts at a time; changes nothing but memory.
        seed: of random circuits and bootstrap.

    Returns:
        One row per circuit: value (the faithfulness), its 95 % interval over prompts, null and p, `pairs` of head and
        role, and the means `metric_circuit`, `metric_full` and `metric_empty`.

    Raises:
        SiteError: no such head.
        TaskError: no such role, or a metric by which the model is no better than nothing.

    >>> import interp
    >>> from interp.components import head_name
    >>> from interp.tasks import planted_task
    >>> from interp.zoo.planted import factory
    >>> planted = factory.plant([factory.Induction()], seed=1, noise=0.0)
    >>> model = interp.load(planted.model, tokenizer=planted.tokenizer)
    >>> (previous,), (induction,) = (planted.truth.roles[role] for role in ("previous_token", "induction"))
    >>> heads = {head_name(*previous): "B1", head_name(*induction): "END"}
    >>> result = role_faithfulness(model, planted_task(planted, "induction", n=8), heads, n_random=5)
    >>> round(float(result.table["value"][0]), 2)
    1.0
    """
    named: dict[str, HeadRoles] = (
        {name: own for name, own in heads.items() if isinstance(own, Mapping)}
        if heads and all(isinstance(own, Mapping) for own in heads.values())
        else {"circuit": {name: own for name, own in heads.items() if not isinstance(own, Mapping)}}
    )
    case, rng = Case.of(model, task, metric=metric), np.random.default_rng(seed)
    sets = {name: [own, *(_random(model, own, rng) for _ in range(n_random))] for name, own in named.items()}
    flat = [own for several in sets.values() for own in several]
    for own in flat:
        _kept(model, task, own)  # refuses before anything is run
    means = _means(model, case.task, (reference or task).to(case.task.clean.ids.device))
    parts = []
    for part in case.batches(batch_size):
        edits = [_edits(model, part.task, _kept(model, part.task, own), means) for own in [*flat, {}]]
        parts.append(torch.stack([part.value(model.run(part.task.clean, edits=own).logits) for own in edits]))
    values = torch.cat(parts, 1).cpu().double().numpy()
    full, empty = case.clean.cpu().double().numpy(), values[-1]
    if abs(full.mean() - empty.mean()) < LEAST:
        raise TaskError(
            f"{task.name}: {case.metric} is {full.mean():.3g} for the model and the same with every head ablated: "
            "there is nothing to explain"
        )
    rows, size = [], n_random + 1
    for i, (name, several) in enumerate(sets.items()):
        own = values[i * size : (i + 1) * size]
        rows.append({"component": name, **_row(several[0], own, full, empty, seed=seed), "metric": case.metric})
    labels = {"analysis": "role_faithfulness", "variant": "circuit", "unit": "fraction"}
    plain = {name: {head: list(_roles(at)) for head, at in own.items()} for name, own in named.items()}
    own = {"method": "role-faithfulness", "metric": case.metric, "circuits": plain}
    return Result(frame([{**labels, **row} for row in rows], extra=EXTRA), own)


def _row(
    heads: HeadRoles, values: Float[ndarray, "circuit prompt"], full: ndarray, empty: ndarray, *, seed: int
) -> dict[str, object]:
    """Columns of one circuit, the first of `values`, and of random ones, the others."""
    low, high, _ = bootstrap(lambda w: (w @ (values[0] - empty)) / (w @ (full - empty)), len(full), seed=seed)
    faithful = (values.mean(1) - empty.mean()) / (full.mean() - empty.mean())
    random = faithful[1:]
    return {
        "value": faithful[0],
        "ci_low": float(low),
        "ci_high": float(high),
        "null": random.mean() if len(random) else np.nan,
        "p": (1 + int((random >= faithful[0]).sum())) / (1 + len(random)) if len(random) else np.nan,
        "n": len(full),
        "metric_circuit": values[0].mean(),
        "metric_full": full.mean(),
        "metric_empty": empty.mean(),
        "pairs": sum(len(_roles(at)) for at in heads.values()),
    }


def _roles(at: str | Sequence[str]) -> tuple[str, ...]:
    return (at,) if isinstance(at, str) else tuple(at)


def _random(model: Model, heads: HeadRoles, rng: np.random.Generator) -> HeadRoles:
    """Other heads of the same layers at the same roles."""
    by_layer: dict[int, list[str | Sequence[str]]] = {}
    for name, at in heads.items():
        by_layer.setdefault(parse_head(name)[0], []).append(at)
    drawn = {layer: rng.permutation(model.info.n_heads)[: len(at)].tolist() for layer, at in by_layer.items()}
    return {
        head_name(layer, head): at
        for layer, several in by_layer.items()
        for head, at in zip(drawn[layer], several, strict=True)
    }


def _kept(model: Model, task: PromptTask, heads: HeadRoles) -> dict[tuple[int, int], Bool[Tensor, "prompt pos"]]:
    """Tokens at which each head of the circuit stays."""
    columns, kept = torch.arange(task.clean.ids.shape[1]), {}
    every = [head_name(layer, head) for layer in model.info.attention_layers for head in range(model.info.n_heads)]
    for name, at in heads.items():
        if name not in every:
            raise SiteError(f"no head {name!r}: heads go from {every[0]} to {every[-1]}; {nearest(name, every)}")
        roles = torch.stack([task.role(role).cpu() for role in _roles(at)])
        kept[parse_head(name)] = (columns == roles[..., None]).any(0)
    return kept


def _means(model: Model, task: PromptTask, reference: PromptTask) -> Means:
    """Mean z on the reference's corrupted prompts of each template and length, by position."""
    means: Means = {}
    for key, rows in reference_groups(task, reference).items():
        acts = model.run(reference.select(rows).corrupt, capture=["z"]).acts
        means[key] = {layer: acts[Site("z", layer)].mean(0) for layer in model.info.attention_layers}
    return means


def _edits(
    model: Model, task: PromptTask, kept: Mapping[tuple[int, int], Bool[Tensor, "prompt pos"]], means: Means
) -> list[Replace]:
    keys, width = group_keys(task), task.clean.ids.shape[1]
    edits = []
    for layer in model.info.attention_layers:
        rows = [means[key][layer] for key in keys]
        value = torch.stack([torch.nn.functional.pad(x, (0, 0, 0, 0, 0, width - len(x))) for x in rows])
        for head in range(model.info.n_heads):
            mask = kept.get((layer, head))
            positions = None if mask is None else ~mask.to(task.clean.ids.device)
            edits.append(Replace(Site("z", layer, head=head), value[:, :, head], positions=positions))
    return edits
