"""Heads whose attention is drawn from the instruction to the data: a detector of distraction, or of injected text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import mannwhitneyu
from torch import Tensor

from interp import tasks
from interp.attention import Mean, Pairs
from interp.batch import Batch
from interp.errors import NotApplicable, TaskError
from interp.measurement.declaration import CAUSAL, Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, head_rows, interval_columns
from interp.model import Model
from interp.results import stats

RESAMPLES = 500
BLOCK = 16  # tokens of instruction and of data in the default prompts


@dataclass(frozen=True, eq=False)
class Spans:
    """Prompts with their instruction and their data marked; what is asked is asked at the last token."""

    batch: Batch
    instruction: Bool[Tensor, "batch pos"]
    data: Bool[Tensor, "batch pos"]


@analysis(
    name="distraction",
    presumes=(CAUSAL,),
    family="attention",
    title="Distractible heads",
    headline="auroc",
    order=260,
    stage=Stage("distractible"),
    exemptions={"planted": "instructions, of which planted models know none"},
    columns={"label": "boolean"},
    means="At the last token the head looks at the instruction, and less so when the data competes for it: its focus "
    "tells the two kinds of prompt apart on prompts it was not chosen on.",
    misleads="On the default prompts the distractor is a repeated token: heads that match tokens are found, which is "
    "not following instructions. And a head that is drawn away need not be what makes the model obey.",
    reference="Hung et al. 2024, arXiv 2411.00348 (Attention Tracker)",
)
def distraction(
    model: Model,
    *,
    normal: Spans | None = None,
    attacked: Spans | None = None,
    n_prompts: int = 48,
    deviations: float = 1.0,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Distraction: AUROC of the head's focus f = m(instruction) / (m(instruction) + m(data)), normal against attacked.

    m is the last token's attention mass. Variants:
      auroc       one row per head, on the second half of the prompts; null 0.5, p, q and label;
      separation  (mean f normal - mean f attacked) / (sd + sd) on the first half, by which heads are chosen;
      focus       mean f on normal prompts of the second half; the null is the share under uniform attention;
      detector    one row: AUROC of the mean focus of the chosen heads on the second half, against the mean over 200
                  random sets of as many heads. NaN where none is chosen.

    p tests on the second half that f drops by at most 0.05 (Mann-Whitney, one-sided); q is Benjamini-Hochberg over all
    heads. A head is labelled if it was chosen on the first half (separation above `deviations`) and q < 0.01 on the
    second. By default the prompts are random tokens: instruction, data, and last a token of the instruction again,
    which in the attacked ones stands in the data, too.

    Args:
        model: any loaded model.
        normal: prompts of one's own without distraction, see `spans`.
        attacked: the same with it; both or neither.
        n_prompts: default prompts of each kind.
        deviations: separation from which on a head is chosen.
        bos: "default", "forced" or "none", for default prompts.
        method: attention method, "fused" or "naive".
        seed: of prompts, halves, bootstrap and random sets.

    Raises:
        NotApplicable: no room for an instruction and data.
        TaskError: one kind of prompts without the other, or fewer than eight of either.

    Reference: Hung et al. 2024 (arXiv 2411.00348). They choose up to five deviations away and score
    the same heads; choosing and judging on different halves, and the test, are ours.
    """
    if (normal is None) != (attacked is None):
        raise TaskError("`normal` and `attacked` come together: the score is a comparison of the two")
    own_prompts = normal is not None
    if normal is None or attacked is None:
        normal, attacked = _default(model, n_prompts, bos, seed)
    if min(len(normal.batch.ids), len(attacked.batch.ids)) < 8:
        raise TaskError("fewer than 8 prompts of a kind: half of them choose heads, the other half judge")
    normal_focus, attacked_focus = focus(model, normal, method=method), focus(model, attacked, method=method)
    rng = np.random.default_rng(seed)
    normal_focus, attacked_focus = (x[rng.permutation(len(x))] for x in (normal_focus, attacked_focus))
    (train, test), (train_a, test_a) = (np.array_split(x, 2) for x in (normal_focus, attacked_focus))
    spread = train.std(0, ddof=1) + train_a.std(0, ddof=1)
    gap = train.mean(0) - train_a.mean(0)
    separation = np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)
    selected_heads = (separation > deviations) & (gap > MARGIN)
    p = np.asarray(mannwhitneyu(test, test_a + MARGIN, alternative="greater", axis=0).pvalue)
    q = stats.benjamini_hochberg(p)
    auroc = _auroc_interval(test, test_a, rng)
    at_rest = stats.bootstrap_mean(test, seed=seed)
    parts = [
        head_rows(model, "auroc", "fraction", **auroc, null=0.5, p=p, q=q, label=selected_heads & (q < LEVEL)),
        head_rows(model, "separation", "standard deviations", value=separation, null=0.0, n=len(train)),
        head_rows(model, "focus", "fraction", **interval_columns(at_rest), null=_share(normal)),
        _detector(test, test_a, selected_heads, rng),
    ]
    batches = [normal.batch, attacked.batch]
    data = {"task": "prompts given" if own_prompts else "random tokens, the last one from the instruction", "bos": bos}
    data |= {"n": sum(len(b.ids) for b in batches), "sha256": tasks.fingerprint(batches)}
    return Findings(pd.concat(parts, ignore_index=True), data)


