"""What retrieval scores are made of: rows of answers, their arg-max keys, chance, decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attention import Pairs, Statistic, TopKeys
from interp.batch import Batch
from interp.measurement.needle_answers import answers_of, chunks
from interp.model import Model
from interp.tasks.needles import Answer, Needles

WRONG = 16  # places of the haystack that stand in for the needle in the test
FOUND = 0.5  # share of a needle's tokens that must be said for it to count as found; the paper's


class Forced(NamedTuple):
    """Teacher-forced scores, means over a prompt's needles; `wrong` over all needles."""

    hits: Float[np.ndarray, "prompt layer head"]
    hits_nosink: Float[np.ndarray, "prompt layer head"]
    mass: Float[np.ndarray, "prompt layer head"]
    wrong: Float[np.ndarray, "place layer head"]


class Decoded(NamedTuple):
    """Scores of greedy decoding, one needle at a time."""

    hits: Float[np.ndarray, "needle layer head"]
    found: Bool[np.ndarray, " needle"]
    steps: int


class Chance(NamedTuple):
    """Means over needles of what uniform attention over the visible keys gives."""

    hit: float
    hit_nosink: float
    mass: float


def teacher_forced(model: Model, haystacks: Needles, *, method: str = "auto", seed: int = 0) -> Forced:
    """Hits and mass of every answer row, from one pass that keeps two keys of these rows and nothing else."""
    rows = _padded_rows(
        [[r for a in answers_of(haystacks, b) for r in a.rows] for b in range(len(haystacks.batch.ids))]
    )
    pairs = torch.tensor([(a.prompt, row, key) for a in haystacks.answers for row in a.rows for key in a.keys]).T
    questions: dict[str, Statistic] = {"top": TopKeys(rows, k=2), "mass": Pairs(*pairs)}
    answers = model.attention(haystacks.batch, questions, method=method)
    keys = _keys(answers["top"])  # layer prompt head row contest
    first = int(haystacks.batch.first[0])
    nosink = np.where(keys[..., 0] == first, keys[..., 1], keys[..., 0])
    mass = answers["mass"].double().numpy()  # layer prompt head query
    hits, clear, on_needle, wrong = [], [], [], []
    rng = np.random.default_rng(seed)
    for b in range(len(haystacks.batch.ids)):
        at, each = 0, []
        places = haystacks.hay[b].nonzero()[:, 0].tolist()
        for a in answers_of(haystacks, b):
            own = slice(at, at + len(a.rows))
            at += len(a.rows)
            best, best_nosink = keys[:, b, :, own, 0], nosink[:, b, :, own]  # layer head row
            token = haystacks.value(a)
            shifts = _elsewhere(places, len(a.keys), rng)
            each.append(
                (_hits(best, a.keys, token), _hits(best_nosink, a.keys, token), mass[:, b][..., list(a.rows)].mean(-1))
            )
            wrong.append([_hits(best, tuple(range(s, s + len(a.keys))), token) for s in shifts])
        for means, values in zip((hits, clear, on_needle), zip(*each, strict=True), strict=True):
            means.append(np.mean(values, axis=0))
    return Forced(np.stack(hits), np.stack(clear), np.stack(on_needle), np.mean(wrong, axis=0))


