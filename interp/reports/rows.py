"""Rows of attention worth keeping: a few heads, chosen queries, the largest keys of each row. Never a whole pattern."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from interp.attention import TopKeys
from interp.batch import Batch
from interp.components import head_name, parse_head
from interp.errors import SiteError, TaskError, nearest
from interp.model import Model

HEADS = 4
ROWS = 512  # a prompt of so many tokens keeps every row
PEAKED = 128  # of the rows of a longer one
SEARCHED = 4096  # rows among which the peaked ones are looked for
KEYS = 32
ENTRIES = 300_000  # probabilities that all other heads together keep
STEPS = 255  # in which probabilities of heads beyond the first ones travel
FEW, MANY = 8, 16  # of each of their rows: at least, at most

Head = tuple[int, int]
Heads = str | Head | Sequence[str | Head]
"""Heads as a caller writes them; see `parse_heads`."""
_LAYER = re.compile("L(0|[1-9][0-9]*)")


@dataclass(frozen=True, eq=False)
class HeadRows:
    """Kept rows of one head, sparse: the largest keys of each row, and what all others share.

    Attributes:
        name: of the head, `L3H6`.
        note: why it is shown; may be empty.
        keys: [row key] positions, largest probability first; -1 where the query sees fewer keys.
        p: [row key] their probabilities; 0 where there is no key.
    """

    name: str
    note: str
    keys: Int[ndarray, "row key"]
    p: Float[ndarray, "row key"]

    @property
    def rest(self) -> Float[ndarray, " row"]:
        """What is left for all other keys, and for the slot outside the prompt in models with sink logits."""
        return np.clip(1.0 - self.p.sum(1), 0.0, 1.0)

    def told(self, queries: Sequence[int]) -> list[float]:
        """How much there is to see in each row, whose query is given.

        The largest probability of a key that is neither the first token nor the query itself, less what each key would
        get if all got the same.
        """
        rows = zip(queries, self.keys, self.p, strict=True)
        largest = ((query, p[(keys > 0) & (keys != query)].max(initial=0.0)) for query, keys, p in rows)
        return [float(p) - 1 / (query + 1) for query, p in largest]


def parse_heads(model: Model, heads: Heads) -> list[Head]:
    """(layer, head) of each head named, in the order given, repeats left out.

    Written "L3H6", as (3, 6), by layer ("L3": all of its heads), as "all", or several of these.

    Raises:
        SiteError: no names, a name that is no head's or layer's, or a head that the model does not have.
    """
    info = model.info
    every = [(layer, head) for layer in info.attention_layers for head in range(info.n_heads)]
    found: list[Head] = []
    several = isinstance(heads, Iterable) and not isinstance(heads, str) and not _is_place(heads)
    for entry in heads if several else [heads]:
        found.extend(_heads_of(entry, every))
    if not found:
        raise SiteError("no heads given; leave `heads` out for those whose attention is the most peaked")
    return list(dict.fromkeys(found))


def _is_place(value: object) -> bool:
    """Whether it is one (layer, head)."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(x, Integral) for x in value)


def _heads_of(entry: object, every: Sequence[Head]) -> list[Head]:
    """Heads that one entry names."""
    if entry == "all":
        return list(every)
    first, last = head_name(*every[0]), head_name(*every[-1])
    if isinstance(entry, str) and _LAYER.fullmatch(entry):
        layer = int(entry[1:])
        own = [head for head in every if head[0] == layer]
        if not own:
            raise SiteError(f"no heads in layer {layer}: heads go from {first} to {last}")
        return own
    if not isinstance(entry, str) and not _is_place(entry):
        raise SiteError(f'heads are written "L3H6", (3, 6), "L3" or "all"; got {type(entry).__name__} {entry!r:.40}')
    layer, head = parse_head(entry) if isinstance(entry, str) else map(int, entry)  # type: ignore[call-overload]
    if (layer, head) not in every:
        name = head_name(layer, head)
        names = [head_name(*place) for place in every]
        raise SiteError(f"no head {name!r}: heads go from {first} to {last}; {nearest(name, names)}")
    return [(layer, head)]


def parse_queries(queries: Sequence[int], n: int) -> list[int]:
    """Positions in ascending order, repeats left out; negative ones count from the end.

    Raises:
        TaskError: no positions, or one outside the prompt.
    """
    for i in queries:
        if not -n <= i < n:
            raise TaskError(f"position {i} is outside the prompt; positions go from 0 to {n - 1}, or {-n} to -1")
    if not queries:
        raise TaskError("no query positions given; leave `queries` out for a selection")
    return sorted({int(i) % n for i in queries})


