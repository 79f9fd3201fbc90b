"""Massive activations: single numbers of the stream that dwarf all others, where they come from, what they do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from interp import tasks
from interp.batch import Batch, Prompts
from interp.components import attn_name, stream_name
from interp.measurement.declaration import ABSENT, TOKEN_LOGITS
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows
from interp.measurement.scoring import THRESHOLD, interval_columns
from interp.model import Model
from interp.results import stats
from probes.sinks.massive import ABSOLUTE, TIMES_MEDIAN, TIMES_RMS, Path, Stage, Track, paths, setting, stages
from probes.sinks.places import inputs, shares
from probes.sinks.removal import loss

if TYPE_CHECKING:
    import plotly.graph_objects as go

NORMAL_MEDIAN = 0.6744897501960817
"""Median of |x| of a standard normal x."""
PERMUTATIONS = 1000
DRAWN = 8
"""Lines of the figure, those with the largest activations: one for each dimension and kind of token."""
VARIANTS = ("ratio", "activation", "rms_ratio")


def sizes(rows: pd.DataFrame) -> go.Figure:
    """Largest activations after each layer over the median of all there; massive ones are filled."""
    from interp.plots._curves import whole_step
    from interp.plots.theme import GRID, Figure, line_style, template

    figure = Figure()
    valued = rows.dropna(subset=["value"])
    by_size = valued.groupby(["dimension", "place"])["value"].max().nlargest(DRAWN)
    for i, (dimension, place) in enumerate(by_size.index):
        own = valued[(valued["dimension"] == dimension) & (valued["place"] == place)].sort_values("layer")
        layer, massive = own["layer"].astype(float).fillna(-1), own["label"].fillna(False).astype(bool)
        look: Any = line_style(i)
        symbols = ["circle" if yes else "circle-open" for yes in massive]
        look["marker"].update(symbol=symbols, size=9)
        name = f"dimension {dimension}, {place} token"
        figure.add_scatter(x=layer, y=own["value"], mode="markers+lines", name=name, **look)
    figure.update_yaxes(type="log", title_text="|x| / median |x|", showgrid=True, gridcolor=GRID, dtick=1)
    step = whole_step(valued["layer"].astype(float).fillna(-1).to_numpy())
    figure.update_xaxes(title_text="after layer (-1: embedding)", tickformat="d", dtick=step)
    figure.update_layout(template=template(), height=360)
    return figure


@analysis(
    name="massive_activations",
    presumes=(),
    family="sink",
    title="Massive activations",
    unit="dimension of the stream at a token",
    headline="ratio",
    order=42,
    figure=sizes,
    section="sinks",
    quick={"n_prompts": 8, "length": 32, "n_random": 2},
    exemptions={
        "significance": "a criterion on the size of single numbers, which are there or not; the tie to sinks has a p",
        "planted": "its rows are dimensions of the stream, and planted roles are heads and neurons; its tests hold it "
        "to `Truth.massive`",
    },
    columns={
        "label": "boolean",
        "dimension": "Int64",
        "place": "str",
        "absolute": "boolean",
        "scale_free": "boolean",
        "role": "str",
    },
    means="One dimension of the stream is thousands of times the typical number, at one kind of token, whatever the "
    "text: it acts as a bias. `written` says which component puts it there and which takes it away.",
    misleads="A dimension that is large at every token is an outlier feature and raises the yardsticks. What is set at "
    "one layer may be written again by the next. That sinks stand on massive tokens is tested, and where both stand on "
    "the first token alone, a permutation says no more than that they share it: see the rows after the first.",
    reference="Sun et al. 2024, arXiv 2402.17762",
)
def massive_activations(
    model: Model,
    *,
    prompts: Prompts | None = None,
    n_prompts: int = 16,
    length: int = 64,
    bos: str = "default",
    absolute: float = ABSOLUTE,
    times_median: float = TIMES_MEDIAN,
    times_rms: float = TIMES_RMS,
    n_random: int = 8,
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Size of a dimension of the stream at its token over the median of all: |x[t, d]| / median |x|, after each layer.

    Rows are (layer, dimension, kind of token: `place`) of everything massive, and of the three largest dimensions of
    each layer. A label needs a criterion met in half of the prompts that have such a token: |x| > 100 and at least
    1,000 medians of |x| (`absolute`), or at least 50 times the root mean square of a typical token (`scale_free`).
    Variants:
      ratio           as above, at the token of each prompt that has most of it; with null and label;
      activation      x itself;
      rms_ratio       |x| over the root mean square of a typical token;
      written         what each component adds to a massive dimension at that token; `role` says where it is born and
                      erased: who writes, or takes away, at least half of its largest value;
      sinks_massive   share of the keys with alpha > 0.3 in a layer (see `sinks`) whose token is massive before it, for
                      all keys and for those after the first (`place`); with null, p and q from permutations of the
                      massive tokens of each prompt;
      massive_sinks   share of massive tokens that are such keys.

    Null of `ratio` is what the largest of so many normal numbers is expected to be, sqrt(2 ln N) / 0.6745. The second
    table says what the loss does when what is massive is set to zero where it is first massive, and to its mean over
    the prompts, each beside random other dimensions of the same tokens. No layer's stream is kept.

    Args:
        model: any loaded model.
        prompts: text or ids of one's own, 16 tokens at least; held-out text without, random tokens where it has none.
        n_prompts: prompts; the unit of intervals.
        length: tokens of a prompt with BOS.
        bos: "default", "forced" or "none", for prompts that are made.
        absolute: smallest size of the criterion of Sun et al.
        times_median: and how many medians of |x| it must be.
        times_rms: criterion free of scale.
        n_random: sets of random dimensions that setting is compared with.
        method: attention method, "fused" or "naive".
        seed: of prompts, random dimensions, permutations and bootstrap.

    Raises:
        NotApplicable: no room for 16 distinct tokens; attention both ways within a window.
        TaskError: an unknown policy, or prompts that are too short.

    Reference: Sun et al. 2024 (arXiv 2402.17762), sections 2 and 3; the scale-free criterion and the test are ours.
    """
    batches, _ = inputs(model, prompts, n_prompts=n_prompts, length=length, bos=bos, seed=seed)
    kind = next(name for name in ("given", "text", "random") if name in batches)
    batch = batches[kind]
    found = stages(model, batch, absolute=absolute, times_median=times_median, times_rms=times_rms)
    massive = list(
        dict.fromkeys(t for stage in found for t in (*stage.absolute, *stage.scale_free) if stage.labelled(t))
    )
    followed = paths(model, batch, [*massive, *(track for stage in found for track in stage.top)])
    null = math.sqrt(2 * math.log(int(batch.mask.sum()) * model.info.d_model)) / NORMAL_MEDIAN
    rows = [_stage_row(stage, i, track, followed[track], null, seed) for i, stage, track in _listed(found, massive)]
    parts = [pd.DataFrame([{"variant": v, **r["base"], **r[v]} for r in rows]) for v in VARIANTS]
    written = [row for track in massive for row in _written(followed[track], seed)]
    tie = _ties(model, batch, found, method=method, seed=seed)
    data = {
        "task": kind,
        "n": len(batch.ids),
        "length": int(batch.mask.sum(1).max()),
        "bos": "as given" if prompts is not None else bos,
        "sha256": tasks.fingerprint([batch]),
        "criteria": {"absolute": absolute, "times_median": times_median, "times_rms": times_rms},
    }
    effects = _effects(model, batch, found, {t: followed[t] for t in massive}, n_random=n_random, seed=seed)
    return Findings(pd.concat([*parts, pd.DataFrame([*written, *tie])], ignore_index=True), data, effects)


