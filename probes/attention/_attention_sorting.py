"""Are documents answered from better when the most attended one is put last, again and again?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp import tasks
from interp.edits import Edit
from interp.measurement.documents import Documents, each_score, needle_documents, span_mass
from interp.measurement.needle_answers import needle_ability
from interp.measurement.registry import Findings, analysis
from interp.model import Model
from interp.results.figures import dots
from interp.tasks.haystacks import Format
from probes.attention._document_methods import LEAST, gain_row, value_row
from probes.attention._position_calibration import calibrated_layers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def _by_round(rows: pd.DataFrame) -> go.Figure:
    """Where the document with the answer stands after each round, counted from the end."""
    from interp.results.figures import over

    return over(rows, "round", title="round")


@analysis(
    name="attention_sorting",
    family="position",
    title="Documents sorted by attention",
    unit="model",
    headline="gain",
    order=272,
    figure=dots,
    figures={"rank": _by_round, "loss": _by_round},
    quick={"n_prompts": 10, "n_documents": 3, "length": 64, "rounds": 2, "n_random": 2},
    exemptions={
        "planted": "a liking for late documents, which no mechanism has; tests/probes/attention/test_documents.py "
        "plants one",
        "scale": "a gain is a difference of losses, next to nothing where attention is as sharp as planted",
    },
    columns={"round": "Int64"},
    means="The answer's loss falls as documents are put in the order of the attention that they get, by more than in "
    "random orders.",
    misleads="It helps models that attend more to the document with the answer, and read best what stands last. Where "
    "either is not so, a round puts the document anywhere; look at `rank`.",
    reference="Peysakhovich and Lerer 2023, Attention Sorting, arXiv 2310.01427",
)
def attention_sorting(
    model: Model,
    *,
    n_prompts: int = 20,
    n_documents: int = 5,
    length: int = 256,
    rounds: int = 3,
    layers: Sequence[int] | None = None,
    n_random: int = 5,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Gain of attention sorting: the answer's loss in the order given, less that after `rounds` of sorting, in nats.

    A round measures the attention of the question's last token to each document (mean over heads of `layers`) and puts
    documents in ascending order, the most attended last. No answer is looked at, so that all prompts are held out.
    Variants:
      gain      mean over prompts; null: the mean gain in random orders; p;
      accuracy  share of answers whose tokens all rank first, by round; null 0;
      rank      documents behind the one with the answer, by round, from 0 (last); null (documents - 1) / 2;
      loss      of the answer, by round, in nats; null that of equal probabilities, log d_vocab.

    Args:
        model: any loaded model.
        n_prompts: prompts, the answer's document spread over the places; the unit of the interval.
        n_documents: documents in each.
        length: tokens per prompt.
        rounds: of sorting.
        layers: whose attention counts; None: the upper half of those with attention.
        n_random: random orders.
        task: how a needle is told and asked for.
        bos: "default", "forced" or "none".
        seed: of prompts, orders and bootstrap.

    Raises:
        NotApplicable: no room for the documents.
        SiteError: layers without attention.

    Reference: Peysakhovich and Lerer 2023 (arXiv 2310.01427), section 3: 1 to 5 rounds.
    """
    chosen = calibrated_layers(model, layers)
    documents, _ = needle_documents(
        model, n_prompts=max(n_prompts, LEAST), n_documents=n_documents, length=length, task=task, bos=bos, seed=seed
    )
    orders = sorted_orders(model, documents, rounds=rounds, layers=chosen)
    scores = [each_score(model, documents.laid_out(order)) for order in orders]
    generator = torch.Generator().manual_seed(seed)
    random = [
        torch.stack([torch.randperm(documents.places, generator=generator) for _ in range(len(documents))])
        for _ in range(n_random)
    ]
    controls = [scores[0][1] - each_score(model, documents.laid_out(order))[1] for order in random]
    rows = [gain_row(scores[0][1] - scores[-1][1], controls, seed=seed)]
    middle = (documents.places - 1) / 2
    for variant, unit, of, null in (
        ("accuracy", "fraction", [right for right, _ in scores], 0.0),
        ("loss", "nats", [loss for _, loss in scores], float(np.log(model.info.d_vocab))),
        ("rank", "documents", [ranks(order, documents) for order in orders], middle),
    ):
        rows += [value_row(variant, unit, x, seed=seed, null=null, round=i) for i, x in enumerate(of)]
    data = {**documents.facts, "bos": bos, "layers": chosen, "rounds": rounds}
    data["sha256"] = tasks.fingerprint([documents.laid_out().batch])
    return Findings(rows, data, ability=needle_ability(scores[0][0], model))


def sorted_orders(
    model: Model,
    documents: Documents,
    *,
    rounds: int,
    layers: Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
) -> list[Int[Tensor, "prompt place"]]:
    """Orders of the documents, as given and after each round; the most attended of one round is last in the next."""
    index = [model.info.attention_layers.index(a) for a in calibrated_layers(model, layers)]
    orders = [documents.order()]
    for _ in range(rounds):
        mass = span_mass(model, documents.laid_out(orders[-1]), edits)[:, index].nanmean((1, 2))
        orders.append(orders[-1].gather(1, mass.argsort(dim=1, stable=True)))
    return orders


def ranks(order: Int[Tensor, "prompt place"], documents: Documents) -> np.ndarray:
    """Documents behind the one with the answer, of each prompt."""
    place = (order == documents.gold[:, None]).long().argmax(1)
    return (documents.places - 1 - place).double().numpy()
