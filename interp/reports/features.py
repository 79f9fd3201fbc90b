"""A feature of a dictionary at a glance: histogram, top examples with tokens shaded, the logits it pushes."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from interp.batch import Prompts
from interp.dictionaries import Dictionaries, Dictionary, Record, pushed_logits, random_pushes, top_examples
from interp.errors import NotApplicable, SchemaError
from interp.files import atomic_write, writable_file
from interp.model import Model
from interp.reports.facts import short_name
from interp.reports.tokens import Piece, pieces
from interp.tokens.texts import token_texts

LOGITS = 8
"""Tokens listed on either side."""
DRAWS = 100
"""Random directions that the logits are held against."""


class Chip(NamedTuple):
    """A token of an example: its text, the feature's value there, and that as a share of the largest of all."""

    pieces: list[Piece]
    value: float
    share: float
    place: bool


class Control(NamedTuple):
    """What random directions of the feature's length push furthest in one direction: over draws, mean and range.

    `reached` are the draws that push some token as far as the feature pushes any.
    """

    n: int
    mean: float
    low: float
    high: float
    reached: int


class Side(NamedTuple):
    """Tokens whose logits a feature pushes furthest up, or down, and the control of the first of them."""

    title: str
    tokens: list[tuple[list[Piece], float]]
    control: Control


