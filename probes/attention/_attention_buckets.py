"""Do several rotary bases together answer better than one? Waves of attention, their troughs, and a vote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import tasks
from interp.edits import Edit, RotaryBase
from interp.errors import NotApplicable, SiteError, TaskError
from interp.measurement.documents import Layout, needle_documents
from interp.measurement.needle_answers import needle_ability
from interp.measurement.registry import Findings, analysis
from interp.model import Model
from interp.results.figures import dots
from interp.tasks.haystacks import Format
from probes.attention._document_methods import LEAST, gain_row, value_row

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

RANGE = (1.0, 3.0)
"""Bases that are drawn, in multiples of the model's own: 10,000 to 30,000 in the paper."""
CANDIDATES = 17


def _by_base(rows: pd.DataFrame) -> go.Figure:
    """Loss of the answer with each base alone."""
    from interp.results.figures import over

    return over(rows, "base", title="rotary base")


@analysis(
    name="attention_buckets",
    family="position",
    title="Several rotary bases together",
    unit="model",
    headline="gain",
    order=274,
    figure=dots,
    figures={"loss": _by_base},
    quick={"n_prompts": 6, "n_documents": 3, "length": 64, "n_bases": 3, "n_random": 2},
    exemptions={
        "planted": "a loss at certain distances, which no mechanism has; tests/probes/attention/test_documents.py has "
        "the closed form",
    },
    columns={"base": "float64", "weight": "float64"},
    means="The answer's loss falls where the next-token distributions of several bases are averaged, each weighted by "
    "its confidence: what one base has in a trough another has not.",
    misleads="An average of distributions is better than most of its parts even where the parts are noise: look at the "
    "null, bases drawn at random, and at the loss of each base. Far from its own base a model breaks.",
    reference="Chen et al. 2023, Attention Buckets, arXiv 2312.04455",
)
def attention_buckets(
    model: Model,
    *,
    n_prompts: int = 20,
    n_documents: int = 5,
    length: int = 256,
    n_bases: int = 6,
    n_random: int = 5,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Gain of attention buckets: the answer's loss with the model's own base, less that of several together, in nats.

    Bases are chosen by the closed form alone (`choose_bases`), so that all prompts are held out; the model's own is the
    first. P(y) = sum_b c_b P_b(y) / sum_b c_b, with the confidence c_b = max_y P_b(y). Variants:
      gain      mean over prompts; null: the mean gain of as many bases drawn at random from the same range; p;
      accuracy  share of answers whose tokens all rank first, together; null that of the model's own base alone;
      loss      of the answer with each base alone (column `base`), with the base's mean share of the vote (`weight`);
                null that of equal probabilities, log d_vocab.

    Args:
        model: a model with rotary embedding.
        n_prompts: prompts, the answer's document spread over the places; the unit of the interval.
        n_documents: documents in each.
        length: tokens per prompt.
        n_bases: how many together.
        n_random: random sets of bases.
        task: how a needle is told and asked for.
        bos: "default", "forced" or "none".
        seed: of prompts, bases and bootstrap.

    Raises:
        NotApplicable: no rotary embedding, or angles that are no powers of one base; no room for the documents.

    Reference: Chen et al. 2023 (arXiv 2312.04455), section 3: 6 to 7 bases.
    """
    own, planes = own_base(model)
    documents, _ = needle_documents(
        model, n_prompts=max(n_prompts, LEAST), n_documents=n_documents, length=length, task=task, bos=bos, seed=seed
    )
    layout = documents.laid_out()
    n = layout.batch.ids.shape[1]
    candidates = np.linspace(*RANGE, CANDIDATES) * own
    bases = choose_bases(own, candidates.tolist(), n_bases=n_bases, planes=planes, distance=n)
    rng = np.random.default_rng(seed)
    each = torch.stack([answer_distributions(model, layout, base_edits(b, own)) for b in bases])
    alone = [_losses(layout, p) for p in each]
    joint, weights = vote(each)
    controls = []
    for _ in range(n_random):
        drawn = [own, *rng.uniform(RANGE[0] * own, RANGE[1] * own, n_bases - 1).tolist()]
        some = torch.stack([each[0], *(answer_distributions(model, layout, base_edits(b, own)) for b in drawn[1:])])
        controls.append(alone[0] - _losses(layout, vote(some)[0]))
    rows = [gain_row(alone[0] - _losses(layout, joint), controls, seed=seed)]
    right = _right(layout, each[0])
    rows.append(value_row("accuracy", "fraction", _right(layout, joint), seed=seed, null=float(right.mean())))
    flat = float(np.log(model.info.d_vocab))
    for base, loss, weight in zip(bases, alone, weights, strict=True):
        rows.append(value_row("loss", "nats", loss, seed=seed, null=flat, base=base, weight=float(weight.mean())))
    data = {**documents.facts, "bos": bos, "own_base": own, "bases": bases}
    data["sha256"] = tasks.fingerprint([layout.batch])
    return Findings(rows, data, ability=needle_ability(right, model))


def waveform(base: float, *, planes: int, distance: int) -> Float[np.ndarray, " distance"]:
    """sum_i cos(o theta_i) / planes at distances o = 0, 1, ...: the upper bound of a rotary score, as a share of o = 0.

    theta_i = base^(-i / planes).
    """
    theta = float(base) ** (-np.arange(planes) / planes)
    return np.cos(np.arange(distance)[:, None] * theta).mean(1)


def troughs(curve: Float[np.ndarray, " distance"]) -> Int[np.ndarray, " trough"]:
    """Distances at which a curve is lower than on either side; the first of equal ones."""
    inside = (curve[1:-1] < curve[:-2]) & (curve[1:-1] <= curve[2:])
    return np.flatnonzero(inside) + 1


def choose_bases(own: float, candidates: Sequence[float], *, n_bases: int, planes: int, distance: int) -> list[float]:
    """Bases, the model's own first, each next the one whose wave is highest where those chosen are in troughs.

    At each distance a set of bases has the largest of its waves; added is the candidate that raises the mean of that
    over the troughs of the sets so far (all distances where there are none).

    Raises:
        TaskError: fewer candidates than bases.
    """
    pool = [b for b in dict.fromkeys(candidates) if not np.isclose(b, own)]
    if len(pool) < n_bases - 1:
        raise TaskError(f"{len(pool)} candidates beside the model's own base are too few for {n_bases} bases")
    waves = {b: waveform(b, planes=planes, distance=distance) for b in (own, *pool)}
    chosen = [own]
    while len(chosen) < n_bases:
        best = np.max([waves[b] for b in chosen], axis=0)
        low = troughs(best)
        low = low if len(low) else np.arange(distance)
        added = max(pool, key=lambda b: float(np.maximum(best, waves[b])[low].mean()))
        chosen.append(added)
        pool.remove(added)
    return [float(b) for b in chosen]


def own_base(model: Model) -> tuple[float, int]:
    """Base of a model's rotary embedding and its number of planes, read off the first layer's.

    Raises:
        NotApplicable: nothing turns, or the angles are not powers of one base.
    """
    from functools import partial

    from interp.edits import read_planes

    weights, layer = model.weights(), model.info.attention_layers[0]
    turn, context = partial(weights.rotation, layer), model.info.context
    half = model.info.dtype not in ("float32", "float64")
    try:
        planes = read_planes(turn, limit=context, where=f"layer {layer}", half=half)
    except SiteError as error:
        raise NotApplicable(f"several bases are of rotary embeddings: {error}") from error
    n = len(planes)
    log = planes.angle.log().numpy()
    known = planes.angle.numpy() > 1e-4  # slower ones are rounding within short contexts
    slope = np.polyfit(np.arange(n)[known], log[known], 1)[0] if known.sum() > 1 else np.nan
    if not planes.complete or not known.sum() > 1 or np.abs(log - slope * np.arange(n))[known].max() > 1e-2:  # noqa: PLR2004
        raise NotApplicable(
            f"the rotary angles of layer {layer} are not known to be powers of one base, so there is none to change"
        )
    return float(np.exp(-slope * n)), n


def base_edits(base: float, own: float) -> list[Edit]:
    """The edit to a base; none where it is the model's own."""
    return [] if np.isclose(base, own, rtol=1e-3) else [RotaryBase("pattern", base)]


def answer_distributions(model: Model, layout: Layout, edits: Sequence[Edit]) -> Float[Tensor, "row d_vocab"]:
    """Next-token distributions at the rows of all answers, one prompt after the other."""
    logits = model.run(layout.batch, edits=edits).logits
    if logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    rows = [logits[i, list(r)] for i, r in enumerate(layout.rows)]
    return torch.cat(rows).float().softmax(-1).cpu()


def vote(each: Float[Tensor, "base row d_vocab"]) -> tuple[Float[Tensor, "row d_vocab"], Float[Tensor, "base row"]]:
    """P = sum_b c_b P_b / sum_b c_b with c_b = max_y P_b(y), and the shares c_b / sum c."""
    confidence = each.amax(-1)
    share = confidence / confidence.sum(0)
    return (share[..., None] * each).sum(0), share


def _losses(layout: Layout, p: Float[Tensor, "row d_vocab"]) -> Float[np.ndarray, " prompt"]:
    """Mean of -log p over each answer's tokens."""
    token = torch.tensor([t for answer in layout.answer for t in answer])
    loss = -p.gather(1, token[:, None])[:, 0].clamp(min=torch.finfo(p.dtype).tiny).log()
    parts = loss.split([len(answer) for answer in layout.answer])
    return np.array([float(part.mean()) for part in parts])


def _right(layout: Layout, p: Float[Tensor, "row d_vocab"]) -> Float[np.ndarray, " prompt"]:
    token = torch.tensor([t for answer in layout.answer for t in answer])
    parts = (p.argmax(-1) == token).split([len(answer) for answer in layout.answer])
    return np.array([float(part.all()) for part in parts])
