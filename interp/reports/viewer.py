"""The attention of a few heads over one prompt, to be pointed at: in a notebook, in its own file, in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from interp.errors import SchemaError, TaskError
from interp.files import atomic_write, writable_file
from interp.model import Model
from interp.parallel import cached_property
from interp.plots.frame import framed
from interp.plots.numbers import array_of
from interp.reports.facts import short_name
from interp.reports.rows import (
    ENTRIES,
    FEW,
    KEYS,
    MANY,
    STEPS,
    Head,
    HeadRows,
    Heads,
    choose,
    glance,
    kept_rows,
    measure,
    packed,
    parse_heads,
    parse_queries,
)
from interp.reports.tokens import Piece, pieces, visible
from interp.tokens.texts import token_texts

WINDOW = 256  # tokens in the page at a time
DENSE = 64  # more of them are set as running text, without a number under each
UNIT = 10_000  # probabilities travel as whole multiples of 1 / UNIT
NAMED = 12  # heads named in a repr
LISTED = 8  # keys listed beside the tokens
FULL = 8  # heads whose rows travel whole, and which have a button of their own
TIE = 0.01  # rows whose largest probabilities differ by less are alike: the later one is shown first
SLACK = 1e-3  # by which rounding may make a probability negative, or a row more than 1


class Chip(NamedTuple):
    """One token as the page first shows it: p in units of 1 / UNIT, `kept` whether it has a row of its own."""

    position: int
    pieces: list[Piece]
    name: str
    p: int
    kept: bool

    @property
    def under(self) -> str:
        """The number under the token, where it does not round to nothing."""
        return two(self.p) if self.p >= UNIT // 200 else "\u00a0"


@dataclass(frozen=True, eq=False)
class View:
    """Attention over one prompt, ready to be looked at: `_repr_html_` in a notebook, `save` for a file.

    Attributes:
        model: name of the model.
        about: what the prompt is, a sentence.
        ids: token ids. texts: text of each.
        queries: positions whose rows are kept, ascending; the same for all heads.
        heads: the rows of each head.
        targets: query -> the key that followed an earlier copy of its token, where the prompt is a known repeat.
        others: fewer keys of all other heads, for the overview. other_queries: positions of their rows.
    """

    model: str
    about: str
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    queries: tuple[int, ...]
    heads: tuple[HeadRows, ...]
    targets: Mapping[int, int] = field(default_factory=dict)
    others: tuple[HeadRows, ...] = ()
    other_queries: tuple[int, ...] = ()

    @cached_property
    def opening(self) -> int:
        """Number of the row shown first, of the first head: the one in which the most is to be seen.

        That is the largest probability of a key that is neither the first token nor the query itself, less what each
        key would get if all got the same; of rows that differ by less than 0.01 the latest.
        """
        head = self.heads[0]
        told = head.told(self.queries)
        return max(r for r, value in enumerate(told) if value >= max(told) - TIE)

    @property
    def at(self) -> int:
        """Query shown first."""
        return self.queries[self.opening]

    @property
    def span(self) -> range:
        """Tokens shown first: as many as a page holds, the query among them."""
        start = min(max(0, self.at - WINDOW // 2), max(0, len(self.ids) - WINDOW))
        return range(start, min(start + WINDOW, len(self.ids)))

    @property
    def dense(self) -> bool:
        """Whether tokens are set as running text."""
        return len(self.ids) > DENSE

    @property
    def complete(self) -> bool:
        """Whether every position has its row."""
        return len(self.queries) == len(self.ids)

    @property
    def chips(self) -> list[Chip]:
        """The tokens of the page as it opens."""
        row, queries = dict(self._row(0, self.opening)), set(self.queries)
        words = ((j, self.texts[j]) for j in self.span)
        return [Chip(j, pieces(text), visible(text), row.get(j, 0), j in queries) for j, text in words]

    @property
    def top(self) -> list[tuple[int, str, int]]:
        """(position, token, p) of the keys listed of the row shown first: those within a hundredth of the largest."""
        row = self._row(0, self.opening)[:LISTED]
        return [(j, visible(self.texts[j]), p) for j, p in row if 100 * p >= row[0][1]]

    @property
    def listed_rest(self) -> int:
        """What the keys that are not listed share."""
        return max(0, UNIT - sum(p for _, _, p in self.top))

    @property
    def summary(self) -> str:
        """The row shown first in a sentence; viewer.js says the same of any other."""
        row = self._row(0, self.opening)
        place = [f"position {j} ({visible(self.texts[j])})" for j in (self.at, *(j for j, _ in row[:2]))]
        text = f"From {place[0]} {self.heads[0].name} pays nothing to any token."
        if row:
            text = f"From {place[0]} {self.heads[0].name} looks most at {place[1]}, p = {p_str(row[0][1])}"
            text += f", then at {place[2]}, p = {p_str(row[1][1])}." if len(row) > 1 else "."
        target = self.targets.get(self.at)
        if target is not None:
            text += f" The token after the earlier copy, position {target}, gets p = {p_str(dict(row).get(target, 0))}."
        return text

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the script of the page needs, in plain values: distinct tokens once, rows as key, p, key, p ..."""
        words = {text: number for number, text in enumerate(dict.fromkeys(self.texts))}
        return {
            "words": [_alternating(text) for text in words],
            "tokens": [words[text] for text in self.texts],
            "ids": list(self.ids),
            "queries": list(self.queries),
            "targets": [[query, key] for query, key in self.targets.items()],
            "heads": [
                {"name": h.name, "note": h.note, "rows": [_flat(self._row(i, r)) for r in range(len(self.queries))]}
                for i, h in enumerate(self.heads[:FULL])
            ],
            "others": [
                *({"name": h.name, "note": h.note, "packed": self._packed(h)} for h in self.heads[FULL:]),
                *({"name": h.name, "note": "", "packed": self._packed(h), "few": True} for h in self.others),
            ],
            "other_queries": list(self.other_queries),
            "key_bytes": self.key_bytes,
            "at": self.at,
            "start": self.span.start,
            "window": WINDOW,
            "listed": LISTED,
        }

    @property
    def few(self) -> int:
        """Keys kept of each row of the heads that travel packed."""
        if self.others:
            return self.others[0].keys.shape[1]
        return max(FEW, min(MANY, ENTRIES // (len(self.heads) * len(self.queries))))

    @property
    def key_bytes(self) -> int:
        """Bytes of a key in what is packed."""
        return 2 if len(self.ids) <= 1 << 16 else 4

    @property
    def dropped(self) -> str:
        """What the page lacks of the heads beyond the first ones, in a sentence; "" where there are none."""
        if not (self.others or len(self.heads) > FULL):
            return ""
        rows = (
            ""
            if len(self.other_queries or self.queries) == len(self.ids)
            else (f"the rows of {len(self.other_queries or self.queries)} positions, and of each ")
        )
        return f"Of heads without a button above: {rows}at most {self.few} keys of a row, in steps of 1/{STEPS}."

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write one HTML file that needs no network and no other file, and return its path.

        `force` replaces a file that is not an earlier page.

        Raises:
            InterpError: the path cannot be written.
        """
        target = writable_file(path, force=force)
        page = self._page()
        write = partial(Path.write_text, data=page, encoding="utf-8", errors="backslashreplace")
        return atomic_write(target, write, force=force)

    def _packed(self, head: HeadRows) -> str:
        return packed(head, self.few, self.key_bytes)

    def _row(self, head: int, row: int) -> list[tuple[int, int]]:
        """(key, p in units) of a kept row, what rounds to nothing left out."""
        pairs = zip(self.heads[head].keys[row].tolist(), self.heads[head].p[row].tolist(), strict=True)
        whole = ((key, round(p * UNIT)) for key, p in pairs)
        return [(key, p) for key, p in whole if p > 0]

    def _page(self) -> str:
        from interp.reports.templates import environment

        return environment().get_template("viewer_page.html").render(view=self, p_str=p_str)

    def _repr_html_(self) -> str:
        """The page in a frame of its own: its style stays in, and text of the prompt cannot reach the notebook."""
        height = 420 + (28 if self.dense else 52) * (len(self.span) // (20 if self.dense else 12) + 1)
        return framed(self._page(), title="Attention", height=min(height + 420, 900))

    def __repr__(self) -> str:
        shown = [head.name for head in self.heads][:NAMED]
        names = ", ".join(shown) + (f" and {len(self.heads) - NAMED} more" if len(self.heads) > NAMED else "")
        return f"<View of {names}: {len(self.queries)} of {len(self.ids)} rows>"


def attention_view(
    model: Model,
    prompt: Any,
    *,
    heads: Heads | None = None,
    queries: Sequence[int] | None = None,
    keys: int = KEYS,
) -> View:
    """p(i, j) of a few heads over a prompt: choose a query i, see which keys j it looks at.

    Kept are whole rows of chosen queries, each as its largest probabilities and one number for the rest, measured
    inside fused attention: no n x n pattern exists at any time. A large p says where a head looks, not that the model
    uses what it finds there.

    Args:
        model: any loaded model.
        prompt: one text, or its token ids.
        heads: names such as `"L3H6"`, places (3, 6), layers (`"L3"`), `"all"`, or several of these; the four whose rows
            are the most peaked away from the first token if not given.
        queries: positions to look from, negative ones from the end; all of up to 512 tokens if not given, and of a
            longer prompt the last, the most peaked, and an even spread.
        keys: largest probabilities kept of each row.

    Raises:
        TaskError: an empty prompt, more than one, one that the model cannot be run on, or a position outside it.
        SiteError: a head that the model does not have.

    >>> import interp
    >>> interp.attention_view(interp.load("zoo:planted-induction"), [5, 6, 7, 5, 6, 7], heads="L1H0")
    <View of L1H0: 6 of 6 rows>
    """
    if keys < 1:
        raise TaskError(f"keys is {keys}; at least 1 key of each row is kept")
    parsed_heads = None if heads is None else parse_heads(model, heads)
    batch = model.batch(prompt)
    if len(batch.ids) != 1:
        raise TaskError(f"{len(batch.ids)} prompts given; a view shows one: make a view of each")
    ids = batch.ids[0][batch.mask[0]].tolist()
    positions = None if queries is None else parse_queries(list(queries), len(ids))
    view_heads, positions = choose(model, ids, parsed_heads, positions)
    why = "" if parsed_heads is not None else "One of the heads that look the most sharply away from the first token."
    about = f"A prompt of {len(ids)} token{'s' * (len(ids) != 1)}."
    notes = [why] * len(view_heads)
    view = view_of(model, ids, view_heads, queries=positions, about=about, notes=notes, keys=keys, entries=ENTRIES)
    if parsed_heads is not None:
        return view
    return replace(view, heads=tuple(sorted(view.heads, key=lambda head: -max(head.told(view.queries)))))


def pattern_view(
    pattern: Any,
    tokens: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    about: str = "Patterns of one's own.",
    keys: int = KEYS,
) -> View:
    """The attention viewer on patterns of one's own: probabilities [query key], or [head query key].

    Rows are those of probabilities: not negative, and of a sum of at most 1; what may be negative (pattern times
    gradient, the difference of two runs) is drawn by `interp.plots.pattern_map`.

    Args:
        pattern: tensor, array or nested lists.
        tokens: text of each position, of queries and keys.
        names: of the heads, shown above the tokens.
        about: what is shown, a sentence.
        keys: largest probabilities kept of each row.

    Raises:
        SchemaError: another shape, numbers that are no probabilities, or as many tokens or names as do not fit.

    >>> import torch
    >>> from interp.reports.viewer import pattern_view
    >>> pattern_view(torch.eye(3), ["a", "b", "c"])
    <View of head 0: 3 of 3 rows>
    """
    data = array_of(pattern, [("query", "key"), ("head", "query", "key")], "a pattern")
    data = data[None] if data.ndim == 2 else data
    n, size = data.shape[0], len(tokens)
    if data.shape[1:] != (size, size) or isinstance(tokens, str):
        raise SchemaError(f"patterns of {data.shape[1]} queries and {data.shape[2]} keys for {size} tokens in a list")
    if not (data.min() >= -SLACK and data.sum(-1).max() <= 1 + SLACK):
        raise SchemaError(
            "these are no probabilities (some are negative, or a row sums to more than 1): draw them by "
            "interp.plots.pattern_map"
        )
    heads = [f"head {i}" for i in range(n)] if names is None else [str(name) for name in names]
    if len(heads) != n:
        raise SchemaError(f"{len(heads)} names for {n} patterns; give the name of each")
    return View(
        model="patterns of one's own",
        about=about,
        ids=tuple(range(size)),
        texts=tuple(map(str, tokens)),
        queries=tuple(range(size)),
        heads=tuple(kept_rows(name, own, keys=keys) for name, own in zip(heads, data, strict=True)),
    )


def view_of(
    model: Model,
    ids: Sequence[int],
    heads: Sequence[Head],
    *,
    queries: Sequence[int],
    about: str,
    notes: Sequence[str],
    keys: int = KEYS,
    targets: Mapping[int, int] | None = None,
    entries: int = 0,
) -> View:
    """View of heads and positions that are known to exist, each head with the reason why it is shown.

    All other heads keep so many `entries` together, for the overview; with 0 there is none.
    """
    others, rows = glance(model, ids, heads, queries, entries=entries) if entries else ([], [])
    return View(
        model=short_name(model.info.name),
        about=about,
        ids=tuple(ids),
        texts=tuple(token_texts(ids, model.tokenizer)),
        queries=tuple(queries),
        heads=tuple(measure(model, ids, heads, queries, keys=keys, notes=notes)),
        targets=targets or {},
        others=tuple(others),
        other_queries=tuple(rows),
    )


def two(p: int) -> str:
    """Two digits of p given in units, halves upwards: as the script rounds."""
    return f"{(p + UNIT // 200) // (UNIT // 100) / 100:.2f}"


def p_str(p: int) -> str:
    """p given in units, with four digits where two would not tell it from nothing."""
    return f"{p / UNIT:.4f}" if 0 < p < UNIT // 100 else two(p)


def _alternating(text: str) -> list[str]:
    """Pieces of a token as plain text and sign in turn, plain first."""
    parts: list[str] = []
    for piece in pieces(text):
        if piece.sign != bool(len(parts) % 2):
            parts.append("")
        parts.append(piece.text)
    return parts


def _flat(row: Sequence[tuple[int, int]]) -> list[int]:
    return [number for pair in row for number in pair]