def decode(model: Model, haystacks: Needles, *, max_new_tokens: int = 0, method: str = "auto") -> Decoded:
    """The paper's score: each question on its own after the context, answered greedily.

    A generated token's row is the one that produced it. Rows of later tokens do not change earlier ones, so their
    arg-max keys are taken in one last pass over what was generated.
    """
    steps = max_new_tokens or 4 + max(len(a.keys) for a in haystacks.answers)
    hits = []
    is_found = []
    for some in chunks(haystacks.answers, int(haystacks.batch.mask.sum(1).max()) * model.info.d_vocab):
        prompts = [_question_prompt(haystacks, a) for a in some]
        begins = [len(p) for p in prompts]
        for _ in range(steps):
            last = torch.tensor([len(p) - 1 for p in prompts])
            for prompt, token in zip(prompts, _logits(model, Batch.of(prompts), last).argmax(-1).tolist(), strict=True):
                prompt.append(token)
        rows = torch.tensor([[begin - 1 + t for t in range(steps)] for begin in begins])
        batch = Batch.of([p[:-1] for p in prompts])
        top = model.attention(batch, {"top": TopKeys(rows, k=1)}, method=method)["top"]
        best = _keys(top)[..., 0]  # layer needle head row
        for i, (a, prompt, begin) in enumerate(zip(some, prompts, begins, strict=True)):
            new_tokens, value = prompt[begin:], set(haystacks.value(a))
            hits.append(_hits(best[:, i], a.keys, haystacks.value(a), new_tokens))
            is_found.append(len(value & set(new_tokens)) > FOUND * len(value))
    return Decoded(np.stack(hits), np.array(is_found), steps)


def chance(haystacks: Needles) -> Chance:
    """Closed form: a row at position i sees i + 1 keys, the first token among them."""
    hit, nosink, mass = [], [], []
    for a in haystacks.answers:
        start = int(haystacks.batch.first[a.prompt])
        value = haystacks.value(a)
        n_visible = np.array(a.rows) - start + 1
        mass.append(np.mean(len(a.keys) / n_visible))
        for means, keys in ((hit, n_visible), (nosink, n_visible - 1)):
            # a distinct token is missed when each of the rows that say it looks elsewhere
            p_missed = {
                t: np.prod([1 - value.count(t) / n for n, u in zip(keys, value, strict=True) if u == t]) for t in value
            }
            means.append(1 - np.mean(list(p_missed.values())))
    return Chance(float(np.mean(hit)), float(np.mean(nosink)), float(np.mean(mass)))


def reach_mask(model: Model, haystacks: Needles) -> Bool[np.ndarray, " layer"]:
    """Layers whose sliding window, if they have one, reaches from every answer back to its needle."""
    furthest = max(max(a.rows) - min(a.keys) for a in haystacks.answers)
    return np.array([window is None or window > furthest for window in model.info.windows])


def _hits(
    best: Int[np.ndarray, "layer head row"],
    keys: Sequence[int],
    value: Sequence[int],
    row_tokens: Sequence[int] | None = None,
) -> Float[np.ndarray, "layer head"]:
    """Share of the distinct tokens of `value` (at `keys`) that some row both says and looks at."""
    row_tokens = value if row_tokens is None else row_tokens
    where = {token: [k for k, t in zip(keys, value, strict=True) if t == token] for token in value}
    n_hits = np.zeros(best.shape[:2])
    for token, places in where.items():
        rows = [r for r, t in enumerate(row_tokens) if t == token]
        n_hits += np.isin(best[..., rows], places).any(-1)
    return n_hits / len(where)


def _elsewhere(places: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """Starts of spans that lie in the haystack, at random; they may overlap each other, not a needle."""
    inside = set(places)
    starts = [p for p in places if all(p + i in inside for i in range(1, size))]
    return rng.choice(starts or list(places), size=WRONG).tolist()


def _question_prompt(haystacks: Needles, answer: Answer) -> list[int]:
    """Context and one question."""
    ids = haystacks.batch.ids[answer.prompt].tolist()
    begin, end = answer.question
    return [*ids[: haystacks.context[answer.prompt]], *ids[begin:end]]


def _keys(top: Float[Tensor, "layer prompt head row k two"]) -> Int[np.ndarray, "layer prompt head row k"]:
    return top[..., 1].nan_to_num(-1).long().numpy()


def _padded_rows(rows: Sequence[Sequence[int]]) -> Int[Tensor, "prompt row"]:
    longest = max(map(len, rows))
    return torch.tensor([[*r, *[-1] * (longest - len(r))] for r in rows])


def _logits(model: Model, batch: Batch, rows: Int[Tensor, " prompt"]) -> Float[Tensor, "prompt d_vocab"]:
    logits = model.run(batch).logits
    if logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    return logits[torch.arange(len(rows)), rows].float().cpu()
