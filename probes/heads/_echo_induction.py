"""Echo and induction heads, and the KV cache that keeping only theirs would need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp import tasks
from interp.attention import Mean, Offset, Statistic
from interp.batch import Batch
from interp.errors import NotApplicable
from interp.measurement.declaration import CAUSAL, IDENTIFY, REASON, PlantedTask, Stage
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import LEVEL, MARGIN, THRESHOLD, head_rows, interval_columns
from interp.model import Model
from interp.results import stats
from interp.results.results import Result

ECHO, INDUCTION = 0, 1  # how far behind an earlier occurrence of the current token the target stands
WRONG = (*range(-9, -1), *range(3, 11))


@dataclass(frozen=True, eq=False)
class _Copies:
    """Prompts [BOS] + the same block several times."""

    batch: Batch
    length: int
    start: int

    @property
    def queries(self) -> torch.Tensor:
        """Positions from the second copy on."""
        return torch.arange(self.start + self.length, self.batch.ids.shape[1])

    def targets(self, shift: int) -> dict[int, torch.Tensor]:
        """Offset -> queries that have a key so far back, behind the BOS, for every earlier copy."""
        copies = (self.batch.ids.shape[1] - self.start) // self.length
        offsets = (r * self.length - shift for r in range(1, copies))
        queries_by_offset = {o: self.queries[(self.queries - o >= self.start)] for o in offsets}
        # with a negative shift the furthest key of early queries lies before the prompt: one copy fewer is summed there
        return {o: q for o, q in queries_by_offset.items() if len(q)}


@analysis(
    name="echo_induction",
    presumes=(CAUSAL,),
    family="retrieval",
    title="Echo and induction heads (RazorAttention)",
    headline="echo",
    order=60,
    stage=Stage("echo", IDENTIFY, {"induction": Stage("induction", REASON)}),
    planted=PlantedTask("duplicate_token"),
    columns={"label": "boolean", "role": "str"},
    means="On a block said several times an echo head looks at the earlier occurrences of the current token, an "
    "induction head at what followed them. Such heads need far keys; a cache may drop what none of them reads.",
    misleads="A head of neither class here may need far keys on text: summaries, names, formats. The cache share says "
    "what the classes imply, not that the model stays as good: measure that.",
    reference="Tang et al. 2024, RazorAttention, arXiv 2407.15891",
)
def echo_induction(
    model: Model,
    *,
    n_prompts: int = 32,
    lengths: tuple[int, int] = (16, 40),
    n_lengths: int = 4,
    copies: int = 4,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Echo mass sum_r p(i, i - rT) and induction mass sum_r p(i, i - rT + 1), means over queries past the first copy.

    Prompts are a block of T distinct random tokens, several times; r runs over the earlier copies. Variants `echo` and
    `induction`, one row per head each. The null is uniform causal attention, mean of (number of targets) / (i + 1). p
    tests that the mass exceeds that at 16 wrong shifts (2 to 9 tokens off on either side) of the same head by at most
    0.05; q is Benjamini-Hochberg over all heads. A head is labelled at q < 0.01 and mass >= 0.3; `role` is "echo",
    "induction" or "local", by the larger mass where both labels hold. `kv_budget` turns roles into a share of the
    cache; provenance holds it for a few lengths.

    Args:
        model: any loaded model.
        n_prompts: prompts in all, the unit of the interval.
        lengths: lowest and highest block length T.
        n_lengths: distinct lengths drawn.
        copies: how often the block is said; fewer where the context is short.
        bos: "default", "forced" or "none".
        method: attention method, "fused" or "naive".
        seed: of prompts and bootstrap.

    Raises:
        NotApplicable: two copies of 12 tokens do not fit.

    Reference: Tang et al. 2024 (arXiv 2407.15891), section 3.1: 2500 random tokens four times there, one length; heads
    are taken by rank (the best 14 % by induction, 1 % by echo). We vary T and label against a null.
    """
    groups = _prompts(model, n=n_prompts, lengths=lengths, n_lengths=n_lengths, copies=copies, bos=bos, seed=seed)
    masses = [_masses(model, group, method=method) for group in groups]
    mass_by_shift = {shift: np.concatenate([m[shift] for m in masses]) for shift in (ECHO, INDUCTION, *WRONG)}
    wrong = np.stack([mass_by_shift[shift].mean(0) for shift in WRONG])
    rows, label, mean = {}, {}, {}
    for name, shift in (("echo", ECHO), ("induction", INDUCTION)):
        score = stats.bootstrap_mean(mass_by_shift[shift], seed=seed)
        p = stats.p_against_nulls(score.mean, wrong, margin=MARGIN)
        q = stats.benjamini_hochberg(p)
        label[name], mean[name] = (q < LEVEL) & (score.mean >= THRESHOLD), score.mean
        null = float(np.mean([_uniform(group, shift) for group in groups]))
        rows[name] = {**interval_columns(score), "null": null, "p": p, "q": q, "label": label[name]}
    induction = label["induction"] & ~(label["echo"] & (mean["echo"] > mean["induction"]))
    role = np.where(induction, "induction", np.where(label["echo"], "echo", "local"))
    table = pd.concat(
        [head_rows(model, name, "probability", **columns, role=role) for name, columns in rows.items()],
        ignore_index=True,
    )
    data = {
        "task": "random tokens, repeated",
        "lengths": [g.length for g in groups],
        "copies": copies,
        "n": sum(len(g.batch.ids) for g in groups),
        "bos": bos,
        "sha256": tasks.fingerprint([g.batch for g in groups]),
        "kv_budget": _budget(role != "local", model.info.n_kv_heads).to_dict(orient="records"),
    }
    return Findings(table, data)