def choose(
    model: Model, ids: Sequence[int], heads: Sequence[Head] | None, queries: Sequence[int] | None
) -> tuple[list[Head], list[int]]:
    """Heads and query positions to show where they are not given, by how peaked their attention is.

    A row is as peaked as its largest probability, the first token left aside: what parks there has found nothing.
    Heads are those of the highest mean. Rows are all of a prompt of up to `ROWS` tokens; of a longer one the last,
    the `PEAKED` most peaked of the heads shown, and an even spread.
    """
    n = len(ids)
    if heads is not None and (queries is not None or n <= ROWS):
        return list(heads), list(range(n)) if queries is None else list(queries)
    rows = _spread(n, SEARCHED)
    first = torch.arange(n)[None] == 0
    layers = None if heads is None else sorted({layer for layer, _ in heads})
    questions = {"peak": TopKeys(torch.tensor([rows]), exclude=first)}
    run = model.attention(model.batch(Batch.of(list(ids))), questions, layers=layers)
    peak = run["peak"][:, 0, :, :, 0, 0].double().nan_to_num(0.0).numpy()  # layer head row
    if heads is None:
        order = np.argsort(-peak.mean(-1).ravel(), kind="stable")[:HEADS]
        heads = [(run.layers[i // peak.shape[1]], int(i % peak.shape[1])) for i in order]
    if queries is not None or n <= ROWS:
        return list(heads), list(range(n)) if queries is None else list(queries)
    best = np.max([peak[run.layers.index(layer), head] for layer, head in heads], axis=0)
    peaks = [rows[i] for i in np.argsort(-best, kind="stable")[:PEAKED]]
    return list(heads), sorted({*peaks, *_spread(n, ROWS - PEAKED)})


def measure(
    model: Model, ids: Sequence[int], heads: Sequence[Head], queries: Sequence[int], *, keys: int, notes: Sequence[str]
) -> list[HeadRows]:
    """The largest `keys` probabilities of each row, from one pass that stops at the last layer shown."""
    layers = sorted({layer for layer, _ in heads})
    top = TopKeys(torch.tensor([list(queries)]), k=min(keys, len(ids)))
    run = model.attention(model.batch(Batch.of(list(ids))), {"top": top}, layers=layers)
    rows = []
    for (layer, head), note in zip(heads, notes, strict=True):
        own = run["top"][run.layers.index(layer), 0, head].double().numpy()  # row key 2
        p, at = np.nan_to_num(own[..., 0]), own[..., 1].astype(np.int64)
        rows.append(HeadRows(head_name(layer, head), note, at, p))
    return rows


def glance(
    model: Model, ids: Sequence[int], shown: Sequence[Head], queries: Sequence[int], *, entries: int = ENTRIES
) -> tuple[list[HeadRows], list[int]]:
    """Rows of all heads that are not shown already, few keys of each, and the positions of these rows.

    Heads x rows x keys stay within `entries`: keys go from `MANY` down to `FEW`, then fewer rows are kept, evenly
    apart.
    """
    info = model.info
    heads = [(layer, head) for layer in info.attention_layers for head in range(info.n_heads)]
    others = [head for head in heads if head not in set(shown)]
    if not others:
        return [], []
    rows = [queries[i] for i in _spread(len(queries), max(2, entries // (len(others) * FEW)))]
    keys = min(MANY, max(FEW, entries // (len(others) * len(rows))))
    return measure(model, ids, others, rows, keys=keys, notes=[""] * len(others)), rows


def packed(head: HeadRows, few: int, width: int) -> str:
    """Rows of a head in base64: of each row the number of keys, then key (`width` bytes, low first) and p in 1/255."""
    out = bytearray()
    for keys, p in zip(head.keys[:, :few], np.rint(head.p[:, :few] * STEPS).astype(int), strict=True):
        kept = [(int(key), min(int(value), STEPS)) for key, value in zip(keys, p, strict=True) if value > 0]
        out.append(len(kept))
        for key, value in kept:
            out += key.to_bytes(width, "little") + bytes([value])
    return base64.b64encode(out).decode("ascii")


def kept_rows(name: str, pattern: Float[ndarray, "query key"], *, keys: int) -> HeadRows:
    """The largest `keys` probabilities of each row of a whole pattern, keys after the query left out."""
    visible = np.tril(np.ones(pattern.shape, dtype=bool)) | (pattern > 0)
    values = np.where(visible, np.clip(pattern, 0.0, None), -1.0)
    at = np.argsort(-values, axis=1, kind="stable")[:, :keys]
    p = np.take_along_axis(values, at, 1)
    return HeadRows(name, "", np.where(p < 0, -1, at), np.clip(p, 0.0, None))


def _spread(n: int, most: int) -> list[int]:
    """At most so many positions, evenly apart, first and last among them."""
    return sorted({round(float(i)) for i in np.linspace(0, n - 1, min(n, most))})
