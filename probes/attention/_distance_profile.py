"""How a head's attention falls with distance, and whether it goes to both ends of what it sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.attention import ByDistance, Distance, Rows
from interp.batch import Prompts
from interp.errors import TaskError
from interp.measurement.declaration import CAUSAL, Stage
from interp.measurement.prompts import PromptSet, own_prompts, prompt_set, visible_keys
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, head_rows, interval_columns
from interp.model import Model
from interp.results import stats

if TYPE_CHECKING:
    import plotly.graph_objects as go

BINS = 48
"""Stretches of what a row sees, of equal length, at most: the units that the permutation null exchanges."""
ROWS = 16
"""Last queries of each prompt that are asked how they share their attention between thirds."""
LARGEST = 1 << 17
"""Probabilities of a head that are kept at a time."""
CURVE = 24
"""Rows of the table that a curve by distance takes at most: distances are averaged in runs of equal length."""
RESAMPLES = 400
TROUGH = 0.25
"""Depth from which on a dip of the curve is a trough, as a share of uniform attention."""


def _lines(rows: pd.DataFrame) -> go.Figure:
    """Attention against distance, for the heads with the most of it."""
    from interp.plots.attention import profile_lines

    return profile_lines(rows, axis="tokens back")


@analysis(
    name="distance_profile",
    presumes=(CAUSAL,),
    family="attention",
    title="Heads that look at both ends",
    headline="u_shape",
    order=211,
    default=False,
    stage=Stage("both ends"),
    figures={"by_distance": _lines},
    quick={"n_prompts": 8, "n_permutations": 32},
    exemptions={"planted": "where a head looks, whatever for: a sink with a head's own neighbour does"},
    columns={"label": "boolean"},
    means="Late queries give the first and the last third of what they see more than the middle third (`u_shape`). "
    "`resolution` says how well near keys are told from the next ones, `reach` how far the head looks.",
    misleads="A sink on the first token is half of a U by itself: read `u_shape_without_first` beside it. On text, "
    "position and content are mixed, since what matters stands near; random tokens, the default, have no such content. "
    "A rough curve has resolution as a steep one has.",
    reference="Hsieh et al. 2024, arXiv 2406.16008 (U-shape); Sun et al. 2022, arXiv 2212.10554 (resolution)",
)
def distance_profile(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 64,
    length: int = 128,
    n_permutations: int = 200,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """U-shape: min(f, l) - m, the shares of attention that last queries give to first, middle and last third of keys.

    Variants:
      u_shape                one row per head, with null, p, q and label: 0 for uniform attention and for a head that
                             looks at one end alone, at most 1/2;
      u_shape_without_first  the same with the first token left out and the rest scaled to sum to one again;
      first_third, middle_third, last_third  the shares; the null is 1/3, less where a window hides keys;
      by_distance            one row per head and run of distances (`position`, its nearest): mean p(i, i - d) over the
                             second half of queries, which have them all; the null is uniform attention there;
      reach                  sum_j p_ij (i - j) over (i + 1) / 2; the null is uniform attention, about 1;
      resolution             R = sum_d a_d (a_d - a_(d+1)) / (sum_d a_d)^2 with a_d = e^(s_d) the mean p(i, i - d): 0
                             for a flat curve, (1 - r)^2 / (1 + r) for one that falls by r a token;
      trough                 depth min(highest nearer, highest further) - a_d of the deepest dip of by_distance, as a
                             share of uniform attention; `position` its distance. The three places are found on one half
                             of the prompts and read on the other, both ways, their mean, so that noise makes no depth;
                             from 0.25 on it is a trough (`label`). NA for one prompt.

    Queries of u_shape are the last 16 of each prompt, half of it at most, fewer beyond 8192 tokens; what each sees is
    cut into at most 48 stretches, and thirds are made of them. The null exchanges each prompt's stretches
    `n_permutations` times: their mean. p tests that u_shape exceeds them by at most 0.05 (Student's prediction
    interval); q is Benjamini-Hochberg over all heads. A head is labelled at q < 0.01 and u_shape >= 0.1. Attention by
    distance is summed in tiles, in O(n) memory.

    Args:
        model: any loaded model.
        prompts: text or ids to measure on, cut to the shortest; distinct random tokens without.
        n_prompts: random prompts, the unit of the interval.
        length: tokens per random prompt; shortened to context and vocabulary.
        n_permutations: draws of the null.
        bos: "default", "forced" or "none", for random prompts.
        method: attention method, "fused" or "naive".
        seed: of prompts, permutations and bootstrap.

    Raises:
        NotApplicable: no room for 16 tokens.
        TaskError: prompts of fewer than 16 tokens, or fewer than 5 permutations.

    Reference: Hsieh et al. 2024 (arXiv 2406.16008), section 2: attention to documents by their place; Sun et al. 2022
    (arXiv 2212.10554), section 3.1: resolution, there of expected scores. The index and its test are ours.
    """
    if n_permutations < stats.LEAST_NULLS:
        raise TaskError(f"{n_permutations} permutations are too few for a test; at least {stats.LEAST_NULLS}")
    data = _prompts(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    rest, share = stretches(model, data, method=method)
    curve, reach = curves(model, data, method=method)
    parts = [
        _u_shape_rows(model, "u_shape", share, n_permutations=n_permutations, seed=seed, test=True),
        _u_shape_rows(model, "u_shape_without_first", rest, n_permutations=n_permutations, seed=seed, test=False),
        *_third_rows(model, data, share, seed=seed),
        *_curve_rows(model, data, curve, seed=seed),
        _mean_rows(model, "reach", "ratio", reach, seed=seed, null=_uniform_reach(model, data)),
        _resolution_rows(model, curve, seed=seed),
        _trough_rows(model, data, curve),
    ]
    return Findings(pd.concat(parts, ignore_index=True), data.data | {"queries": _n_rows(data)})


def _prompts(model: Model, prompts: Prompts | None, *, n_prompts: int, length: int, bos: str, seed: int) -> PromptSet:
    """Prompts of one length without padding: a caller's own are cut to the shortest."""
    if prompts is None:
        return prompt_set(model, None, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    return own_prompts(model, prompts, least=16).cut()


def _n_rows(data: PromptSet) -> int:
    """16 rows, fewer where prompts are short or so long that their probabilities would fill the memory."""
    n = data.batch.ids.shape[1]
    return min(ROWS, n // 2, max(4, LARGEST // n))


def stretches(
    model: Model, data: PromptSet, *, method: str = "auto"
) -> tuple[Float[np.ndarray, "prompt layer head bin"], Float[np.ndarray, "prompt layer head bin"]]:
    """Attention of the last queries by stretches of what they see, their mean: without the first token, and with it.

    Stretch b of row i holds the keys j with floor(B j / (i + 1)) = b; B is a multiple of 3, at most 48. Without the
    first token the rest is scaled to sum to one; a row with less than 0.001 there has no say.
    """
    n = data.batch.ids.shape[1]
    rows = torch.arange(n - _n_rows(data), n)
    bins = min(BINS, int(rows[0]) // 3 * 3)
    asked = {"rows": Rows(rows.expand(len(data.batch.ids), -1))}
    p = model.attention(data.batch, asked, method=method)["rows"]  # layer prompt head row key
    place = torch.arange(n)[None] * bins // (rows[:, None] + 1)
    inside = torch.nn.functional.one_hot(place.clamp(max=bins - 1), bins).to(p)  # row key bin; later keys have p = 0
    whole = torch.einsum("lbhik,ikx->blhix", p, inside)
    left = torch.einsum("lbhik,ikx->blhix", p[..., 1:], inside[:, 1:])
    mass = left.sum(-1, keepdim=True)
    left = (left / mass).masked_fill(mass < 1e-3, torch.nan).nanmean(-2)  # noqa: PLR2004
    return left.double().numpy(), whole.mean(-2).double().numpy()


def thirds(share: Float[np.ndarray, "*head bin"]) -> Float[np.ndarray, "*head third"]:
    """Shares of the first, middle and last third."""
    return share.reshape(*share.shape[:-1], 3, -1).sum(-1)


def u_shape(share: Float[np.ndarray, "*head third"]) -> Float[np.ndarray, "*head"]:
    """min(first, last) - middle."""
    return np.minimum(share[..., 0], share[..., 2]) - share[..., 1]


def permuted(
    share: Float[np.ndarray, "prompt layer head bin"], *, n: int, seed: int
) -> Float[np.ndarray, "draw layer head"]:
    """U-shape of the mean over prompts, the stretches of each prompt in another order each time."""
    generator, (size, *_, bins) = np.random.default_rng(seed), share.shape
    total = np.zeros((n, *share.shape[1:3], 3))
    for prompt in share:
        order = generator.permuted(np.tile(np.arange(bins), (n, 1)), axis=1)
        third = np.eye(3)[order * 3 // bins]  # draw bin third
        total += np.einsum("lhx,nxt->nlht", prompt, third)
    return u_shape(total / size)


def curves(
    model: Model, data: PromptSet, *, method: str = "auto"
) -> tuple[Float[np.ndarray, "prompt layer head distance"], Float[np.ndarray, "prompt layer head"]]:
    """Mean p(i, i - d) over the second half of queries, which have every d asked for; and their reach."""
    n = data.batch.ids.shape[1]
    late = (torch.arange(n) >= n // 2).expand(data.batch.ids.shape)
    asked = {"by distance": ByDistance(late.float()), "distance": Distance()}
    answers = model.attention(data.batch, asked, method=method)
    curve = answers["by distance"][..., : n // 2 + 1].transpose(0, 1).double().numpy()
    half = (torch.arange(n) + 1) / 2
    reach = (answers["distance"] / half)[..., n // 2 :].mean(-1).transpose(0, 1).double().numpy()
    return curve, reach


def resolution(curve: Float[np.ndarray, "*head distance"]) -> Float[np.ndarray, "*head"]:
    """R = sum_d a_d (a_d - a_(d+1)) / (sum_d a_d)^2 of a curve by distance; distances beyond a window count as 0."""
    a = np.nan_to_num(curve)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a[..., :-1] * (a[..., :-1] - a[..., 1:])).sum(-1) / a.sum(-1) ** 2


def runs(curve: Float[np.ndarray, "*head distance"]) -> tuple[Float[np.ndarray, "*head run"], Int[np.ndarray, " run"]]:
    """A curve averaged in runs of equal length, at most `CURVE` of them, and the nearest distance of each.

    What is left over at the far end is left out.
    """
    width = -(-curve.shape[-1] // CURVE)
    n = curve.shape[-1] // width
    return curve[..., : n * width].reshape(*curve.shape[:-1], n, width).mean(-1), np.arange(n) * width


def troughs(curve: Float[np.ndarray, "*head run"]) -> Float[np.ndarray, "*head run"]:
    """Depth of a curve at each place: min(highest nearer, highest further) - a_d, 0 where none is higher."""
    a = np.nan_to_num(curve)
    nearer = np.maximum.accumulate(a, axis=-1)
    further = np.flip(np.maximum.accumulate(np.flip(a, -1), axis=-1), -1)
    return np.minimum(nearer, further) - a


def _u_shape_rows(
    model: Model,
    variant: str,
    share: Float[np.ndarray, "prompt layer head bin"],
    *,
    n_permutations: int,
    seed: int,
    test: bool,
) -> pd.DataFrame:
    """The index of the mean over prompts, its bootstrap interval, and what permutations give."""
    known = np.nan_to_num(share)
    value = u_shape(thirds(known).mean(0))
    nulls = permuted(known, n=n_permutations, seed=seed)
    columns = _of_mean(lambda x: u_shape(thirds(x)), known, seed=seed) | {"null": nulls.mean(0)}
    if test:
        p = stats.p_against_nulls(value, nulls, margin=MARGIN)
        q = stats.benjamini_hochberg(p)
        columns |= {"p": p, "q": q, "label": (q < LEVEL) & (value >= 2 * MARGIN)}
    return head_rows(model, variant, "fraction", **columns)


def _of_mean(
    statistic: Callable[[np.ndarray], np.ndarray], values: Float[np.ndarray, "prompt layer head x"], *, seed: int
) -> dict[str, object]:
    """A statistic of the mean over prompts: value, se and interval by bootstrap, n; one prompt has no interval."""
    size, value = len(values), statistic(values.mean(0))
    if size < 2:  # noqa: PLR2004
        return {"value": value, "n": size}
    flat = values.reshape(size, -1)

    def draws(weights: np.ndarray) -> np.ndarray:
        return np.stack([statistic((w @ flat).reshape(values.shape[1:])) for w in weights])

    drawn = stats.bootstrap(draws, size, seed=seed, n_resamples=RESAMPLES, around=value)
    return {"value": value, "se": drawn.draws.std(0), "ci_low": drawn.low, "ci_high": drawn.high, "n": size}


def _mean_rows(model: Model, variant: str, unit: str, values: np.ndarray, *, seed: int, **more: object) -> pd.DataFrame:
    return head_rows(model, variant, unit, **interval_columns(stats.bootstrap_mean(values, seed=seed)), **more)


def _third_rows(
    model: Model, data: PromptSet, share: Float[np.ndarray, "prompt layer head bin"], *, seed: int
) -> list[pd.DataFrame]:
    """Shares of the thirds, beside those of uniform attention to the keys that are seen."""
    n = data.batch.ids.shape[1]
    rows = np.arange(n - _n_rows(data), n)
    bins, null = share.shape[-1], []
    for window in (w or n for w in model.info.windows):
        keys = [np.arange(max(0, i + 1 - window), i + 1) * bins // (i + 1) * 3 // bins for i in rows]
        null.append(np.mean([np.bincount(k, minlength=3) / len(k) for k in keys], axis=0))
    shares, nulls = thirds(share), np.repeat(np.array(null)[:, None], model.info.n_heads, axis=1)
    names = ("first_third", "middle_third", "last_third")
    return [
        _mean_rows(model, name, "fraction", shares[..., i], seed=seed, null=nulls[..., i])
        for i, name in enumerate(names)
    ]


def _curve_rows(
    model: Model, data: PromptSet, curve: Float[np.ndarray, "prompt layer head distance"], *, seed: int
) -> list[pd.DataFrame]:
    binned, places = runs(curve)
    null = _uniform(model, data)
    return [
        _mean_rows(model, "by_distance", "probability", binned[..., i], seed=seed, null=null, position=int(place))
        for i, place in enumerate(places)
    ]


def _uniform(model: Model, data: PromptSet) -> Float[np.ndarray, "layer head"]:
    """Uniform attention of the second half of queries to each key that they see."""
    half = data.batch.ids.shape[1] // 2
    null = np.array([(1 / seen[:, half:]).mean() for seen in visible_keys(model, data.batch)])
    return np.repeat(null[:, None], model.info.n_heads, axis=1)


def _uniform_reach(model: Model, data: PromptSet) -> Float[np.ndarray, "layer head"]:
    """Mean of (keys seen - 1) / (i + 1): uniform attention over them."""
    n = data.batch.ids.shape[1]
    place = np.arange(n // 2, n) + 1
    null = np.array([((seen[:, n // 2 :] - 1) / place).mean() for seen in visible_keys(model, data.batch)])
    return np.repeat(null[:, None], model.info.n_heads, axis=1)


def _resolution_rows(
    model: Model, curve: Float[np.ndarray, "prompt layer head distance"], *, seed: int
) -> pd.DataFrame:
    """R of the mean curve, with a bootstrap interval over prompts; the null is a flat curve."""
    return head_rows(model, "resolution", "fraction", **_of_mean(resolution, np.nan_to_num(curve), seed=seed), null=0.0)


def _trough_rows(model: Model, data: PromptSet, curve: Float[np.ndarray, "prompt layer head distance"]) -> pd.DataFrame:
    """The deepest dip of each head's mean curve, by runs of distances, as a share of uniform attention."""
    binned, places = runs(np.nan_to_num(curve))
    position = places[troughs(binned.mean(0)).argmax(-1)]
    value = trough_depth(binned) / _uniform(model, data)
    label = pd.Series((value >= TROUGH).ravel(), dtype="boolean").mask(np.isnan(value).ravel())
    columns = {"value": value, "null": 0.0, "n": len(curve), "position": position}
    return head_rows(model, "trough", "share of uniform", **columns).assign(label=label)


def trough_depth(curve: Float[np.ndarray, "prompt *head run"]) -> Float[np.ndarray, "*head"]:
    """Depth of the deepest dip: place and both sides found on one half of the prompts, read on the other; their mean.

    NaN for one prompt.
    """
    if len(curve) < 2:  # noqa: PLR2004
        return np.full(curve.shape[1:-1], np.nan)
    halves = curve[::2].mean(0), curve[1::2].mean(0)
    return (_depth_at(halves[0], halves[1]) + _depth_at(halves[1], halves[0])) / 2


def _depth_at(
    found: Float[np.ndarray, "*head run"], read: Float[np.ndarray, "*head run"]
) -> Float[np.ndarray, "*head"]:
    """Depth in one curve of the dip that is deepest in another, between the sides that are highest there."""
    at, run = troughs(found).argmax(-1, keepdims=True), np.arange(found.shape[-1])
    nearer = np.where(run <= at, found, -np.inf).argmax(-1, keepdims=True)
    further = np.where(run >= at, found, -np.inf).argmax(-1, keepdims=True)
    low, left, right = (np.take_along_axis(read, place, -1)[..., 0] for place in (at, nearer, further))
    return np.minimum(left, right) - low