@dataclass(frozen=True, eq=False)
class FeatureView:
    """A feature, ready to be looked at: `_repr_html_` in a notebook, `save` for a file, `feature.html` in a report.

    Attributes:
        model: name of the model. about: the dictionary, in a line.
        record: what a stream of text says of the feature.
        examples: tokens of the record's examples.
        sides: up and down: (token, change of its logit for one unit of the feature), strongest first, and what random
            directions of its length push; why there are none is said in `without`.
    """

    model: str
    about: str
    record: Record
    examples: tuple[tuple[Chip, ...], ...]
    sides: tuple[Side, ...] = ()
    without: str = ""

    @property
    def bars(self) -> list[tuple[float, int, float]]:
        """(lower end, tokens, share of the highest bar) of the histogram, gaps included."""
        filled = self.record.histogram
        if not filled:
            return []
        low, high = (round(4 * math.log2(x)) for x in (min(filled), max(filled)))
        counts = {round(4 * math.log2(x)): n for x, n in filled.items()}
        top = max(counts.values())
        return [(2 ** (i / 4), counts.get(i, 0), counts.get(i, 0) / top) for i in range(low, high + 1)]

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write one HTML file that needs no network and no other file, and return its path.

        `force` replaces a file that is not an earlier page.

        Raises:
            InterpError: the path cannot be written.
        """
        target, page = writable_file(path, force=force), self._page()
        write = partial(Path.write_text, data=page, encoding="utf-8", errors="backslashreplace")
        return atomic_write(target, write, force=force)

    def summary(self) -> str:
        """The same as plain text: how often, largest values with their place in brackets, logits beside the control."""
        r = self.record
        lines = [f"{self.about}. Feature {r.feature} is active at {r.n_active} of {r.n_tokens} tokens"]
        lines[0] += f" ({100 * r.density:.3g} %)"
        if self.bars:
            lines[0] += f", with values from {self.bars[0][0]:.3g} to {self.bars[-1][0] * 2**0.25:.3g}"
        for example, chips in zip(r.examples, self.examples, strict=True):
            words = [f"[{word(chip.pieces)}]" if chip.place else word(chip.pieces) for chip in chips]
            lines.append(f"{example.value:8.3g}  {' '.join(words)}")
        for side in self.sides:
            tokens, c = ", ".join(f"{word(parts)} {x:+.3g}" for parts, x in side.tokens), side.control
            lines.append(f"{side.title.lower():>8}  {tokens}")
            lines.append(
                f"{'':8}  random directions of its length: {c.mean:+.3g} ({c.low:+.3g} to {c.high:+.3g}); {c.reached} "
                f"of {c.n} push any token as far"
            )
        return "\n".join([*lines, *([self.without] if self.without else [])])

    def document(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        sides = {
            side.title.lower(): {
                "tokens": [{"token": word(parts), "logit": x} for parts, x in side.tokens],
                "random": side.control._asdict(),
            }
            for side in self.sides
        }
        record = asdict(self.record)
        record["histogram"] = [{"from": low, "tokens": n} for low, n in self.record.histogram.items()]
        for example, chips in zip(record["examples"], self.examples, strict=True):
            example["tokens"] = [word(chip.pieces) for chip in chips]
        own = {"model": self.model, "dictionary": self.about, **record, "density": self.record.density}
        return own | {"logits": sides, "without": self.without}

    def _page(self) -> str:
        from interp.reports.templates import environment

        return environment().get_template("feature_page.html").render(view=self)

    def _repr_html_(self) -> str:
        """The page in a frame of its own: its style stays in, and text of a corpus cannot reach the notebook."""
        height = min(420 + 60 * len(self.examples), 900)
        look = f"width: 100%; height: {height}px; border: 0; resize: vertical"
        page = html.escape(self._page(), quote=True)
        return f'<iframe title="Feature" sandbox="" style="{look}" srcdoc="{page}"></iframe>'

    def __repr__(self) -> str:
        """One line: feature, how often it is active, how many examples."""
        r = self.record
        return f"<FeatureView of feature {r.feature}: active at {r.n_active} of {r.n_tokens} tokens>"


def feature_view(
    model: Model,
    dictionary: Dictionary | Dictionaries,
    feature: int,
    corpus: Iterable[Prompts],
    *,
    member: int = 0,
    k: int = 10,
    length: int = 128,
    seed: int = 0,
) -> FeatureView:
    """Dashboard of a feature: how its values are spread over a corpus, where they are largest, which logits it pushes.

    Shades are of one scale for all examples. What a feature is active on is not what it does: the logits are what it
    adds to directly, beside what random directions of its length add, and ablating it (`ablate_features`) says what is
    lost without it.

    Args:
        model: that the dictionary is of.
        dictionary: whose feature, or several.
        feature: its number.
        corpus: texts or lists of token ids, read once.
        member: of a set of dictionaries, by number.
        k: examples shown.
        length: tokens of a stretch of text.
        seed: of the random directions.

    Raises:
        SchemaError: a feature or a member out of range, or text without a tokenizer.
    """
    record = top_examples(model, dictionary, feature, corpus, member=member, k=k, length=length)[feature]
    largest = max((e.value for e in record.examples), default=1.0)
    examples = tuple(
        tuple(
            Chip(pieces(text), value, max(0.0, value) / largest, i == e.at)
            for i, (text, value) in enumerate(zip(token_texts(e.ids, model.tokenizer), e.values, strict=True))
        )
        for e in record.examples
    )
    about = repr(dictionary.members[member])[1:-1]
    sides, without = _sides(model, dictionary, feature, member, seed)
    return FeatureView(short_name(model.info.name), about, record, examples, sides, without)


def word(parts: list[Piece]) -> str:
    """Text of a token, signs in it."""
    return "".join(piece.text for piece in parts)


def views_of(model: Model, views: FeatureView | Iterable[FeatureView]) -> list[FeatureView]:
    """Views for a report of a model.

    Raises:
        SchemaError: something that is no view, or a view of another model.
    """
    own, name = [views] if isinstance(views, FeatureView) else list(views), short_name(model.info.name)
    for view in own:
        if not isinstance(view, FeatureView):
            raise SchemaError(f"features are what feature_view returns; got {type(view).__name__}")
        if view.model != name:
            raise SchemaError(f"feature {view.record.feature} is of {view.model}, and the report of {name}")
    return own


def _sides(
    model: Model, dictionary: Dictionary | Dictionaries, feature: int, member: int, seed: int
) -> tuple[tuple[Side, ...], str]:
    try:
        logits = pushed_logits(model, dictionary, feature, member=member).float().cpu()
        random = random_pushes(model, dictionary, feature, member=member, n=DRAWS, seed=seed)
    except NotApplicable as error:
        return (), str(error)
    k = min(LOGITS, len(logits))
    sides = []
    for title, sign, ends in (("Up", 1, random[:, 1]), ("Down", -1, random[:, 0])):
        ids = (sign * logits).topk(k).indices.tolist()
        words = token_texts(ids, model.tokenizer)
        tokens = [(pieces(word), float(logits[i])) for word, i in zip(words, ids, strict=True)]
        reached = int((sign * ends >= sign * logits[ids[0]]).sum())
        control = Control(len(ends), float(ends.mean()), float(ends.min()), float(ends.max()), reached)
        sides.append(Side(title, tokens, control))
    return tuple(sides), ""
