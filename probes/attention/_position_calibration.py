"""Does attention to a document depend on its place, and does the answer get better without that?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import tasks
from interp.edits import CalibrateSpans
from interp.errors import SiteError
from interp.measurement.documents import Layout, baseline_mass, each_score, needle_documents, span_mass
from interp.measurement.needle_answers import needle_ability
from interp.measurement.registry import Findings, analysis
from interp.model import Model
from interp.results.figures import dots
from interp.tasks.haystacks import Format
from probes.attention._document_methods import LEAST, gain_row, value_row

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def _by_place(rows: pd.DataFrame) -> go.Figure:
    """Documents found by attention, by the place of the one that is asked for."""
    from interp.results.figures import over

    return over(rows, "place", title="place of the document")


@analysis(
    name="position_calibration",
    family="position",
    title="Attention to documents without the bias of their place",
    unit="model",
    headline="gain",
    order=270,
    figure=dots,
    figures={"found": _by_place, "found_calibrated": _by_place, "bias": _by_place},
    quick={"n_prompts": 10, "n_documents": 3, "length": 64, "n_random": 2},
    exemptions={
        "planted": "a bias of places, which no mechanism has; tests/probes/attention/test_documents.py plants one",
        "scale": "a gain is a difference of losses, next to nothing where attention is as sharp as planted",
    },
    columns={"place": "Int64"},
    means="The answer's loss falls where documents get attention for what they are and not for where they stand, by "
    "more than with the biases of the places exchanged.",
    misleads="The bias is measured with one dummy document and taken to add to what a document gets. Attention that is "
    "sharp already gains nothing, and a low temperature puts all of a head's mass on one document, right or wrong.",
    reference="Hsieh et al. 2024, Found in the Middle, arXiv 2406.16008",
)
def position_calibration(
    model: Model,
    *,
    n_prompts: int = 20,
    n_documents: int = 5,
    length: int = 256,
    layers: Sequence[int] | None = None,
    temperature: float = 0.05,
    n_random: int = 5,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Gain of position calibration: the answer's loss as the model is, less that with `CalibrateSpans`, in nats.

    Prompts are haystacks cut into documents, one with a needle. A head's bias at place k is the attention of the
    question's last token to a dummy document there (haystack, as long); calibrated is its attention less that. No
    answer is looked at, so that all prompts are held out. Variants:
      gain              mean over prompts; null: the mean gain with the biases of the places in random orders; p;
      accuracy, accuracy_calibrated  share of answers whose tokens all rank first; null of the first 0, of the second
                        that of random orders;
      found             share of prompts whose document has the most attention (mean over heads of `layers`), by its
                        place; null 1 / documents;
      found_calibrated  the same of calibrated attention;
      bias              mean attention to a dummy by its place, null the mean over places.

    Args:
        model: any loaded model.
        n_prompts: prompts, spread over the places; the unit of the interval.
        n_documents: documents in each.
        length: tokens per prompt.
        layers: that are calibrated; None: the upper half of those with attention.
        temperature: of the softmax over calibrated attention.
        n_random: random orders.
        task: how a needle is told and asked for.
        bos: "default", "forced" or "none".
        seed: of prompts, orders and bootstrap.

    Raises:
        NotApplicable: no room for the documents.
        SiteError: layers without attention.

    Reference: Hsieh et al. 2024 (arXiv 2406.16008), sections 3 and 4: last 16 layers, temperature 5e-5.
    """
    chosen = calibrated_layers(model, layers)
    documents, dummies = needle_documents(
        model, n_prompts=max(n_prompts, LEAST), n_documents=n_documents, length=length, task=task, bos=bos, seed=seed
    )
    layout, gold = documents.laid_out(), documents.gold.numpy()
    mass, bias = span_mass(model, layout), baseline_mass(model, documents, dummies)

    def scores(baseline: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return each_score(model, layout, calibration(model, layout, baseline, chosen, temperature=temperature))

    generator = torch.Generator().manual_seed(seed)
    right, before = each_score(model, layout)
    right_after, after = scores(bias)
    orders = [torch.randperm(documents.places, generator=generator) for _ in range(n_random)]
    controls = [scores(bias[..., order]) for order in orders]
    random_right = float(np.mean([c[0] for c in controls]))
    index = [model.info.attention_layers.index(layer) for layer in chosen]
    raw, own = (x[:, index].nanmean((1, 2)).numpy() for x in (mass, mass - bias))
    mean_bias = bias[:, index].nanmean((1, 2)).numpy()
    rows = [
        gain_row(before - after, [before - c[1] for c in controls], seed=seed),
        value_row("accuracy", "fraction", right, seed=seed, null=0.0),
        value_row("accuracy_calibrated", "fraction", right_after, seed=seed, null=random_right),
    ]
    places = sorted(set(gold.tolist()))
    for name, x in (("found", raw), ("found_calibrated", own)):
        hit = (x.argmax(-1) == gold).astype(float)
        null = 1 / documents.places
        rows += [value_row(name, "fraction", hit[gold == k], seed=seed, null=null, place=k) for k in places]
    null = float(mean_bias.mean())
    for place in range(documents.places):
        rows.append(value_row("bias", "probability", mean_bias[:, place], seed=seed, null=null, place=place))
    data = {**documents.facts, "bos": bos, "layers": chosen, "sha256": tasks.fingerprint([layout.batch])}
    return Findings(rows, data, ability=needle_ability(right, model))


def calibrated_layers(model: Model, layers: Sequence[int] | None) -> list[int]:
    """Layers that are meant: the upper half of those with attention where none are given.

    Raises:
        SiteError: layers without attention.
    """
    own = model.info.attention_layers
    if layers is None:
        return list(own[len(own) // 2 :])
    wrong = [layer for layer in layers if layer not in own]
    if wrong or not len(layers):
        raise SiteError(f"layers={list(layers)}: attention is in layers {own}")
    return list(layers)


def calibration(
    model: Model,
    layout: Layout,
    baseline: Float[Tensor, "batch layer head place"],
    layers: Sequence[int],
    *,
    temperature: float,
) -> list[CalibrateSpans]:
    """Edits that calibrate every head of some layers by these baselines."""
    places = {layer: i for i, layer in enumerate(model.info.attention_layers)}
    return [
        CalibrateSpans(f"L{a}.pattern", layout.places, baseline[:, places[a]], temperature=temperature) for a in layers
    ]
