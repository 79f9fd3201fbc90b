"""Which statement is read in which layer: attention to it is cut from a layer on, or up to one, and the answer read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.components import attn_name
from interp.edits import Edit, KnockOut
from interp.errors import NotApplicable
from interp.measurement.ability import Ability
from interp.measurement.answers import ANSWERED, exchange_columns, model_task
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, interval_columns
from interp.measurement.sources import statement_masks
from interp.model import Model
from interp.patching.case import Case
from interp.results import stats
from interp.results.figures import dots_by_size
from interp.sites import Site
from interp.tasks import PromptTask
from probes.reasoning.contrasts import TASKS, contrasted, differences, end_logits, exchanged, refuse_both_ways

SHARE, SMALLEST = 0.05, 0.01
"""Of the sum of all sizes: below SHARE no label, up to SMALLEST no claim."""
MATCHED = "random tokens for "
Masks = Mapping[str, Bool[Tensor, "batch pos"]]


@analysis(
    name="reasoning_flow",
    family="reasoning",
    title="Layers in which statements are read",
    unit="layer and statement",
    headline="read",
    order=172,
    two_sided=True,
    figure=dots_by_size,
    quick={"n_prompts": 16, "n_draws": 8, "n_random": 2},
    exemptions={
        "planted": "truths name heads, and this scores layers and statements: its tests plant two hops and ask when "
        "each name is read",
    },
    columns={"label": "boolean", "statement": "str"},
    means="Behind this statement nothing can look at it in the layers above; when nothing can in this layer either, "
    "the model's answer falls by so many logits more. A statement whose reading is all in low layers is passed on by "
    "other tokens from there.",
    misleads="Cut attention is no state that the model knows: what falls may be more than what was read. Where two "
    "layers read the same, the lower one is credited with it, for the upper one is cut first (`early` gives it to the "
    "upper). A token behind the statement may carry it on, and then counts as its reader. Attention alone is cut: in "
    "hybrids a recurrent or convolutional layer goes on reading.",
    reference="Dutta et al. 2024, arXiv 2402.18312; Geva et al. 2023, arXiv 2304.14767 (attention knock-out)",
)
def reasoning_flow(
    model: Model,
    *,
    task: PromptTask | str | None = None,
    renormalise: bool = False,
    n_random: int = 5,
    n_draws: int = 16,
    n_prompts: int = 32,
    seed: int = 0,
) -> Findings:
    """late_l(S) - late_{l+1}(S), a logit: what reading statement S in layer l is worth, where it is not read above.

    late_l(S) = m - m(no attention from tokens behind S to S in layers l and above), m the right answers' mean logit
    less the wrong ones', mean over the prompts that hold S (their number is `n`). S are the tokens of a statement, or
    of a role in tasks that mark no statements. Variants, a row for each layer with attention and each S (column
    `statement`, component `A3<RULE1`):
      read     as above, with null, p, q and label; over layers they sum to late_0;
      late     late_l(S);
      early    m - m(the same cut in layers l and below);
    and for each S
      random   late_0 of as many random other tokens of each prompt (neither the first nor END), mean of `n_random`
               draws and of those prompts that have as many.

    The null of `read` is the same of `n_draws` exchanges of answers between prompts. p (two-sided) tests against their
    spread, for more than 1 % of the sum of all sizes; q is Benjamini-Hochberg. A label needs q < 0.01, 5 % of the sum,
    and a model that prefers the right answers in three of four prompts. Intervals are bootstraps over prompts.

    Args:
        model: any loaded model.
        task: prompts with answers and roles, or a task's name; fictional ontologies, or what else the model can be
            asked, without.
        renormalise: give the attention to the tokens that are left; else it is lost.
        n_random: draws of random tokens.
        n_draws: exchanges; at least five.
        n_prompts: of a task given by name.
        seed: of prompts, exchanges, random tokens and bootstrap.

    Raises:
        NotApplicable: no such task for this model, no attention, attention both ways, or prompts that mark no token.
        TaskError: five prompts or fewer, or one without a wrong answer.

    Reference: Dutta et al. 2024 (arXiv 2402.18312), who cut attention between sub-tasks; cuts from a layer on and up
    to a layer, differences, null and controls are ours.
    """
    refuse_both_ways(model)
    prompts = contrasted(model_task(model, task, TASKS, n=n_prompts, seed=seed))
    layers = list(model.info.attention_layers)
    if not layers:
        raise NotApplicable(f"{model.info.name} has no attention that could be cut")
    masks = statement_masks(prompts)
    ways = exchanged(prompts, draws=n_draws, seed=seed)
    cuts = Cuts(model, Case.of(model, prompts).task, layers, ways, renormalise=renormalise)
    late, early = (np.stack([cut(mask) for mask in masks.values()]) for cut in (cuts.late, cuts.early))
    read = late - np.concatenate([late[:, 1:], np.where(np.isnan(late[:, :1]), np.nan, 0.0)], 1)
    able = bool((cuts.clean[0] > 0).mean() >= ANSWERED)
    mean, *others = np.moveaxis(stats.nan_mean(read, axis=-1), 2, 0)  # of statement layer way prompt
    whole = float(np.abs(mean).sum())
    test = exchange_columns(mean, others, margin=SMALLEST * whole, able=able)
    label = (test["q"] < LEVEL) & (np.abs(mean) >= SHARE * whole) & (whole > 0)
    rows = []
    for name, values, columns in (("read", read, {**test, "label": label}), ("late", late, {}), ("early", early, {})):
        rows.append(_rows(name, values[:, :, 0], list(masks), layers, columns, seed=seed))
    control = [random_cut(cuts, mask, n=n_random, seed=seed) for mask in masks.values()]
    rows.append(_control_rows(np.stack(control), list(masks), layers[0], seed=seed))
    peaks = {s: layers[int(np.abs(m).argmax())] for s, m in zip(masks, mean, strict=True)}
    data = {**prompts.provenance(), "renormalise": renormalise, "able": able, "mostly_read_in": peaks}
    return Findings(pd.concat(rows, ignore_index=True), data, ability={prompts.name: cuts.ability})


@dataclass(eq=False)
class Cuts:
    """Falls of the answer under cut attention, by layer, way of giving answers, and prompt; the clean run is kept."""

    model: Model
    task: PromptTask
    layers: Sequence[int]
    ways: Sequence[PromptTask]
    renormalise: bool

    def __post_init__(self) -> None:
        """Run the prompts as they are."""
        sites = [Site("resid_pre", layer) for layer in self.layers]
        with torch.no_grad():
            run = self.model.run(self.task.clean, capture=sites)
        self.entries = {layer: run.acts[site] for layer, site in zip(self.layers, sites, strict=True)}
        end = end_logits(run.logits, self.task)
        self.clean, self.ability = differences(end, self.ways), Ability.of(end, self.task.to(end.device))

    def late(self, mask: Bool[Tensor, "batch pos"]) -> Float[np.ndarray, "layer way batch"]:
        """Falls with attention to these tokens cut in each layer and those above; NaN in prompts without them."""
        falls = [self.fall(self.edits(mask, self.layers[i:]), start=i) for i in range(len(self.layers))]
        return _where(mask.any(1), np.stack(falls))

    def early(self, mask: Bool[Tensor, "batch pos"]) -> Float[np.ndarray, "layer way batch"]:
        """Falls with attention to these tokens cut in each layer and those below; NaN in prompts without them."""
        falls = [self.fall(self.edits(mask, self.layers[: i + 1]), start=0) for i in range(len(self.layers))]
        return _where(mask.any(1), np.stack(falls))

    def edits(self, mask: Bool[Tensor, "batch pos"], layers: Sequence[int]) -> list[Edit]:
        """No attention in these layers from tokens behind a statement to it."""
        pairs = behind(mask)[:, :, None] & mask[:, None, :]
        return [KnockOut(Site("pattern", layer), pairs=pairs, renormalise=self.renormalise) for layer in layers]

    @torch.no_grad()
    def fall(self, edits: Sequence[Edit], *, start: int) -> Float[np.ndarray, "way batch"]:
        """m(clean) - m under edits of that number of layer and above, for each way."""
        layer = self.layers[start]
        run = self.model.run(self.task.clean, edits=edits, start=(layer, self.entries[layer]))
        return self.clean - differences(end_logits(run.logits, self.task), self.ways)


def behind(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Columns behind the last of a statement's; none in prompts without it."""
    column = torch.arange(mask.shape[1])
    last = torch.where(mask, column, -1).amax(1, keepdim=True)
    return (column > last) & (last >= 0)


