"""What becomes of facts, and of other skills, when what recalls them is set to its mean, beside random others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from interp.components import mlp_name
from interp.edits import Ablate, Edit
from interp.measurement.answers import right_share
from interp.measurement.neuron_effects import (
    Neuron,
    activations,
    matched_neurons,
    neuron_edits,
    neuron_names,
    written_norms,
)
from interp.measurement.removal import intervention_rows, removal_rows
from interp.model import Model
from interp.patching.case import Case
from interp.sites import Site
from probes.mlp._skill_table import Skill, places, skill_measures
from probes.mlp.mechanisms import Found

Row = dict[str, object]


def recall_removal(
    case: Case,
    found: Found,
    tried: pd.DataFrame,
    skills: Mapping[str, Skill] | Sequence[str],
    *,
    n_random: int,
    n_prompts: int,
    seed: int,
) -> list[Row]:
    """Intervention rows: labelled heads, labelled MLPs, and labelled neurons or else those tried that help.

    Each is set to its mean over the clean prompts' tokens, beside up to `n_random` sets of others: heads of the same
    layers or of any, MLPs of other layers, neurons of the same layers and sizes.
    """
    model, clean = case.model, case.task.clean
    outcome = Outcome(case, skill_measures(model, skills, n_prompts=n_prompts, seed=seed))
    rows: list[Row] = []
    if found.heads:
        mean = model.mean(clean)
        rows += removal_rows(
            outcome.measure,
            found.heads,
            found.other_heads,
            mean=mean,
            n_random=n_random,
            n_random_dose=n_random,
            how=("mean",),
            seed=seed,
        )
    if found.mlps:
        rows += _mlp_rows(outcome, found, n_random=n_random, seed=seed)
    if len(tried):
        labelled = tried[tried["label"].fillna(False).astype(bool)]
        chosen = labelled if len(labelled) else tried[tried["value"] > 0]
        rows += _neuron_rows(outcome, places(list(chosen["component"])), n_random, seed) if len(chosen) else []
    return rows


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is measured under edits: the facts of a case, and other skills by name."""

    case: Case
    skills: Mapping[str, Callable[[Model], float]]

    @torch.no_grad()
    def measure(self, edits: Sequence[Edit] = ()) -> dict[str, float]:
        """Metrics by name; accuracy of the facts is the share whose right attribute is above all others."""
        case, task = self.case, self.case.task
        logits = case.model.run(task.clean, edits=edits).logits
        assert logits is not None  # the run has no `stop`
        facts = {"facts: accuracy": right_share(logits, task), "facts: logit": float(case.value(logits).mean())}
        if not self.skills:
            return facts
        with case.model.editing(edits):
            return facts | {f"{name}: accuracy": skill(case.model) for name, skill in self.skills.items()}


def _mlp_rows(outcome: Outcome, found: Found, *, n_random: int, seed: int) -> list[Row]:
    """All labelled MLPs at their means, beside as many of the others."""
    model, clean = outcome.case.model, outcome.case.task.clean
    mean = model.mean(clean, "mlp_out")

    def edits(layers: Sequence[int]) -> list[Edit]:
        return [Ablate(Site("mlp_out", layer), "mean", mean) for layer in layers]

    sets = list(combinations(sorted(found.other_mlps), len(found.mlps)))
    order = np.random.default_rng(seed).permutation(len(sets))[:n_random]
    controls = [outcome.measure(edits(sets[i])) for i in order.tolist()]
    edited = outcome.measure(edits(found.mlps))
    name = f"mean: {' '.join(map(mlp_name, found.mlps))}"
    control = "other MLPs" if controls else "none"
    return intervention_rows(name, len(found.mlps), control, outcome.measure(), edited, controls)


def _neuron_rows(outcome: Outcome, chosen: Sequence[Neuron], n_random: int, seed: int) -> list[Row]:
    """Neurons at their means, beside others of the same layers and sizes."""
    model, batch = outcome.case.model, outcome.case.task.clean
    acts = activations(model, batch, sorted({layer for layer, _ in chosen}))
    values = {layer: a[batch.mask.to(a.device)].mean(0) for layer, a in acts.items()}
    names, norms = written_norms(model, acts, batch.mask)
    sets = matched_neurons(chosen, names, norms, n_sets=n_random, seed=seed) if n_random else []
    clean, edited, *controls = (
        outcome.measure(edits) for edits in ([], *(neuron_edits(model, own, values) for own in (list(chosen), *sets)))
    )
    control = "same layers and norm" if controls else "none"
    return intervention_rows(f"mean: {' '.join(neuron_names(chosen))}", len(chosen), control, clean, edited, controls)