def _listed(found: Sequence[Stage], massive: Sequence[Track]) -> list[tuple[int, Stage, Track]]:
    """Everything that has a row: massive tracks where they are massive, and the largest of each stage."""
    return [
        (i, stage, track)
        for i, stage in enumerate(found)
        for track in dict.fromkeys([*(t for t in massive if stage.labelled(t)), *stage.top])
    ]


def _stage_row(
    stage: Stage, number: int, track: Track, path: Path, null: float, seed: int
) -> dict[str, dict[str, object]]:
    """Columns of a track at a stage, and what each variant adds."""
    value = path.value[:, number]
    base = {
        "component": f"{'embed' if stage.layer is None else f'L{stage.layer}.resid_post'}[{track[0]}]",
        "layer": stage.layer,
        "dimension": track[0],
        "place": path.place,
        "position": path.position,
        "absolute": stage.absolute.get(track, 0.0) >= 1 / 2,
        "scale_free": stage.scale_free.get(track, 0.0) >= 1 / 2,
    }
    ratio = np.abs(value) / stage.median if stage.median else np.full(len(value), np.nan)
    rms = np.abs(value) / stage.rms if stage.rms else np.full(len(value), np.nan)
    return {
        "base": base,
        "ratio": {"unit": "ratio", "null": null, "label": stage.labelled(track), **_interval(ratio, seed)},
        "activation": {"unit": "activation", **_interval(value, seed)},
        "rms_ratio": {"unit": "ratio", **_interval(rms, seed)},
    }


def _interval(values: Float[np.ndarray, " prompt"], seed: int) -> dict[str, object]:
    return {name: float(x) for name, x in interval_columns(stats.bootstrap_mean(values, seed=seed)).items()}  # type: ignore[arg-type]


def _written(path: Path, seed: int) -> list[dict[str, object]]:
    """What each component adds to a massive dimension."""
    roles = {path.erased(): "erased", path.born(): "born"}
    return [
        {
            "variant": "written",
            "unit": "activation",
            "component": name,
            "layer": None if name == "embed" else int(name[1:]),
            "dimension": path.dimension,
            "place": path.place,
            "position": path.position,
            "role": roles.get(name),
            **_interval(values, seed),
        }
        for name, values in path.written.items()
    ]


