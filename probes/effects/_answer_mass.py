"""Probability that a model gives to the options of a question, all together, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.components import stream_name
from interp.decompose.lens import read_out
from interp.errors import NotApplicable, TaskError
from interp.measurement.ability import Ability
from interp.measurement.answers import TASKS, model_task
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, interval_columns
from interp.model import Model
from interp.patching.case import Case
from interp.patching.readout import at_end
from interp.results import stats
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import PromptTask, metrics

if TYPE_CHECKING:
    import plotly.graph_objects as go


def _by_layer(rows: pd.DataFrame) -> go.Figure:
    """Probability of all options together against depth, with its null."""
    from interp.plots.attention import profile_lines

    return profile_lines(rows.assign(component="options"), axis="layer (the last is the model's own output)")


@analysis(
    name="answer_mass",
    family="answers",
    title="Mass on answer options",
    unit="layer",
    headline="mass",
    order=300,
    figure=dots,
    figures={"mass": _by_layer},
    quick={"n_prompts": 16},
    exemptions={"planted": "of the model's output; its tests make logits by hand"},
    columns={"label": "boolean"},
    means="After this layer so much probability is on the options of the question, right and wrong ones together: the "
    "model knows what kind of answer is asked for. What is missing (`bound`) is the most that other words for the same "
    "answer can have taken from it.",
    misleads="Mass on the options is not knowledge of the right one: see `right`. A model may choose well among "
    "options that it hardly ever says. Early layers are read through the last one's unembedding (logit lens), which "
    "may not read them yet.",
    reference="Wiegreffe et al. 2023, arXiv 2305.14596 (probability mass on answer choices)",
)
def answer_mass(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    n_draws: int = 16,
    n_prompts: int = 48,
    seed: int = 0,
) -> Findings:
    """Mass on valid options: mean over prompts of sum over options a (right and wrong) of p(a | prompt) at END.

    Variants, one row per layer read by the logit lens (component `L3`) and one for the model's own output ("logits",
    whose `position` is the number of layers):
      mass   as above, with null, p, q and label;
      bound  1 - mass: what surface-form competition can have taken at most; the null is one less that of mass;
      right  p(right options) / p(all options); the null is the share of options that are right;
      first  share of prompts whose likeliest option is a right one, with the same null.

    The null of mass is that of as many random tokens, `n_draws` sets of them. p tests against their spread, for 0.05
    more (one-sided Student's prediction interval); q is over layers; a label needs q < 0.01 and a mass of half or more.

    Args:
        model: any loaded model.
        task: prompts with right and wrong answers, or a task's name; multiple choice, facts, or repeated random tokens
            (with one random wrong token each) without.
        n_draws: random sets of tokens; at least five.
        n_prompts: of a task given by name, the unit of the interval.
        seed: of prompts, random tokens and bootstrap.

    Raises:
        NotApplicable: no such task for this model.
        TaskError: a prompt without a wrong option.

    Reference: Wiegreffe et al. 2023 (arXiv 2305.14596), who look at outputs; layers, nulls and test are ours.
    """
    prompts = model_task(model, task, ("mcqa", *TASKS, "induction"), n=n_prompts, seed=seed)
    if not prompts.contrasted:
        raise TaskError(f"{prompts.name}: a prompt has no wrong option, and mass on one answer is its probability")
    case = Case.of(model, prompts)
    log_p = layer_log_probs(case)  # layer prompt d_vocab
    ids = torch.cat([prompts.answers, prompts.wrong], 1).cpu()
    right = torch.cat([prompts.answers >= 0, torch.zeros_like(prompts.wrong, dtype=torch.bool)], 1).cpu()
    mass, of_right, first = option_scores(log_p, ids, right)
    draws = _random_mass(log_p, (ids >= 0).sum(1), n_draws, seed=seed)
    mean = mass.mean(1)
    p = stats.p_against_nulls(mean, draws, margin=MARGIN)
    q = stats.benjamini_hochberg(p)
    label = (q < LEVEL) & (mean >= MOST)
    chance = float((right.sum(1) / (ids >= 0).sum(1)).double().mean())
    null = draws.mean(0)
    layers = range(model.info.n_layers)
    names = {"component": [*map(stream_name, layers), "logits"], "layer": pd.array([*layers, None], dtype="Int64")}

    def variant(name: str, values: Float[np.ndarray, "layer prompt"], **more: object) -> pd.DataFrame:
        columns = interval_columns(stats.bootstrap_mean(values.T, seed=seed))
        place = {"variant": name, "unit": "probability", **names, "position": range(len(values))}
        return pd.DataFrame({**place, **columns, **more})

    parts = [
        variant("mass", mass, null=null, p=p, q=q, label=label),
        variant("bound", 1 - mass, null=1 - null),
        variant("right", of_right, null=chance),
        variant("first", first, null=chance),
    ]
    ability = {prompts.name: Ability.of(log_p[-1], case.task.to("cpu"))}
    return Findings(pd.concat(parts, ignore_index=True), prompts.provenance(), ability=ability)


MOST = 0.5
"""Mass from which a layer is labelled."""


@torch.no_grad()
def layer_log_probs(case: Case) -> Float[Tensor, "layer batch d_vocab"]:
    """log p at END, read off the stream behind each layer, and the model's own at last."""
    model, task = case.model, case.task
    sites = [Site("resid_post", i) for i in range(model.info.n_layers)]
    run = model.run(task.clean, capture=sites)
    assert run.logits is not None  # the run has no `stop`
    lens = [read_out(model, at_end(case, run.acts[s])) for s in sites]
    all_logits = [*lens, metrics.answer_logits(run.logits, task)]
    return torch.stack([x.float().cpu().log_softmax(-1) for x in all_logits])


def option_scores(
    log_p: Float[Tensor, "layer batch d_vocab"], ids: Int[Tensor, "batch option"], right: Bool[Tensor, "batch option"]
) -> tuple[Float[np.ndarray, "layer batch"], Float[np.ndarray, "layer batch"], Float[np.ndarray, "layer batch"]]:
    """Mass on all options, share of it on the right ones, and whether the likeliest is right; -1 is no option."""
    at = log_p.double().gather(2, ids.clamp(min=0).expand(len(log_p), -1, -1)).masked_fill(ids < 0, -torch.inf)
    whole = at.logsumexp(-1)
    of_right = (at.masked_fill(~right, -torch.inf).logsumexp(-1) - whole).exp()
    first = right.expand(at.shape).gather(2, at.argmax(-1, keepdim=True))[..., 0]
    return whole.exp().numpy(), of_right.numpy(), first.double().numpy()


def _random_mass(
    log_p: Float[Tensor, "layer batch d_vocab"], sizes: Int[Tensor, " batch"], n: int, *, seed: int
) -> Float[np.ndarray, "draw layer"]:
    """Mean over prompts of the mass on as many random tokens, the same in all layers."""
    generator = torch.Generator().manual_seed(seed)
    batch, d_vocab = log_p.shape[1:]
    width = int(sizes.max())
    if width > d_vocab // 2:
        raise NotApplicable(f"{width} options of {d_vocab} tokens: a random set of as many is no other set")
    unused = torch.arange(width) >= sizes[:, None]
    draws = []
    for _ in range(n):
        ids = torch.rand(batch, d_vocab, generator=generator).topk(width).indices.masked_fill(unused, -1)
        draws.append(option_scores(log_p, ids, torch.ones_like(unused))[0].mean(1))
    return np.stack(draws)