def random_cut(cuts: Cuts, mask: Bool[Tensor, "batch pos"], *, n: int, seed: int) -> Float[np.ndarray, " batch"]:
    """Fall when as many random other tokens of each prompt are cut in all layers, each from what is behind it.

    NaN in prompts without the statement, and in those that have fewer other tokens.
    """
    task, generator = cuts.task, torch.Generator().manual_seed(seed)
    column = torch.arange(mask.shape[1])
    free = task.clean.mask.cpu() & ~mask & (column != task.end.cpu()[:, None])
    free &= column != task.clean.first.cpu()[:, None]
    falls = []
    for _ in range(n):
        order = torch.rand(free.shape, generator=generator).masked_fill(~free, 2.0).argsort(1).argsort(1)
        drawn = free & (order < mask.sum(1, keepdim=True))
        pairs = (column[:, None] > column) & drawn[:, None, :]
        edits: list[Edit] = [
            KnockOut(Site("pattern", layer), pairs=pairs, renormalise=cuts.renormalise) for layer in cuts.layers
        ]
        falls.append(cuts.fall(edits, start=0)[0])
    room = mask.any(1) & (free.sum(1) >= mask.sum(1))
    return _where(room, np.mean(falls, 0)) if falls else np.full(len(mask), np.nan)


