"""Tuning of the heads and neurons that mediate a task, beside as many others: does localisation say what to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray

from interp.batch import Batch
from interp.components import head_names
from interp.edits import Edit
from interp.errors import NotApplicable, SchemaError
from interp.measurement.neuron_effects import Neuron, NeuronEffects, matched_neurons, neuron_names
from interp.measurement.prompts import prompt_set
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.measurement.tuning import Entries, tune
from interp.model import Model
from interp.numerics import wide
from interp.patching.case import Case
from interp.results import stats
from interp.results.figures import dots
from interp.results.stats import Head
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.metrics import answer_logits
from interp.weights.changes import WeightMatrices
from probes.arithmetic._mediation import Node, answer_log_prob, head_effects
from probes.arithmetic.numbers import default_task

ELSEWHERE, LENGTH = 16, 32
"""Prompts of random tokens, and their tokens, on which a tuned model should be as before."""
RATE = 0.1
"""Learning rate, in root mean squares of the weights that are tuned."""
TRIES = 4
"""Draws for a random set: sets that are the same count once."""
Units = tuple[tuple[Head, ...], tuple[Neuron, ...]]
VARIANTS = ("gain", "accuracy", "elsewhere")


@analysis(
    name="mediator_tuning",
    family="arithmetic",
    title="Tuning of mediators",
    headline="gain",
    unit="set of heads and neurons",
    order=67,
    figure=dots,
    subject="zoo:modular-addition",
    columns={"clean": "float64", "k": "Int64", "label": "boolean"},
    presumes=(),
    quick={"n_prompts": 16, "n_sets": 5, "n_steps": 2, "n_neurons": 4},
    exemptions={
        "planted": "what a model still has to learn; tests damage planted heads and tune them back",
        "scale": "a gain on more prompts is the same gain",
    },
    means="Trained alone, these heads and neurons learn the rest of the task better than as many others: the places "
    "that mediate it are places to change it.",
    misleads="No gain where the model does the task already: look at `clean`. That others learn it less within so few "
    "steps does not say that they could not, and a part may be easy to train for what it does not do yet. Editing "
    "succeeds in places that localisation does not name (Hase et al. 2023, arXiv 2301.04213).",
    reference="Zhang et al. 2024, arXiv 2409.01659",
)
def mediator_tuning(
    model: Model,
    *,
    task: PromptTask | None = None,
    n_heads: int | None = None,
    n_neurons: int | None = None,
    n_sets: int = 5,
    n_steps: int = 30,
    n_prompts: int = 128,
    seed: int = 0,
) -> Findings:
    """Rise of mean log P(right answer), nats, on half of the prompts when a set is trained on the other half.

    Heads are ranked by the effect of their output at END being the twin's (`arithmetic_mediation`), neurons by the size
    of their first-order effect when they are set to the twin's value; both on the half that is trained on. Trained are
    W_Q and W_O of a head (and W_K, W_V where key-value heads are not shared), and the columns and rows of a neuron in
    W_in, W_gate and W_out, by AdamW on -log P(right); all else stays. A row each for the best heads, the best neurons,
    and both:
      gain       the above, interval over prompts; null: sets of as many others, heads of the same layers and neurons
                 of the same layers and sizes while there are any, mean over `n_sets`; p Student's prediction interval
                 of these sets;
      accuracy   share of prompts with the right answer first among all tokens, after training; `clean` before;
      elsewhere  mean KL(before || after) of next tokens on prompts of random tokens, nats: what training costs.
    A set for which there are fewer than five different sets of as many others has no row; provenance names it. q is
    Benjamini-Hochberg over the sets of a variant; a label needs q < 0.01 and a gain above the null's.

    Args:
        model: any model.
        task: prompts whose right and wrong answers are the results of the two twins; the model's own modular addition
            where it has one, else `arithmetic`.
        n_heads: heads of a set; a tenth of all, one at least, if not given.
        n_neurons: neurons of a set; a tenth of all, one at least, if not given.
        n_sets: random sets, 5 at least.
        n_steps: of training.
        n_prompts: of the task, where it is not given.
        seed: of prompts, halves, sets and bootstrap.

    Raises:
        NotApplicable: fewer than four prompts, or too few heads and neurons that can be trained to compare with.
        SchemaError: a set of no heads and no neurons.

    Reference: Zhang et al. 2024 (arXiv 2409.01659), who tune the heads and MLPs that they found; nulls are ours.
    """
    task = default_task(model, n=n_prompts, seed=seed) if task is None else task
    if len(task) < 4:  # noqa: PLR2004
        raise NotApplicable(f"{task.name} has {len(task)} prompts: four at least, to train on and to judge by")
    trial = Trial.of(model, task, seed)
    heads, neurons = _ranked_heads(trial), _ranked_neurons(trial)
    k = [_size(n, pool) for n, pool in ((n_heads, heads), (n_neurons, neurons.names if neurons else []))]
    if not any(k):
        raise SchemaError("a set of no heads and no neurons: nothing would be trained")
    best = (tuple(heads[: k[0]]), tuple(neurons.best(k[1])) if neurons else ())
    parts = {"heads": (best[0], ()), "neurons": ((), best[1]), "heads and neurons": best}
    chosen = {name: units for name, units in parts.items() if any(units)}
    rng, rows, alone = np.random.default_rng(seed), [], []
    before = trial.measure(())
    for name, units in chosen.items():
        drawn = [_others(units, heads, neurons, rng) for _ in range(TRIES * n_sets)]
        sets = [own for own in dict.fromkeys(drawn) if [*map(len, own)] == [*map(len, units)]][:n_sets]
        if len(sets) < stats.LEAST_NULLS:
            alone.append(name)
            continue
        after = [trial.trained(own, n_steps) for own in (units, *sets)]
        rows += _rows(name, units, before, after, seed)
    if not rows:
        raise NotApplicable(f"fewer than {stats.LEAST_NULLS} sets of as many others to compare with: take smaller sets")
    table = pd.DataFrame(rows)
    for variant in VARIANTS:
        mask = table["variant"] == variant
        table.loc[mask, "q"] = stats.benjamini_hochberg(table.loc[mask, "p"].to_numpy(dtype=float))
    label = (table["q"] < LEVEL) & (table["value"] > table["null"])
    table["label"] = label.astype("boolean").mask(table["variant"] != "gain")
    table = table.sort_values("variant", key=lambda v: v.map(VARIANTS.index), kind="stable", ignore_index=True)
    found = {"heads": head_names(best[0]), "neurons": neuron_names(best[1])}
    data = {**task.provenance(), **found, "missing": trial.missing, "too_few_others": alone}
    return Findings(table, data, ability=task)


Measured = Mapping[str, Float[ndarray, " prompt"]]


@dataclass(frozen=True, eq=False)
class Trial:
    """A model, prompts to train on and prompts to judge by.

    Attributes:
        train, judge: halves of the task. matrices: of the model. elsewhere: prompts of random tokens.
    """

    model: Model
    train: Case
    judge: Case
    matrices: WeightMatrices
    elsewhere: Batch

    @classmethod
    def of(cls, model: Model, task: PromptTask, seed: int) -> Trial:
        """Halves drawn at random."""
        case = Case.of(model, task)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(task)))
        train, judge = (case.select(rows) for rows in order.tensor_split(2))
        other = prompt_set(model, None, n_prompts=ELSEWHERE, length=LENGTH, bos="default", seed=seed, least=2).batch
        length = max(case.task.clean.ids.shape[1], other.ids.shape[1])
        return cls(model, train, judge, WeightMatrices.of(model.weights(), length=length), other)

    @property
    def missing(self) -> dict[str, str]:
        """Matrices that cannot be trained, and why."""
        return {f"L{layer}.{name}": why for (layer, name), why in self.matrices.missing.items()}

    def entries(self, units: Units) -> Entries:
        """Entries of the matrices that are of a set of heads and neurons."""
        masks = {name: torch.zeros_like(x, dtype=torch.bool) for name, x in self.matrices.values.items()}
        for layer, head in units[0]:
            single = self.matrices.attention[layer].group == 1 if layer in self.matrices.attention else False
            for name in ("w_q", "w_k", "w_v", "w_o") if single else ("w_q", "w_o"):
                if (layer, name) in masks:
                    masks[layer, name][head] = True
        for layer, neuron in units[1]:
            for name in ("w_in", "w_gate", "w_out"):
                if (layer, name) in masks:
                    (masks[layer, name] if name == "w_out" else masks[layer, name].mT)[neuron] = True
        return Entries.of(masks)

    def trained(self, units: Units, n_steps: int) -> Measured:
        """What `measure` says once a set has been trained."""
        entries, task = self.entries(units), self.train.task

        def loss(edits: Sequence[Edit]) -> torch.Tensor:
            logits = self.model.run(task.clean, edits=edits, gradients=True).logits
            assert logits is not None  # no `stop`
            return -answer_log_prob(logits, task).mean()

        size = torch.cat([self.matrices.values[name].flatten()[at] for name, at in entries.index.items()])
        rate = RATE * float(size.square().mean().sqrt())
        changes = tune(self.model, self.matrices, entries, loss, steps=n_steps, learning_rate=rate)
        return self.measure(self.matrices.edits(changes))

    @torch.no_grad()
    def measure(self, edits: Sequence[Edit]) -> Measured:
        """log P(right) and whether it is first, by prompt judged; KL to the model without the edits elsewhere."""
        task = self.judge.task
        logits = self.model.run(task.clean, edits=edits).logits
        assert logits is not None  # no `stop`
        first = answer_logits(logits, task).argmax(-1, keepdim=True) == task.answers.to(logits.device)
        before, after = (self._log_probs(own) for own in ((), edits))
        kl = (before.exp() * (before - after)).sum(-1)
        mask = self.elsewhere.mask.to(kl.device)
        return {
            "gain": answer_log_prob(logits, task).double().cpu().numpy(),
            "accuracy": first.any(1).double().cpu().numpy(),
            "elsewhere": ((kl * mask).sum(1) / mask.sum(1)).double().cpu().numpy(),
        }

    def _log_probs(self, edits: Sequence[Edit]) -> Float[torch.Tensor, "batch pos d_vocab"]:
        logits = self.model.run(self.elsewhere, edits=edits).logits
        assert logits is not None  # no `stop`
        return wide(logits).log_softmax(-1)


@dataclass(frozen=True, eq=False)
class RankedNeurons:
    """Neurons of a model with their sizes and effects."""

    names: Sequence[Neuron]
    effects: Float[ndarray, " neuron"]
    norms: Float[ndarray, " neuron"]

    def best(self, k: int) -> list[Neuron]:
        """The k of largest |effect|."""
        return [self.names[i] for i in np.argsort(-np.abs(self.effects), kind="stable")[:k]]


def _ranked_heads(trial: Trial) -> list[Head]:
    """Heads whose W_Q and W_O can be trained, that of the largest effect first."""
    info = trial.model.info
    layers = [i for i in info.attention_layers if (i, "w_o") in trial.matrices.values]
    heads = [(i, h) for i in layers for h in range(info.n_heads)]
    effects = head_effects(trial.train, [Node(Site("z", i, head=h), "END", "head") for i, h in heads]).mean(1)
    return [heads[i] for i in np.argsort(-effects, kind="stable")]


def _ranked_neurons(trial: Trial) -> RankedNeurons | None:
    """Neurons whose weights can be trained; None where there are none."""
    layers = [layer for layer, name in trial.matrices.values if name == "w_out"]
    if not layers:
        return None
    effects = NeuronEffects.of(trial.train, layers)
    return RankedNeurons(effects.names, effects.first_order("resample").mean(0), effects.norms())


def _size(n: int | None, pool: Sequence[object]) -> int:
    return min(len(pool), max(1, len(pool) // 10) if n is None else n)


def _others(units: Units, heads: Sequence[Head], neurons: RankedNeurons | None, rng: np.random.Generator) -> Units:
    """As many heads and neurons that are not in the set, of the same layers while there are any."""
    free, drawn = [h for h in heads if h not in units[0]], []
    for layer, _ in units[0]:
        near = [h for h in free if h[0] == layer] or free
        if near:
            drawn.append(near[int(rng.integers(len(near)))])
            free.remove(drawn[-1])
    if not units[1] or neurons is None:
        return tuple(sorted(drawn)), ()
    seed = int(rng.integers(2**31))
    sets = matched_neurons(units[1], neurons.names, neurons.norms, n_sets=1, seed=seed)
    return tuple(sorted(drawn)), tuple(sets[0]) if sets else ()


def _rows(name: str, units: Units, before: Measured, after: Sequence[Measured], seed: int) -> list[dict[str, object]]:
    """Rows of one set, the first of `after`, beside the others."""
    rows = []
    for variant, unit in zip(VARIANTS, ("nats", "fraction", "nats"), strict=True):
        start = before[variant] if variant == "gain" else 0.0
        values = [own[variant] - start for own in after]
        null = np.array([x.mean() for x in values[1:]])
        columns = interval_columns(stats.bootstrap_mean(values[0][:, None], seed=seed))
        own = {key: np.ravel(np.asarray(x))[0] for key, x in columns.items()}
        p = float(stats.p_against_nulls(own["value"][None], null[:, None])[0])
        rows.append({"variant": variant, "component": name, **own, "null": null.mean(), "p": p, "unit": unit})
        rows[-1] |= {"clean": before[variant].mean(), "k": len(units[0]) + len(units[1])}
    return rows