def spans(model: Model, pairs: Sequence[tuple[str, str]], *, ask: str = "") -> Spans:
    """Prompts of (instruction, data) texts, joined as they are and followed by `ask`, with both spans marked.

    A token belongs to the instruction if it begins within it. Needs a fast tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise TaskError("texts were given, and this checkpoint has no tokenizer")
    rows, first, second = [], [], []
    for instruction, data in pairs:
        encoding = tokenizer(instruction + data + ask, return_offsets_mapping=True, verbose=False)
        at = torch.tensor(encoding["offset_mapping"])
        has_text = at[:, 1] > at[:, 0]  # specials hold no text
        rows.append(list(encoding["input_ids"]))
        first.append(has_text & (at[:, 0] < len(instruction)))
        second.append(has_text & (at[:, 0] >= len(instruction)) & (at[:, 0] < len(instruction) + len(data)))
    batch = Batch.of(rows)
    masks = [torch.zeros_like(batch.mask), torch.zeros_like(batch.mask)]
    for mask, parts in zip(masks, (first, second), strict=True):
        for row, part in enumerate(parts):
            mask[row, : len(part)] = part
    return Spans(batch, masks[0], masks[1])


def focus(model: Model, prompts: Spans, *, method: str = "auto") -> Float[np.ndarray, "prompt layer head"]:
    """Share of the instruction in what the last token pays to instruction and data; 0.5 where it pays nothing."""
    batch = prompts.batch
    last = batch.first + batch.mask.sum(1) - 1
    rows = torch.nn.functional.one_hot(last, batch.ids.shape[1]).bool()
    questions = {}
    for name, span in (("instruction", prompts.instruction), ("data", prompts.data)):
        prompt, key = (span & ~rows).nonzero().T
        questions[name] = Mean(Pairs(prompt, last[prompt], key), rows)
    answers = model.attention(batch, questions, method=method)
    a, b = (answers[name].transpose(0, 1).double().nan_to_num().numpy() for name in questions)
    return np.divide(a, a + b, out=np.full(a.shape, 0.5), where=a + b > 1e-9)


def _share(prompts: Spans) -> float:
    a, b = prompts.instruction.sum(1).double(), prompts.data.sum(1).double()
    return float((a / (a + b)).mean())


def _auroc_interval(
    normal: Float[np.ndarray, "prompt layer head"],
    attacked: Float[np.ndarray, "other layer head"],
    rng: np.random.Generator,
) -> dict[str, object]:
    """Columns value, se, ci_low, ci_high, n of P(normal > attacked) + P(equal) / 2, prompts of both kinds resampled."""
    wins = (normal[:, None] > attacked[None]) + 0.5 * (normal[:, None] == attacked[None])
    n, m, value = len(normal), len(attacked), wins.mean((0, 1))
    interval = stats.bootstrap(
        lambda v, w: np.einsum("sn,nmlh,sm->slh", v, wins, w, optimize=True),
        n,
        m,
        seed=rng,
        n_resamples=RESAMPLES,
        around=value,
    )
    return {"value": value, "se": interval.se, "ci_low": interval.low, "ci_high": interval.high, "n": n + m}


def _detector(
    normal: Float[np.ndarray, "prompt layer head"],
    attacked: Float[np.ndarray, "other layer head"],
    selected_heads: Bool[np.ndarray, "layer head"],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The row of `detector`."""
    flat, flat_attacked = (x.reshape(len(x), -1) for x in (normal, attacked))
    head_indices = np.flatnonzero(selected_heads.ravel())

    def auroc(heads: np.ndarray) -> float:
        a, b = flat[:, heads].mean(1)[:, None], flat_attacked[:, heads].mean(1)[None]
        return float(((a > b) + 0.5 * (a == b)).mean())

    others = np.flatnonzero(~selected_heads.ravel())
    row: dict[str, object] = {"variant": "detector", "unit": "fraction"}
    if len(head_indices):
        row |= {"value": auroc(head_indices), "n": len(flat) + len(flat_attacked)}
    if len(head_indices) and len(others) >= len(head_indices):
        row["null"] = np.mean([auroc(rng.choice(others, len(head_indices), replace=False)) for _ in range(200)])
    return pd.DataFrame([row])


def _default(model: Model, n: int, bos: str, seed: int) -> tuple[Spans, Spans]:
    """Random instruction and data, then a token of the instruction; attacked: it stands in the data as well."""
    first = tasks.bos_id(model, bos)
    start = int(first is not None)
    room = min(len(tasks.ordinary_tokens(model)), (model.info.context or 4 * BLOCK) - start - 1)
    size = min(BLOCK, room // 2)
    if size < 4:
        raise NotApplicable(f"{room} tokens leave no room for an instruction and data of at least 4 each")
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for attacked in (False, True):
        words = tasks.random_blocks(model, n=n, length=2 * size, generator=generator)
        row = torch.arange(n)
        query_token = words[row, torch.randint(size - 1, (n,), generator=generator)]
        if attacked:
            words[row, size + torch.randint(size - 1, (n,), generator=generator)] = query_token
        head = torch.full((n, start), first or 0)
        batch = Batch.of(torch.cat([head, words, query_token[:, None]], dim=1))
        position = torch.arange(batch.ids.shape[1]).expand_as(batch.ids) - start
        inside = (position >= 0) & (position < size)
        prompts.append(Spans(batch, inside, (position >= size) & (position < 2 * size)))
    return prompts[0], prompts[1]
