"""The depth at which what a text says wins over what its last word suggests, read off the stream layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.components import stream_name
from interp.decompose.lens import read_out
from interp.errors import SchemaError, nearest
from interp.measurement.ability import Ability
from interp.measurement.answers import ANSWERED, derangements, exchange_columns, model_task
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.measurement.sources import statement_masks
from interp.model import Model
from interp.patching.case import Case
from interp.patching.readout import at_end
from interp.results import stats
from interp.results.figures import by_layer
from interp.sites import Site
from interp.tasks import PromptTask
from interp.tasks.synthetic import bos_id
from probes.reasoning.contrasts import TASKS, contrasted, end_logits, exchanged, refuse_both_ways

SMALLEST = 0.01
"""Of the largest size: up to it no claim."""
PRIORS = ("last token", "question")
ALL_LAYERS = "all layers"


@analysis(
    name="reasoning_prior",
    family="reasoning",
    title="Layers in which the text outweighs the prior",
    unit="layer",
    headline="advantage",
    order=174,
    figure=by_layer,
    figures=dict.fromkeys(("answer", "prior", "in_context"), by_layer),
    quick={"n_prompts": 16, "n_draws": 8},
    exemptions={
        "planted": "truths name heads, and this scores layers: its tests plant an answer in a known layer",
    },
    columns={"label": "boolean"},
    means="Read by the unembedding after this layer, the stream at the end of the prompt is for the right conclusion, "
    "and against the word that the model would say knowing the last token alone.",
    misleads="The logit lens reads a layer in the last one's terms: what a layer holds in another form is not seen, so "
    "that the prior may have given way before. The prior is the model's own; where the last token suggests nothing it "
    "is one word among many, and beating it says little (`prior` tells how often it leads).",
    reference="Dutta et al. 2024, arXiv 2402.18312; nostalgebraist 2020 (logit lens)",
)
def reasoning_prior(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    prior: str = "last token",
    n_draws: int = 16,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """log p_l(right answer) - log p_l(prior), in nats: p_l is read off the stream at END after layer l.

    prior is the token that the model finds likeliest, right answers left out, when it sees the prompt's last token
    alone (behind the BOS that prompts begin with), or the question alone: what stands behind the last statement.
    Variants, a row per layer:
      advantage   as above, mean over prompts, with null, p, q and label;
      answer      share of prompts whose likeliest token is a right answer;
      prior       share whose likeliest token is the prior;
      in_context  share whose likeliest token stands in the prompt, its first one aside; null: in another prompt;
    and one row
      depth       mean over prompts of the first layer from which on the advantage stays above 0; the number of
                  layers in prompts where it never does.

    The null of `advantage` is the same with other prompts' answers (`n_draws` exchanges, each with its own prior
    left as it is). p (two-sided) tests against their spread, for more than 1 % of the largest size; q is
    Benjamini-Hochberg over layers. A label needs q < 0.01, an interval above 0 (bootstrap over prompts), and a model
    that prefers the right answers in three of four prompts.

    Args:
        model: any loaded model.
        task: prompts with answers, or a task's name; fictional ontologies, or what else the model can be asked,
            without.
        prior: "last token" or "question".
        n_draws: exchanges; at least five.
        n_prompts: of a task given by name.
        seed: of prompts, exchanges and bootstrap.

    Raises:
        NotApplicable: no such task for this model, or attention both ways; "question" where the task marks no token.
        TaskError: five prompts or fewer, or one without a wrong answer.
        SchemaError: another prior.

    Reference: Dutta et al. 2024 (arXiv 2402.18312), who tell tokens of the text from those of a bigram model by layer;
    the model's own prior, the test and the depth by prompt are ours.
    """
    if prior not in PRIORS:
        raise SchemaError(f"unknown prior {prior!r}; {nearest(prior, PRIORS)}")
    refuse_both_ways(model)
    prompts = contrasted(model_task(model, task, TASKS, n=n_prompts, seed=seed))
    ways = exchanged(prompts, draws=n_draws, seed=seed)
    case = Case.of(model, prompts)
    ids = prior_tokens(model, prompts, prior)
    lens = Lens.of(case)
    advantage = np.stack([lens.log_p(way.answers) - lens.log_p(ids[:, None]) for way in ways])  # way prompt layer
    able = bool((prompts.value(lens.log_probs[-1]) > 0).double().mean() >= ANSWERED)
    interval = stats.bootstrap_mean(advantage[0], seed=seed)
    margin = SMALLEST * float(np.abs(interval.mean).max())
    test = exchange_columns(interval.mean, list(advantage[1:].mean(1)), margin=margin, able=able)
    label = (test["q"] < LEVEL) & (interval.low > 0)
    layers = range(model.info.n_layers)
    base: dict[str, Any] = {"layer": list(layers), "component": [stream_name(layer) for layer in layers]}
    columns = {**interval_columns(interval), **test, "label": label}
    rows = [pd.DataFrame({"variant": "advantage", "unit": "nats", **base, **columns})]
    there, elsewhere = in_prompts(prompts, lens.top, seed=seed)
    right = (lens.top[..., None] == prompts.answers.cpu()).any(-1)
    for name, hits, null in (
        ("answer", right, None),
        ("prior", lens.top == ids, None),
        ("in_context", there, elsewhere.double().mean(1).numpy()),
    ):
        columns = interval_columns(stats.bootstrap_mean(hits.T.double().numpy(), seed=seed))
        rows.append(pd.DataFrame({"variant": name, "unit": "fraction", **base, **columns, "null": null}))
    depth = stats.bootstrap_mean(gives_way(advantage[0])[:, None], seed=seed)
    whole = {"component": [ALL_LAYERS], **interval_columns(depth)}
    rows.append(pd.DataFrame({"variant": "depth", "unit": "layer", **whole}))
    data = {**prompts.provenance(), "prior_is": prior, "able": able}
    ability = {prompts.name: Ability.of(lens.log_probs[-1], prompts.to(lens.log_probs.device))}
    return Findings(pd.concat(rows, ignore_index=True), data, ability=ability)


@dataclass(frozen=True, eq=False)
class Lens:
    """Distributions read off the stream at END after each layer."""

    log_probs: Float[Tensor, "layer batch d_vocab"]

    @classmethod
    @torch.no_grad()
    def of(cls, case: Case) -> Lens:
        """One run; the last layer's is the model's own."""
        sites = [Site("resid_post", layer) for layer in range(case.model.info.n_layers)]
        run = case.model.run(case.task.clean, capture=sites)
        streams = torch.stack([at_end(case, run.acts[site]) for site in sites[:-1]]) if sites[:-1] else None
        logits = [end_logits(run.logits, case.task)[None]]
        if streams is not None:
            logits.insert(0, read_out(case.model, streams).float().cpu())
        return cls(torch.cat(logits).log_softmax(-1))

    @property
    def top(self) -> Int[Tensor, "layer batch"]:
        """Likeliest tokens."""
        return self.log_probs.argmax(-1)

    def log_p(self, ids: Int[Tensor, "batch k"]) -> Float[np.ndarray, "batch layer"]:
        """Log probability of any of each prompt's ids; -1 is none."""
        own = ids.cpu().expand(len(self.log_probs), -1, -1)
        log_p = self.log_probs.gather(2, own.clamp(min=0)).masked_fill(own < 0, -torch.inf)
        return log_p.logsumexp(-1).T.double().numpy()