def _ties(model: Model, batch: Batch, found: Sequence[Stage], *, method: str, seed: int) -> list[dict[str, object]]:
    """Whether the sinks of each layer stand on tokens that are massive before it."""
    alpha = shares(model, batch, method=method).alpha
    sink = np.nan_to_num(alpha).max(2) > THRESHOLD  # prompt layer key
    before = {None if s.layer is None else s.layer + 1: s.massive.numpy() for s in found}
    first = torch.nn.functional.one_hot(batch.first.cpu(), batch.ids.shape[1]).bool().numpy()
    mask, rows = batch.mask.cpu().numpy(), []
    for i, layer in enumerate(model.info.attention_layers):
        massive = before[layer if layer else None]
        for place, keys in (("all", mask), ("after the first", mask & ~first)):
            rows += _tie(sink[:, i] & keys, massive & keys, keys, place, layer, seed=seed)
    known = [row for row in rows if "p" in row]
    for row, q in zip(known, stats.benjamini_hochberg(np.array([r["p"] for r in known], dtype=float)), strict=True):
        row["q"] = q
    return rows


def _tie(
    sink: Bool[np.ndarray, "prompt key"],
    massive: Bool[np.ndarray, "prompt key"],
    keys: Bool[np.ndarray, "prompt key"],
    place: str,
    layer: int,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Both shares of one layer, where there are sinks and where there are massive tokens."""
    both, rows = int((sink & massive).sum()), []
    base = {"component": attn_name(layer), "layer": layer, "unit": "fraction", "place": place}
    if sink.any():
        drawn = permuted_overlap(sink, massive, keys, seed=seed)
        p = (1 + int((drawn >= both).sum())) / (1 + len(drawn))
        n = int(sink.sum())
        rows.append({"variant": "sinks_massive", "value": both / n, "null": float(drawn.mean()) / n, "p": p, "n": n})
    if massive.any():
        n = int(massive.sum())
        rows.append({"variant": "massive_sinks", "value": both / n, "n": n})
    return [base | row for row in rows]


def permuted_overlap(
    sink: Bool[np.ndarray, "prompt key"],
    massive: Bool[np.ndarray, "prompt key"],
    keys: Bool[np.ndarray, "prompt key"],
    *,
    seed: int,
    draws: int = PERMUTATIONS,
) -> Int[np.ndarray, " draw"]:
    """Keys that are both, when each prompt's massive tokens are put on as many random ones of its keys.

    Of n keys, s of them sinks and m massive, so many are both by chance: hypergeometric, prompt by prompt.
    """
    rng = np.random.default_rng(seed)
    s, m, n = sink.sum(1), massive.sum(1), keys.sum(1)
    return rng.hypergeometric(s, n - s, m, size=(draws, len(s))).sum(1)


def _effects(
    model: Model, batch: Batch, found: Sequence[Stage], massive: Mapping[Track, Path], *, n_random: int, seed: int
) -> list[dict[str, object]]:
    """Loss with everything massive set to zero, or to its mean, where it is first massive."""
    if not massive or ABSENT[TOKEN_LOGITS](model.info) or not model.info.causal:
        return []
    entry: dict[int, list[Track]] = {}
    for track in massive:
        first = next(i for i, stage in enumerate(found) if stage.labelled(track))
        entry.setdefault(first, []).append(track)
    rng, taken = np.random.default_rng(seed), {d for d, _ in massive}
    free = [d for d in range(model.info.d_model) if d not in taken]
    draws = [{t: int(rng.choice(free)) for t in massive} for _ in range(n_random if free else 0)]
    others = [paths(model, batch, [(d, t[1]) for t, d in draw.items()]) for draw in draws]
    clean, rows = {"loss_nats": loss(model, batch)}, []
    for way in ("zero", "mean"):
        own = {t: (p, t[0], p.value.mean(0)) for t, p in massive.items()}
        edited = {"loss_nats": loss(model, batch, _edits(found, entry, own, way))}
        controls = [
            {
                "loss_nats": loss(
                    model,
                    batch,
                    _edits(
                        found,
                        entry,
                        {t: (p, draw[t], other[draw[t], t[1]].value.mean(0)) for t, p in massive.items()},
                        way,
                    ),
                )
            }
            for draw, other in zip(draws, others, strict=True)
        ]
        name = f"{way}: {', '.join(f'{_stage_name(found[i])} {massive[t].name}' for i in entry for t in entry[i])}"
        rows += intervention_rows(name, len(massive), "random dimensions", clean, edited, controls)
    return rows


def _edits(found: Sequence[Stage], entry: Mapping[int, list[Track]], what: Mapping[Track, Any], way: str) -> list[Any]:
    return [
        setting(
            found[i].site,
            [what[t][0] for t in own],
            [what[t][1] for t in own],
            [0.0 if way == "zero" else float(what[t][2][i]) for t in own],
        )
        for i, own in entry.items()
    ]


def _stage_name(stage: Stage) -> str:
    return "embed" if stage.layer is None else stream_name(stage.layer)
