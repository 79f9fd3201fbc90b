"""Which key-value heads need far keys? Gates learned on needles, between full and streaming attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Batch
from interp.components import kv_head_name
from interp.edits import Add, Edit, KnockOut, Scale
from interp.errors import NotApplicable
from interp.measurement.declaration import IDENTIFY, Stage
from interp.measurement.needle_answers import each_answer, needle_ability
from interp.measurement.registry import Findings, analysis
from interp.measurement.rerun import Rerun
from interp.model import Model
from interp.results.figures import dots
from interp.sites import Site
from interp.tasks import needles
from interp.tasks.haystacks import Format


@analysis(
    name="retrieval_gates",
    family="retrieval",
    title="Learned gates of key-value heads (DuoAttention)",
    headline="gate",
    unit="kv_head",
    order=65,
    stage=Stage("retrieval", IDENTIFY),
    figure=dots,
    quick={"n_prompts": 2, "length": 96, "steps": 4},
    exemptions={
        "planted": "key-value heads, ranked and not labelled; tests/probes/heads/test_retrieval.py has them",
        "null": "a gate has a rank among the others, which are learned with it, and nothing to be expected of it",
        "significance": "so it has no p either",
        "interval": "gates are learned once, on all prompts together",
    },
    columns={"kv_head": "Int64", "rank": "Int64"},
    means="Of the key-value heads, those with the highest gates are the ones whose far keys the answers need most.",
    misleads="Read the rank, not the value: gates fall for as long as the penalty pushes, and how far depends on its "
    "weight, the steps and the scale of the residual stream. A gate is learned with all others: of heads that stand in "
    "for each other one may keep its gate while the rest lose theirs.",
    reference="Xiao et al. 2024, DuoAttention, arXiv 2410.10819",
)
def retrieval_gates(
    model: Model,
    *,
    n_prompts: int = 4,
    length: int = 256,
    n_needles: int = 3,
    value_words: int = 1,
    task: Format | None = None,
    sinks: int = 2,
    recent: int = 16,
    steps: int = 60,
    lr: float = 0.05,
    penalty: float = 0.05,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Gate a in [0, 1] per key-value head: argmin of mean ||h(a) - h||^2 / mean ||h||^2 + penalty * mean a.

    h is the final residual at the answers' rows of the whole model, h(a) that of a model in which a head's output is
    a z + (1 - a) s, with s its output where queries see the first `sinks` keys and the last `recent` alone (answers to
    needles that lie there are left out). Gates start at 1 and are clamped after every step of Adam; weights are frozen.
    One row per key-value head, variant `gate`, with its `rank` (1: highest). No null and no label:
    the values are not calibrated.

    Args:
        model: any loaded model.
        n_prompts: haystacks, all of them in every step.
        length: tokens per prompt.
        n_needles: needles per prompt.
        value_words: words in a value.
        task: how a needle is told and asked for, as in `retrieval`.
        sinks: first keys that are always seen.
        recent: last keys that are always seen, the query's own included.
        steps: of the optimiser, on all prompts each.
        lr: its learning rate.
        penalty: weight of the mean gate.
        bos: "default", "forced" or "none".
        seed: of prompts.

    Raises:
        NotApplicable: no room for a haystack, or no needle outside `sinks` and `recent`.

    Reference: Xiao et al. 2024 (arXiv 2410.10819), section 2.2: lr 0.02, 2000 steps, 0.05, sinks 128, recent 256. There
    s is computed from the gated model's own queries and keys, here from the whole model's; the distance is relative
    here, so that the penalty means the same in every model.
    """
    sizes: dict[str, Any] = {"n_needles": n_needles, "value_words": value_words, "task": task}
    haystacks = needles.hide(model, n=n_prompts, length=length, **sizes, bos=bos, seed=seed)
    far = [a for a in haystacks.answers if min(a.rows) - max(a.keys) >= recent and min(a.keys) >= sinks]
    if not far:
        raise NotApplicable(f"every needle lies within the last {recent} tokens of its answer; make `length` larger")
    where = torch.tensor([(a.prompt, row) for a in far for row in a.rows]).T
    batch = model.batch(haystacks.batch)
    with torch.no_grad():
        target = _answers(_final(model, batch, (), gradients=False), where)
        streams = [_stream_z(model, batch, layer, sinks=sinks, recent=recent) for layer in model.info.attention_layers]
    scale = target.square().sum(-1).mean()
    gates = torch.ones(len(streams), model.info.n_kv_heads, device=target.device, requires_grad=True)
    optimiser = torch.optim.Adam([gates], lr=lr)
    loss = distance = torch.tensor(0.0)
    for _ in range(steps):
        gated_resid = _answers(_final(model, batch, _edits(model, gates, streams), gradients=True), where)
        distance = (gated_resid - target).square().sum(-1).mean() / scale
        loss = distance + penalty * gates.mean()
        gates.grad = torch.autograd.grad(loss, gates)[0]
        optimiser.step()
        with torch.no_grad():
            gates.clamp_(0, 1)
    data = {
        **haystacks.describe(),
        "bos": bos,
        "loss": float(loss.detach()),
        "distance": float(distance.detach()),
        "steps": steps,
    }
    able = needle_ability(each_answer(Rerun(model), haystacks)[0], model)
    return Findings(_table(model, gates.detach().double().cpu().numpy()), data, ability=able)


def _table(model: Model, gates: Float[np.ndarray, "layer kv_head"]) -> pd.DataFrame:
    layer, head = np.meshgrid(model.info.attention_layers, np.arange(model.info.n_kv_heads), indexing="ij")
    table = pd.DataFrame({"variant": "gate", "unit": "fraction", "layer": layer.ravel(), "kv_head": head.ravel()})
    group = model.info.n_heads // model.info.n_kv_heads
    places = zip(table["layer"], table["kv_head"], strict=True)
    table["component"] = [kv_head_name(layer, head, group=group) for layer, head in places]
    table["value"] = gates.ravel()
    table["rank"] = table["value"].rank(ascending=False, method="min").astype(int)
    return table


def _edits(model: Model, gates: Tensor, streams: list[Tensor]) -> list[Edit]:
    """z -> a z + (1 - a) s in every layer, each gate for all query heads of its group."""
    group = model.info.n_heads // model.info.n_kv_heads
    edits: list[Edit] = []
    for layer, own, stream in zip(model.info.attention_layers, gates, streams, strict=True):
        a = own.repeat_interleave(group)[:, None].to(stream.dtype)  # head 1
        edits += [Scale(Site("z", layer), a), Add(Site("z", layer), (1 - a) * stream)]
    return edits


def _final(model: Model, batch: Batch, edits: tuple[()] | list[Edit], *, gradients: bool) -> Tensor:
    site = Site("resid_post", model.info.n_layers - 1)
    return model.run(batch, capture=[site], edits=edits, gradients=gradients).acts[site]


def _stream_z(model: Model, batch: Batch, layer: int, *, sinks: int, recent: int) -> Tensor:
    """z of a layer, [batch pos head d_head], where queries see only the first and the last keys; layers below whole."""
    i = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    unseen_pairs = (i[:, None] - i[None] >= recent) & (i[None] >= sinks)  # query key
    site = Site("z", layer)
    edits = [KnockOut(Site("pattern", layer), pairs=unseen_pairs)]
    return model.run(batch, capture=[site], edits=edits, stop=layer).acts[site].detach()


def _answers(resid: Float[Tensor, "batch pos d_model"], where: Int[Tensor, "two row"]) -> Float[Tensor, "row d_model"]:
    prompt, row = where
    return resid[prompt, row].float()