@torch.no_grad()
def prior_tokens(model: Model, task: PromptTask, prior: str) -> Int[Tensor, " batch"]:
    """The likeliest token behind the end of each prompt alone, its right answers left out."""
    bos, starts = bos_id(model), task.end.cpu()
    if prior == "question":
        column = torch.arange(task.clean.mask.shape[1])
        inside = torch.stack(list(statement_masks(task).values())).any(0)
        starts = torch.minimum(torch.where(inside, column, -1).amax(1) + 1, starts)
    rows = []
    for ids, mask, start, end in zip(task.clean.ids.cpu(), task.clean.mask.cpu(), starts, task.end.cpu(), strict=True):
        first = ids[mask][:1].tolist()
        head = first if bos is not None and first == [bos] and int(start) > int(mask.nonzero()[0]) else []
        rows.append([*head, *ids[int(start) : int(end) + 1].tolist()])
    batch = Batch.of(rows)
    logits = model.run(batch).logits
    assert logits is not None  # the run has no `stop`
    last = logits[torch.arange(len(rows)), batch.mask.sum(1).to(logits.device) - 1].float().cpu()
    answers = task.answers.cpu()
    known = torch.zeros_like(last, dtype=torch.bool).scatter_(1, answers.clamp(min=0), answers >= 0)
    return last.masked_fill(known, -torch.inf).argmax(-1)


def in_prompts(
    task: PromptTask, top: Int[Tensor, "layer batch"], *, seed: int
) -> tuple[Bool[Tensor, "layer batch"], Bool[Tensor, "layer batch"]]:
    """Whether each layer's likeliest token stands in its prompt behind the first token, and in another one."""
    inside = task.clean.mask.cpu() & (torch.arange(task.clean.mask.shape[1]) != task.clean.first.cpu()[:, None])
    ids = task.clean.ids.cpu().masked_fill(~inside, -1)
    other = ids[derangements(len(task), draws=1, seed=seed)[0]]
    return (top[..., None] == ids).any(-1), (top[..., None] == other).any(-1)


def gives_way(advantage: Float[np.ndarray, "batch layer"]) -> Float[np.ndarray, " batch"]:
    """First layer from which on the advantage stays above 0; the number of layers where it never does."""
    above = np.flip(np.cumprod(np.flip(advantage > 0, 1), 1), 1)
    return (advantage.shape[1] - above.sum(1)).astype(float)
