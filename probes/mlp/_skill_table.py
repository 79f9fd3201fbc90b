"""What removing some neurons does to every skill of a model, beside random neurons of the same layers and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from interp import tasks as task_makers
from interp.batch import Prompts
from interp.components import Component
from interp.edits import Edit
from interp.errors import SiteError
from interp.measurement.answers import right_share
from interp.measurement.neuron_effects import Neuron, activations, matched_neurons, neuron_edits, written_norms
from interp.model import Model
from interp.tasks import PromptTask

Skill = str | PromptTask | Callable[[Model], float]
"""A task's name, a task, or a function that measures the model as it stands."""


def places(neurons: Sequence[str | Neuron]) -> list[Neuron]:
    """(layer, neuron) of names such as "M3N17", or of such pairs as they are.

    Raises:
        SiteError: another name.
    """
    found = []
    for neuron in neurons:
        if not isinstance(neuron, str):
            found.append((int(neuron[0]), int(neuron[1])))
            continue
        part = Component.parse(neuron)
        if part.kind != "neuron" or part.layer is None or part.index is None:
            raise SiteError(f"{neuron!r} is no neuron; neurons are written like M3N17")
        found.append((part.layer, part.index))
    return found


@torch.no_grad()
def skill_table(
    model: Model,
    neurons: Sequence[str | Neuron],
    skills: Mapping[str, Skill] | Sequence[str],
    reference: Prompts,
    *,
    how: str = "mean",
    n_random: int = 5,
    n_prompts: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Each skill with the neurons removed, and with matched random neurons removed: what they serve beside their task.

    Neurons are set to zero or to their mean over the tokens of `reference`. Random sets have for each neuron one of its
    layer, not among them, of the ten next in root mean square of |a_i W_out[i]| there.

    Args:
        model: any loaded model.
        neurons: names such as "M3N17", or (layer, neuron).
        skills: name -> a task, its name, or a function of the model that gives a number and is called under the edits;
            or names of tasks. A task is measured by its accuracy: the share of prompts whose right answer's logit is
            above every wrong one's, or the largest of all unless every prompt has one.
        reference: prompts whose tokens give means and sizes.
        how: "mean" or "zero".
        n_random: random sets.
        n_prompts: of tasks given by name.
        seed: of tasks and random sets.

    Returns:
        Rows: skill, clean, edited, random_mean, random_sd, n_random, k (neurons), control.

    Raises:
        SiteError: no neuron's name, or a layer without neurons that can be told apart.
    """
    chosen = places(neurons)
    layers = sorted({layer for layer, _ in chosen})
    if how not in ("mean", "zero"):
        raise SiteError(f"unknown way of removing {how!r} in every skill: mean or zero")
    batch = model.batch(reference)
    acts = activations(model, batch, layers)
    values = {layer: a[batch.mask.to(a.device)].mean(0) * float(how == "mean") for layer, a in acts.items()}
    names, norms = written_norms(model, acts, batch.mask)
    sets = matched_neurons(chosen, names, norms, n_sets=n_random, seed=seed)
    measures = skill_measures(model, skills, n_prompts=n_prompts, seed=seed)

    def measured(edits: Sequence[Edit]) -> dict[str, float]:
        with model.editing(edits):
            return {name: measure(model) for name, measure in measures.items()}

    clean, edited = measured([]), measured(neuron_edits(model, chosen, values))
    controls = [measured(neuron_edits(model, own, values)) for own in sets]
    rows = []
    for name, value in clean.items():
        random = np.array([c[name] for c in controls])
        row = {"skill": name, "clean": value, "edited": edited[name], "random_mean": random.mean()}
        row |= {"random_sd": random.std(ddof=1) if len(random) > 1 else np.nan, "n_random": len(random)}
        rows.append(row | {"k": len(chosen), "control": "same layers and norm"})
    return pd.DataFrame(rows)


def skill_measures(
    model: Model, skills: Mapping[str, Skill] | Sequence[str], *, n_prompts: int, seed: int
) -> dict[str, Callable[[Model], float]]:
    """Name -> a function of the model as it stands: accuracy of a task, or the caller's own."""
    named = skills if isinstance(skills, Mapping) else {name: name for name in skills}
    return {name: _measure(model, skill, n_prompts, seed) for name, skill in named.items()}


def _measure(model: Model, skill: Skill, n: int, seed: int) -> Callable[[Model], float]:
    if callable(skill):
        return skill
    task = task_makers.task(skill, model, n=n, seed=seed) if isinstance(skill, str) else skill

    def accuracy(own: Model) -> float:
        logits = own.run(task.clean).logits
        assert logits is not None  # the run has no `stop`
        return right_share(logits, task)

    return accuracy
