"""Attention that rests in the middle of a text, taken back from it head by head: what that does to answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import tasks
from interp.attention import Received
from interp.batch import Batch
from interp.components import head_name, head_names
from interp.edits import ScaleColumns
from interp.errors import TaskError
from interp.measurement.declaration import Stage
from interp.measurement.needle_answers import each_answer, needle_ability, needle_accuracy
from interp.measurement.registry import Findings, analysis
from interp.measurement.removal import intervention_rows
from interp.measurement.rerun import Rerun
from interp.measurement.scoring import LEVEL, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.stats import Head
from interp.sites import Site
from interp.tasks import needles
from interp.tasks.haystacks import Format

LEAST = 6  # prompts: three to choose heads on, three to judge them
SPAN = "sinks"
QUERIES = 16  # that have to see a key, for it to be called a sink


@analysis(
    name="sink_calibration",
    family="sink",
    title="Heads with hidden sinks",
    headline="gain",
    order=48,
    default=False,
    stage=Stage("hidden sink"),
    two_sided=True,
    quick={"n_prompts": 8, "length": 64, "n_random": 2},
    exemptions={
        "planted": "an answer starved by a sink, which no mechanism has; tests/probes/sinks/test_sink_calibration.py "
        "plants one",
    },
    columns={"label": "boolean", "columns": "float64"},
    means="The answer's loss falls where this head's attention is taken from keys within the text that get it from "
    "everywhere: they were sinks, and what the answer needed went short.",
    misleads="Heads are tried one at a time, on the prompts that they are chosen on: the rows of the intervention "
    "table judge them together, on prompts held out. A key that gets much attention may be the very needle.",
    reference="Yu et al. 2024, ACT, arXiv 2406.15765",
)
def sink_calibration(
    model: Model,
    *,
    n_prompts: int = 24,
    length: int = 128,
    n_needles: int = 1,
    factor: float = 0.4,
    threshold: float = 0.1,
    n_random: int = 5,
    task: Format | None = None,
    bos: str = "default",
    seed: int = 0,
) -> Findings:
    """Gain of calibrating a head: the needles' loss as the model is, less that under `ScaleColumns`, in nats.

    Columns of the head's pattern that receive more than `threshold` on average over the queries that see them (sixteen
    at least), but for the first, are scaled by `factor`; the freed mass goes to the row's other keys. Variants, one row
    per head:
      gain     mean over the first half of the prompts; null: the mean gain of scaling as many other columns at random
               (all others where they are fewer); p tests over prompts that the gain is not above that; q is over heads;
               a head is labelled at q < 0.01;
      columns  how many columns of a prompt are scaled, mean over all prompts; heads without any have a gain of 0.

    With labelled heads the intervention table has needle_loss_nats and needle_accuracy on the second half of the
    prompts with all of them calibrated, beside "random columns" of the same heads, as many, and "other heads" that have
    columns to scale, where there are as many.

    Args:
        model: any loaded model.
        n_prompts: haystacks, half to choose heads on and half held out; the unit of the interval.
        length: tokens per prompt.
        n_needles: needles per prompt.
        factor: by which columns are scaled.
        threshold: mean attention received, from which on a key is a sink.
        n_random: draws of random columns, and random sets of heads.
        task: how a needle is told and asked for.
        bos: "default", "forced" or "none".
        seed: of prompts, random columns, random sets and bootstrap.

    Raises:
        NotApplicable: no room for a haystack.
        TaskError: fewer than six prompts.

    Reference: Yu et al. 2024 (arXiv 2406.15765), section 4: 900 samples to choose on; factor and threshold as there.
    """
    if n_prompts < LEAST:
        raise TaskError(
            f"{n_prompts} prompts are too few to choose heads on a half of them; at least {LEAST} are needed"
        )
    hidden = needles.hide(model, n=n_prompts, length=length, n_needles=n_needles, task=task, bos=bos, seed=seed)
    half = n_prompts // 2
    columns = sink_columns(model, hidden.batch, threshold)  # layer batch head key
    count = columns.sum(-1).double().mean(1)
    fit, held = _part(hidden, 0, half), _part(hidden, half, n_prompts)
    generator = torch.Generator().manual_seed(seed)
    gain, control = _gains(model, fit, columns[:, :half], factor, generator)
    p = np.where(np.abs(gain - control).max(0) > 0, stats.p_above(gain - control), 1.0)
    q = stats.benjamini_hochberg(p)
    label = q < LEVEL
    score = stats.bootstrap_mean(gain, seed=seed)
    parts = [
        head_rows(
            model, "gain", "nats", **interval_columns(score), null=control.mean(0), p=p, q=q, label=label,
            columns=count.numpy(),
        ),
        head_rows(model, "columns", "keys", value=count.numpy(), n=n_prompts),
    ]  # fmt: skip
    heads = _named(model, np.argwhere(label))
    pool = _named(model, np.argwhere(count.numpy() > 0))
    interventions = _judged(model, held, columns[:, half:], heads, pool, factor, n_random=n_random, seed=seed)
    data = {**hidden.describe(), "bos": bos, "factor": factor, "threshold": threshold}
    data["sha256"] = tasks.fingerprint([hidden.batch])
    able = needle_ability(each_answer(Rerun(model), held)[0], model)
    return Findings(pd.concat(parts, ignore_index=True), data, interventions, able)


def sink_columns(model: Model, batch: Batch, threshold: float) -> Tensor:
    """Keys that get more than `threshold` of the queries that see them, but the first; [layer batch head key]."""
    batch = model.batch(batch)
    mass = model.attention(batch, {"received": Received()})["received"]
    last = batch.positions.amax(1, keepdim=True)
    seen = (last - batch.positions + 1).cpu() if model.info.causal else (last + 1).expand_as(batch.ids).cpu()
    above = (mass.nan_to_num() / seen.clamp(min=1)[None, :, None] > threshold) & (seen >= QUERIES)[None, :, None]
    above[:, torch.arange(len(batch.ids)), :, batch.first.cpu()] = False
    return above & batch.mask.cpu()[None, :, None]


def _gains(
    model: Model, hidden: needles.Needles, columns: Tensor, factor: float, generator: torch.Generator
) -> tuple[Float[np.ndarray, "prompt layer head"], Float[np.ndarray, "prompt layer head"]]:
    """Fall of each prompt's loss with one head calibrated, and with as many other columns of it scaled."""
    gain = np.zeros((len(hidden.batch.ids), len(columns), columns.shape[2]))
    control = np.zeros_like(gain)
    for place, layer in enumerate(model.info.attention_layers):
        run = Rerun(model, layer)
        before = _by_prompt(hidden, each_answer(run, hidden)[1])
        for head in np.flatnonzero(columns[place].any(-1).any(0)).tolist():
            own = columns[place, :, head]
            other = random_columns(own, hidden.batch, generator)
            edit = ScaleColumns(Site("pattern", layer, head=head), factor, keys=SPAN)
            for result, keys in ((gain, own), (control, other)):
                after = each_answer(run, _with_spans(hidden, {SPAN: keys}), [edit])[1]
                result[:, place, head] = before - _by_prompt(hidden, after)
    return gain, control