def kv_budget(
    result: Result,
    *,
    lengths: Sequence[int] = (4096, 32768, 131072),
    window: int | None = None,
    sinks: int = 4,
    ratios: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """Share of the KV cache that is left: (P n + (K - P) min(n, sinks + window + 1)) / (K n) at n tokens.

    P of K key-value heads are kept whole, those that serve a head of role echo or induction; the others keep the first
    `sinks` tokens, the last `window` and one token that stands for what was dropped. Columns: tokens, kv_heads,
    kept_whole, share.

    Args:
        result: of `echo_induction`.
        lengths: tokens n.
        window: None: the paper's, max(4000, n / 5).
        sinks: first tokens kept.
        ratios: share of heads taken by induction and by echo mass, in place of the roles; the paper's are (0.14, 0.01).
    """
    info = result.provenance["model"]
    rows = {v: result.table[result.table["variant"] == v] for v in ("echo", "induction")}
    shape = (len(info["attention_layers"]), info["n_heads"])
    whole = (rows["echo"]["role"] != "local").to_numpy().reshape(shape)
    if ratios is not None:
        whole = np.zeros(shape, dtype=bool)
        for name, ratio in zip(("induction", "echo"), ratios, strict=True):
            order = np.argsort(-rows[name]["value"].to_numpy(), kind="stable")
            whole.flat[order[: round(ratio * whole.size)]] = True
    return _budget(whole, info["n_kv_heads"], lengths=lengths, window=window, sinks=sinks)


def _budget(
    whole: np.ndarray,
    n_kv_heads: int,
    *,
    lengths: Sequence[int] = (4096, 32768, 131072),
    window: int | None = None,
    sinks: int = 4,
) -> pd.DataFrame:
    groups = whole.reshape(whole.shape[0], n_kv_heads, -1).any(-1)  # consecutive heads share a key-value head
    n_whole, total = int(groups.sum()), groups.size
    rows = []
    for n in lengths:
        local = min(n, sinks + (max(4000, n // 5) if window is None else window) + 1)
        share = (n_whole * n + (total - n_whole) * local) / (total * n)
        rows.append({"tokens": n, "kv_heads": total, "kept_whole": n_whole, "share": share})
    return pd.DataFrame(rows)


def _prompts(
    model: Model, *, n: int, lengths: tuple[int, int], n_lengths: int, copies: int, bos: str, seed: int
) -> list[_Copies]:
    first = tasks.bos_id(model, bos)
    start = 0 if first is None else 1
    room = (model.info.context or 10**9) - start
    longest = min(lengths[1], room // 2, len(tasks.ordinary_tokens(model)))
    if longest < 12:
        raise NotApplicable(f"two copies of 12 distinct tokens are needed; {longest} fit")
    sizes = np.unique(np.linspace(min(max(12, lengths[0]), longest), longest, n_lengths).round().astype(int)).tolist()
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for length in sizes:
        block = tasks.random_blocks(model, n=max(1, n // len(sizes)), length=length, generator=generator)
        ids = block.repeat(1, min(copies, room // length))
        if first is not None:
            ids = torch.cat([torch.full_like(ids[:, :1], first), ids], dim=1)
        groups.append(_Copies(Batch.of(ids), length, start))
    return groups


def _masses(model: Model, group: _Copies, *, method: str) -> dict[int, Float[np.ndarray, "prompt layer head"]]:
    """Summed mass at each shift, a mean over all queries: those without an r-th key count zero for it."""
    questions: dict[str, Statistic] = {}
    weight: dict[str, float] = {}
    for shift in (ECHO, INDUCTION, *WRONG):
        for offset, queries in group.targets(shift).items():
            rows = torch.zeros_like(group.batch.mask)
            rows[:, queries] = True
            questions[f"{shift} {offset}"] = Mean(Offset(offset), rows)
            weight[f"{shift} {offset}"] = len(queries) / len(group.queries)
    answers = model.attention(group.batch, questions, method=method)
    total: dict[int, np.ndarray] = {}
    for name, share in weight.items():
        shift = int(name.split()[0])
        # a window shorter than the offset leaves no row with an answer: nothing is paid there
        mass = share * answers[name].double().nan_to_num(0.0).transpose(0, 1).numpy()
        total[shift] = total.get(shift, 0.0) + mass
    return total


def _uniform(group: _Copies, shift: int) -> float:
    """Mean over queries of (number of targets) / (i + 1)."""
    mass = sum((1 / (q.double() + 1)).sum() for q in group.targets(shift).values())
    return float(mass) / len(group.queries)