def _where(prompts: Bool[Tensor, " batch"], values: Float[np.ndarray, "*row batch"]) -> Float[np.ndarray, "*row batch"]:
    """Values of these prompts; NaN in the others."""
    return np.where(prompts.numpy(), values, np.nan)


def _intervals(values: Float[np.ndarray, "statement *layer batch"], *, seed: int) -> dict[str, np.ndarray]:
    """Columns of the mean over those prompts of a statement that have a value, statement after statement."""
    parts = []
    for own in np.moveaxis(values, -1, 1):
        known = own[~np.isnan(own.reshape(len(own), -1)).any(1)]
        parts.append(interval_columns(stats.bootstrap_mean(known if len(known) else own, seed=seed)))
        parts[-1]["n"] = np.full(own.shape[1:], parts[-1]["n"])
    return {name: np.stack([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def _rows(
    variant: str,
    values: Float[np.ndarray, "statement layer batch"],
    statements: Sequence[str],
    layers: Sequence[int],
    columns: Mapping[str, Float[np.ndarray, "statement layer"] | Bool[np.ndarray, "statement layer"]],
    *,
    seed: int,
) -> pd.DataFrame:
    flat = {k: v.ravel() for k, v in {**_intervals(values, seed=seed), **columns}.items()}
    places = [(layer, statement) for statement in statements for layer in layers]
    base = {
        "component": [f"{attn_name(layer)}<{statement}" for layer, statement in places],
        "layer": [layer for layer, _ in places],
        "statement": [statement for _, statement in places],
    }
    return pd.DataFrame({"variant": variant, "unit": "logit", **base, **flat})


def _control_rows(
    values: Float[np.ndarray, "statement batch"], statements: Sequence[str], layer: int, *, seed: int
) -> pd.DataFrame:
    columns = _intervals(values, seed=seed)
    names = [f"{attn_name(layer)}<{MATCHED}{s}" for s in statements]
    base = {"component": names, "layer": layer, "statement": list(statements)}
    return pd.DataFrame({"variant": "random", "unit": "logit", **base, **columns})