def _with_spans(hidden: needles.Needles, spans: dict[str, Tensor]) -> needles.Needles:
    """The prompts with columns under their names, which stay with them however they are run."""
    return replace(hidden, batch=Batch(hidden.batch.ids, hidden.batch.mask, spans=spans))


def random_columns(own: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """As many other keys of each prompt, its first left out, [batch key]."""
    free = batch.mask.to(own.device) & ~own
    free[torch.arange(len(own)), batch.first.to(own.device)] = False
    draw = torch.rand(own.shape, generator=generator).to(own.device).masked_fill(~free, -1.0)
    rank = draw.argsort(1, descending=True).argsort(1)
    return (rank < own.sum(1, keepdim=True)) & free


def _judged(
    model: Model,
    held: needles.Needles,
    columns: Bool[Tensor, "layer batch head key"],
    heads: Sequence[Head],
    pool: Sequence[Head],
    factor: float,
    *,
    n_random: int,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of the intervention table, on prompts that heads were not chosen on; none without heads."""
    if not heads:
        return []
    run, layers = Rerun(model), model.info.attention_layers
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    def measure(some: Sequence[Head], *, random: bool = False) -> dict[str, float]:
        edits, spans = [], {}
        for layer, head in some:
            own, name = columns[layers.index(layer), :, head], f"{SPAN} of {head_name(layer, head)}"
            spans[name] = random_columns(own, held.batch, generator) if random else own
            edits.append(ScaleColumns(Site("pattern", layer, head=head), factor, keys=name))
        return needle_accuracy(run, _with_spans(held, spans), edits)

    others = [h for h in pool if h not in heads]
    n_sets = n_random if len(others) >= len(heads) else 0
    sets = [[others[i] for i in rng.choice(len(others), len(heads), replace=False)] for _ in range(n_sets)]
    clean, edited = measure(()), measure(heads)
    controls = {
        "random columns": [measure(heads, random=True) for _ in range(n_random)],
        "other heads": [measure(some) for some in sets],
    }
    name = f"calibrated: {' '.join(head_names(heads))}"
    return [
        row
        for control, measured in controls.items()
        if measured
        for row in intervention_rows(name, len(heads), control, clean, edited, measured)
    ]


def _named(model: Model, places: Int[np.ndarray, "head two"]) -> list[Head]:
    return [(model.info.attention_layers[a], int(b)) for a, b in places]


def _part(hidden: needles.Needles, first: int, last: int) -> needles.Needles:
    """Some of the prompts."""
    answers = tuple(a._replace(prompt=a.prompt - first) for a in hidden.answers if first <= a.prompt < last)
    part = slice(first, last)
    return needles.Needles(
        hidden.batch.select(part), answers, hidden.context[part], hidden.hay[part], hidden.format, hidden.source
    )


def _by_prompt(hidden: needles.Needles, values: Float[np.ndarray, " needle"]) -> Float[np.ndarray, " prompt"]:
    prompt = np.array([a.prompt for a in hidden.answers])
    return np.array([values[prompt == b].mean() for b in range(len(hidden.batch.ids))])
