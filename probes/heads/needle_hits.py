"""What retrieval scores are made of: rows of answers, their arg-max keys, chance, decoding, needle accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attention import Pairs, Statistic, TopKeys
from interp.batch import Batch
from interp.edits import Ablate
from interp.measurement.rerun import Rerun
from interp.model import Model
from interp.tasks.needles import Answer, Needles

T = TypeVar("T")
WRONG = 16  # places of the haystack that stand in for the needle in the test
LOGITS = 1 << 26  # logits held at a time: 256 MiB in float32
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


def teacher_forced(model: Model, hidden: Needles, *, method: str = "auto", seed: int = 0) -> Forced:
    """Hits and mass of every answer row, from one pass that keeps two keys of these rows and nothing else."""
    rows = _padded([[r for a in _of(hidden, b) for r in a.rows] for b in range(len(hidden.batch.ids))])
    pairs = torch.tensor([(a.prompt, row, key) for a in hidden.answers for row in a.rows for key in a.keys]).T
    questions: dict[str, Statistic] = {"top": TopKeys(rows, k=2), "mass": Pairs(*pairs)}
    answers = model.attention(hidden.batch, questions, method=method)
    keys = _keys(answers["top"])  # layer prompt head row contest
    first = int(hidden.batch.first[0])
    nosink = np.where(keys[..., 0] == first, keys[..., 1], keys[..., 0])
    mass = answers["mass"].double().numpy()  # layer prompt head query
    hits, clear, on_needle, wrong = [], [], [], []
    rng = np.random.default_rng(seed)
    for b in range(len(hidden.batch.ids)):
        at, each = 0, []
        places = hidden.hay[b].nonzero()[:, 0].tolist()
        for a in _of(hidden, b):
            own = slice(at, at + len(a.rows))
            at += len(a.rows)
            best, freed = keys[:, b, :, own, 0], nosink[:, b, :, own]  # layer head row
            token = hidden.value(a)
            shifts = _elsewhere(places, len(a.keys), rng)
            each.append(
                (_hits(best, a.keys, token), _hits(freed, a.keys, token), mass[:, b][..., list(a.rows)].mean(-1))
            )
            wrong.append([_hits(best, tuple(range(s, s + len(a.keys))), token) for s in shifts])
        for kept, values in zip((hits, clear, on_needle), zip(*each, strict=True), strict=True):
            kept.append(np.mean(values, axis=0))
    return Forced(np.stack(hits), np.stack(clear), np.stack(on_needle), np.mean(wrong, axis=0))


def decode(model: Model, hidden: Needles, *, max_new_tokens: int = 0, method: str = "auto") -> Decoded:
    """The paper's score: each question on its own after the context, answered greedily.

    A generated token's row is the one that produced it. Rows of later tokens do not change earlier ones, so their
    arg-max keys are taken in one last pass over what was generated.
    """
    steps = max_new_tokens or 4 + max(len(a.keys) for a in hidden.answers)
    hits = []
    found = []
    for some in _chunks(hidden.answers, int(hidden.batch.mask.sum(1).max()) * model.info.d_vocab):
        prompts = [_asked(hidden, a) for a in some]
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
            said, value = prompt[begin:], set(hidden.value(a))
            hits.append(_hits(best[:, i], a.keys, hidden.value(a), said))
            found.append(len(value & set(said)) > FOUND * len(value))
    return Decoded(np.stack(hits), np.array(found), steps)


def answered(run: Rerun, hidden: Needles, edits: Sequence[Ablate] = ()) -> dict[str, float]:
    """Share of needles answered right, and the mean loss of their tokens in nats."""
    right, loss = each_answer(run, hidden, edits)
    return {"needle_accuracy": float(right.mean()), "needle_loss_nats": float(loss.mean())}


def each_answer(
    run: Rerun, hidden: Needles, edits: Sequence[Ablate] = ()
) -> tuple[Float[np.ndarray, " needle"], Float[np.ndarray, " needle"]]:
    """For each needle, 1 if every token of its value ranks first, and the mean loss of these tokens in nats."""
    right: list[float] = []
    losses: list[float] = []
    for some in _chunks(range(len(hidden.batch.ids)), hidden.batch.ids.shape[1] * run.model.info.d_vocab):
        part = slice(some[0], some[-1] + 1)
        batch = Batch(hidden.batch.ids[part], hidden.batch.mask[part])
        logits = run(batch, edits)
        for a in (a for b in some for a in _of(hidden, b)):
            token = torch.tensor(hidden.value(a))
            picked = logits[a.prompt - some[0], list(a.rows)].float().cpu()
            right.append(float((picked.argmax(-1) == token).all()))
            losses.append(torch.nn.functional.cross_entropy(picked, token).item())
    return np.array(right), np.array(losses)


def chance(hidden: Needles) -> Chance:
    """Closed form: a row at position i sees i + 1 keys, the first token among them."""
    hit, nosink, mass = [], [], []
    for a in hidden.answers:
        start = int(hidden.batch.first[a.prompt])
        value = hidden.value(a)
        seen = np.array(a.rows) - start + 1
        mass.append(np.mean(len(a.keys) / seen))
        for kept, keys in ((hit, seen), (nosink, seen - 1)):
            # a distinct token is missed when each of the rows that say it looks elsewhere
            missed = {
                t: np.prod([1 - value.count(t) / n for n, u in zip(keys, value, strict=True) if u == t]) for t in value
            }
            kept.append(1 - np.mean(list(missed.values())))
    return Chance(float(np.mean(hit)), float(np.mean(nosink)), float(np.mean(mass)))


def reached(model: Model, hidden: Needles) -> Bool[np.ndarray, " layer"]:
    """Layers whose sliding window, if they have one, reaches from every answer back to its needle."""
    furthest = max(max(a.rows) - min(a.keys) for a in hidden.answers)
    return np.array([window is None or window > furthest for window in model.info.windows])


def _hits(
    best: Int[np.ndarray, "layer head row"],
    keys: Sequence[int],
    value: Sequence[int],
    said: Sequence[int] | None = None,
) -> Float[np.ndarray, "layer head"]:
    """Share of the distinct tokens of `value` (at `keys`) that some row both says and looks at."""
    said = value if said is None else said
    where = {token: [k for k, t in zip(keys, value, strict=True) if t == token] for token in value}
    copied = np.zeros(best.shape[:2])
    for token, places in where.items():
        rows = [r for r, t in enumerate(said) if t == token]
        copied += np.isin(best[..., rows], places).any(-1)
    return copied / len(where)


def _elsewhere(places: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """Starts of spans that lie in the haystack, at random; they may overlap each other, not a needle."""
    inside = set(places)
    starts = [p for p in places if all(p + i in inside for i in range(1, size))]
    return rng.choice(starts or list(places), size=WRONG).tolist()


def _of(hidden: Needles, prompt: int) -> Iterator[Answer]:
    return (a for a in hidden.answers if a.prompt == prompt)


def _asked(hidden: Needles, answer: Answer) -> list[int]:
    """Context and one question."""
    ids = hidden.batch.ids[answer.prompt].tolist()
    begin, end = answer.question
    return [*ids[: hidden.context[answer.prompt]], *ids[begin:end]]


def _keys(top: Float[Tensor, "layer prompt head row k two"]) -> Int[np.ndarray, "layer prompt head row k"]:
    return top[..., 1].nan_to_num(-1).long().numpy()


def _padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "prompt row"]:
    longest = max(map(len, rows))
    return torch.tensor([[*r, *[-1] * (longest - len(r))] for r in rows])


def _logits(model: Model, batch: Batch, rows: Int[Tensor, " prompt"]) -> Float[Tensor, "prompt d_vocab"]:
    logits = model.run(batch).logits
    if logits is None:
        raise RuntimeError("a run without early stop gave no logits")
    return logits[torch.arange(len(rows)), rows].float().cpu()


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """As many items at a time as keep `size` logits each within bounds."""
    step = max(1, LOGITS // size)
    return (items[i : i + step] for i in range(0, len(items), step))
