"""Modular addition: how a model is asked for (a + b) mod p, whatever its layout, and prompts of it in pairs.

A model with a tokenizer is asked in words, one without in ids, the numbers 0 to p - 1 first as all models of this task
have them. What is not said (the modulus, where the operands stand, what else is in the prompt) is found out by trying.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor

from interp.batch import Batch
from interp.data import is_held_out
from interp.edits import Edit
from interp.errors import NotApplicable, TaskError, nearest
from interp.model import Model, Reducer
from interp.shapes import brief
from interp.sites import Site
from interp.tasks.arithmetic import FIRST
from interp.tasks.prompt import PromptTask, collate
from interp.tasks.source import Document, checkpoint_tasks
from interp.tasks.spell import Example, Speller

FAMILY = "modular_addition"
CORRUPTIONS = ("operands", "second_operand")
"""operands: both are others. second_operand: that one alone."""
METRIC = "logit_diff"
NUMBER = "number"
"""Word list of a document: the numbers 0 to p - 1, in order."""
KEY = "{x} + {y}"
LEAST, MOST = 3, 600
"""Moduli that are asked about: with two numbers there is one frequency alone, with many a table of sums is large."""
BESIDE = 4
"""Tokens that are no number, at most, in a vocabulary without a tokenizer."""
FORMS = ("ab", "abx", "xab", "axb", "axby", "xaby", "xaxb", "xaxby", "xabxy", "zaxby")
"""Layouts that are tried: a and b the operands, other letters tokens that are no numbers."""
TEXTS = ("{a} + {b} =", "{a}+{b}=", "{a} {b} =", "{a} {b}")
PAIRS = 256
"""Pairs on which a layout is tried, at most."""
ACCURACY = 0.75
"""What a layout that was not given has to reach on them."""
CHANCE = 0.01
"""Probability of as much by guessing, over all layouts tried, that it has to stay below."""
ROWS, ENTRIES = 4096, 2**26
"""Prompts, and logits, that are made at one time."""


@dataclass(frozen=True, eq=False)
class Addition:
    """How a model is asked for a sum modulo p.

    Attributes:
        template: ids of the prompt; "a" and "b" stand for the operands.
        numbers: ids of 0 to p - 1 as operands. answers: those whose logits answer.
        accuracy: share of `n_tried` random pairs that are right.
    """

    template: tuple[int | str, ...]
    numbers: Int[Tensor, " residue"]
    answers: Int[Tensor, " residue"]
    accuracy: float = float("nan")
    n_tried: int = 0

    __repr__ = brief

    @property
    def modulus(self) -> int:
        """p."""
        return len(self.numbers)

    @property
    def places(self) -> tuple[int, int]:
        """Positions of the two operands."""
        return self.template.index("a"), self.template.index("b")

    def prompts(self, a: Int[Tensor, " prompt"], b: Int[Tensor, " prompt"]) -> Int[Tensor, "prompt pos"]:
        """Ids of the prompts of pairs of residues."""
        slots = {"a": self.numbers[a], "b": self.numbers[b]}
        columns = [slots[t] if isinstance(t, str) else torch.full_like(a, t) for t in self.template]
        return torch.stack(columns, 1)

    def pairs(self) -> tuple[Int[Tensor, " prompt"], Int[Tensor, " prompt"]]:
        """All pairs of residues, a before b."""
        every = torch.arange(self.modulus)
        return every.repeat_interleave(self.modulus), every.repeat(self.modulus)

    def n_at_once(self, model: Model) -> int:
        """Prompts of one pass: as many as have some 64 million logits at all their tokens, 4096 at most."""
        return max(1, min(ROWS, ENTRIES // (len(self.template) * model.info.d_vocab)))

    def logits(
        self, model: Model, a: Int[Tensor, " prompt"], b: Int[Tensor, " prompt"], *, edits: Sequence[Edit] = ()
    ) -> Float[Tensor, "prompt residue"]:
        """Logits of the residues behind each prompt, on the CPU."""
        return self.run(model, a, b, edits=edits)[0]

    @torch.no_grad()
    def run(
        self,
        model: Model,
        a: Int[Tensor, " prompt"],
        b: Int[Tensor, " prompt"],
        *,
        edits: Sequence[Edit] = (),
        capture: Sequence[Site] = (),
    ) -> tuple[Float[Tensor, "prompt residue"], dict[Site, Float[Tensor, "prompt *rest"]]]:
        """Logits of the residues behind each prompt, and what sites [batch pos ...] have at its last token; on the CPU.

        Prompts run `n_at_once`; edits that are of rows are of all of them, so give no more.
        """
        parts: list[Tensor] = []
        acts: dict[Site, list[Tensor]] = {site: [] for site in capture}
        for rows in self.prompts(a, b).split(self.n_at_once(model)):
            last: Mapping[Site | str, Reducer | None] = {site: _at_last for site in capture}
            run = model.run(Batch.of(rows), edits=edits, capture=last)
            assert run.logits is not None  # no `stop`
            parts.append(run.logits[:, -1].float().cpu()[:, self.answers])
            for site, own in acts.items():
                own.append(run.acts[site])
        return torch.cat(parts), {site: torch.cat(own) for site, own in acts.items()}

    def table(self, model: Model) -> Float[Tensor, "a b c"]:
        """Logit of every residue c for every pair of operands.

        Raises:
            NotApplicable: every residue has the same logit, whatever the operands.
        """
        return self.table_with(model, ())[0]

    def table_with(
        self, model: Model, capture: Sequence[Site]
    ) -> tuple[Float[Tensor, "a b c"], dict[Site, Float[Tensor, "a b *rest"]]]:
        """`table`, and what sites have at the last token of every pair, by the same passes.

        Raises:
            NotApplicable: every residue has the same logit, whatever the operands.
        """
        logits, acts = self.run(model, *self.pairs(), capture=capture)
        if bool((logits == logits[..., :1]).all()):
            raise NotApplicable(
                "all residues have the same logit whatever the operands: run without the edit that levels them"
            )
        square = (self.modulus, self.modulus)
        return logits.unflatten(0, square), {site: x.unflatten(0, square) for site, x in acts.items()}

    def tried(self, model: Model, *, seed: int) -> Addition:
        """The same, with its accuracy on random pairs, or on all where they are few."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(self.modulus**2, generator=generator)[:PAIRS]
        a, b = chosen // self.modulus, chosen % self.modulus
        hits = self.logits(model, a, b).argmax(1) == (a + b) % self.modulus
        return replace(self, accuracy=float(hits.float().mean()), n_tried=len(chosen))

    def chance(self, n_layouts: int) -> float:
        """Probability that one of so many layouts is as accurate by guessing: a binomial tail times their number."""
        right = round(self.accuracy * self.n_tried)
        return min(1.0, n_layouts * float(binom.sf(right - 1, self.n_tried, 1 / self.modulus)))

    def facts(self) -> dict[str, object]:
        """Plain values for a result's provenance."""
        template = " ".join(str(t) if isinstance(t, int) else f"{{{t}}}" for t in self.template)
        return {"modulus": self.modulus, "template": template, "accuracy": self.accuracy, "n_tried": self.n_tried}


def _at_last(x: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch *rest"]:
    return x[:, -1].float().cpu()


def addition(model: Model, *, modulus: int | None = None, template: str | None = None, seed: int = 0) -> Addition:
    """How this model is asked for (a + b) mod p; what is not given is found out by trying it on random pairs.

    With a tokenizer the numbers are its words "0" to "p - 1", as `tasks.json` of the checkpoint says or as many as are
    one token; without one they are the ids 0 to p - 1, and up to four more ids are separators.

    Args:
        model: any loaded model.
        modulus: p; from the vocabulary where it is not given.
        template: "{a} + {b} =" with a tokenizer, "{a} {b} 113" in ids without; tried out where it is not given.
        seed: of the pairs.

    Raises:
        NotApplicable: no layout makes the model add: none that was tried is right for three pairs in four, or with so
            few pairs that one of them is by guessing.
        TaskError: a template without {a} and {b} once each, or with what is no id, or a modulus outside 3 to 600.
    """
    if modulus is not None and not LEAST <= modulus <= MOST:
        raise TaskError(f"modulus {modulus}: from {LEAST} to {MOST}")
    if template is not None and sorted(re.findall(r"\{\w*\}|[{}]", template)) != ["{a}", "{b}"]:
        raise TaskError(f"template {template!r}: write {{a}} and {{b}} where the operands stand, once each")
    layouts = _by_ids if model.tokenizer is None else _by_words
    candidates = list(layouts(model, modulus, template))
    best = max((c.tried(model, seed=seed) for c in candidates), key=lambda c: c.accuracy, default=None)
    if best is None:
        raise NotApplicable(
            "no numbers of one token each stand in a layout that fits: give `modulus` and `template`, the modulus at "
            "most the number of such tokens"
        )
    chance = best.chance(len(candidates))
    if (best.accuracy < ACCURACY or chance >= CHANCE) and (modulus is None or template is None):
        guess = f", which one of so many is by guessing with probability {chance:.2g}" if chance >= CHANCE else ""
        raise NotApplicable(
            f"the model does not add modulo a number: of {len(candidates)} layouts the best is right for "
            f"{best.accuracy:.0%} of {best.n_tried} pairs{guess}; give `modulus` and `template` if it has another"
        )
    return best


def _by_ids(model: Model, modulus: int | None, template: str | None) -> Iterator[Addition]:
    """Layouts of a model without a tokenizer."""
    info = model.info
    columns = info.d_vocab if info.n_logits is None else info.n_logits
    moduli = range(info.d_vocab - BESIDE, info.d_vocab + 1) if modulus is None else (modulus,)
    for p in moduli:
        if not LEAST <= p <= min(columns, MOST):
            continue
        numbers, others = torch.arange(p), range(p, info.d_vocab)
        for form in _id_forms(template, others, info.context, info.d_vocab):
            yield Addition(form, numbers, numbers)


def _id_forms(
    template: str | None, others: Sequence[int], context: int | None, d_vocab: int
) -> Iterator[tuple[int | str, ...]]:
    if template is not None:
        words = template.split()
        if any(t not in ("{a}", "{b}") and not (t.isdecimal() and int(t) < d_vocab) for t in words):
            raise TaskError(
                f"template {template!r}: but for {{a}} and {{b}} write ids below {d_vocab}; it has no tokenizer"
            )
        yield tuple(int(t) if t.isdecimal() else t.strip("{}") for t in words)
        return
    for form in FORMS:
        letters = sorted(set(form) - {"a", "b"})
        if context is not None and len(form) > context:
            continue
        for ids in itertools.permutations(others, len(letters)):
            fill = dict(zip(letters, ids, strict=True))
            yield tuple(fill.get(t, t) for t in form)


def _by_words(model: Model, modulus: int | None, template: str | None) -> Iterator[Addition]:
    """Layouts of a model with a tokenizer: those of its own tasks first."""
    speller = Speller(model, bos="default")
    if modulus is None and template is None:
        own = [d for d in checkpoint_tasks(model).values() if d.family == FAMILY]
        if own:
            texts = [(re.sub(r"\{[xy](?:@\w+)?\}", _slot, t.text), t.joint) for d in own for t in d.templates]
            yield from filter(None, (_spelled(speller, text, own[0].words[NUMBER], joint) for text, joint in texts))
            return
    numerals = tuple(str(i) for i in range(modulus or MOST))
    for text in TEXTS if template is None else (template,):
        for joint in (" ", ""):
            whole = _spelled(speller, text, numerals, joint) if modulus else _longest(speller, text, numerals, joint)
            if whole is not None:
                yield whole


def _slot(match: re.Match[str]) -> str:
    return "{a}" if match.group().startswith("{x") else "{b}"


def _longest(speller: Speller, text: str, numerals: Sequence[str], joint: str) -> Addition | None:
    """The numbers up to the first that is no token of its own."""
    low, high = LEAST - 1, len(numerals) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _spelled(speller, text, numerals[:middle], joint) else (low, middle)
    return _spelled(speller, text, numerals[:low], joint) if low >= LEAST else None


def _spelled(speller: Speller, text: str, numerals: Sequence[str], joint: str) -> Addition | None:
    """The layout of a text; None where a number is not one token there, or not the same one in both places."""
    prompts = [text.format(a=n, b=n) for n in numerals]
    rows = speller.ids(prompts)
    if len({len(row) for row in rows}) != 1:
        return None
    ids = torch.tensor(rows)
    slots = [i for i in range(ids.shape[1]) if len(ids[:, i].unique()) == len(ids)]
    fixed = [i for i in range(ids.shape[1]) if len(ids[:, i].unique()) == 1]
    if len(slots) != 2 or len(slots) + len(fixed) != ids.shape[1] or not torch.equal(*ids[:, slots].T):  # noqa: PLR2004
        return None
    tails = [speller.tails(prompt, [joint + n])[0] for prompt, n in zip(prompts, numerals, strict=True)]
    if any(tail is None or len(tail) != 1 for tail in tails):
        return None
    first = "a" if text.index("{a}") < text.index("{b}") else "b"
    marks = {slots[0]: first, slots[1]: "b" if first == "a" else "a"}
    form = tuple(marks.get(i, int(ids[0, i])) for i in range(ids.shape[1]))
    answers = torch.tensor([tail[0] for tail in tails if tail is not None])
    return Addition((*speller.start, *form), ids[:, slots[0]], answers)


def draw(rng: Random, document: Document, corruption: str) -> Example | None:
    """Slots {x} and {y}, words of the list "number"; right is the word of their sum modulo the list's length.

    With the operator "first" it is the word of x itself; None where that is the twin's too.
    """
    numbers = document.words[NUMBER]
    p = len(numbers)
    x, y = rng.randrange(p), rng.randrange(p)
    retrieved = document.operator == FIRST
    x2, y2 = _twin(rng, p, x, y, corruption)
    if retrieved and x2 == x:
        return None
    return Example(
        rng.choice(document.templates),
        clean={"x": numbers[x], "y": numbers[y]},
        corrupt={"x": numbers[x2], "y": numbers[y2]},
        answers=(numbers[x if retrieved else (x + y) % p],),
        wrong=(numbers[x2 if retrieved else (x2 + y2) % p],),
        key=(document.key or KEY).format(x=numbers[x], y=numbers[y]),
    )


def _twin(rng: Random, p: int, x: int, y: int, corruption: str) -> tuple[int, int]:
    """Operands of another sum."""
    while True:
        x2, y2 = x if corruption == "second_operand" else rng.randrange(p), rng.randrange(p)
        if (x + y - x2 - y2) % p:
            return x2, y2


def modular_task(
    model: Model,
    layout: Addition | None = None,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "train",
    corruption: str | None = None,
    one_in: int = 5,
) -> PromptTask:
    """`n` pairs of prompts of modular addition in ids, for a model of any layout (`addition`); roles x, y and END.

    Right is the sum, wrong that of the twin. Of the pairs of operands, one in `one_in` is held out.

    Raises:
        TaskError: an unknown corruption, or more prompts than there are pairs.
        NotApplicable: a layout that was not given and is not found.
    """
    kind = corruption or CORRUPTIONS[0]
    if kind not in CORRUPTIONS:
        raise TaskError(f"{FAMILY} has no corruption {kind!r}; {nearest(kind, CORRUPTIONS)}")
    layout = layout or addition(model)
    p, rng = layout.modulus, Random(f"{FAMILY} {split} {seed} {kind}")
    keep = [
        (x, y)
        for x, y in itertools.product(range(p), repeat=2)
        if is_held_out(KEY.format(x=x, y=y), one_in=one_in) is (split == "held-out")
    ]
    if len(keep) < n:
        raise TaskError(f"{n} prompts asked for; modulo {p} there are {len(keep)} pairs in the split {split!r}")
    chosen = rng.sample(keep, n)
    clean, corrupt = torch.tensor(chosen), torch.tensor([_twin(rng, p, *pair, kind) for pair in chosen])
    rows = [layout.prompts(*side.T).tolist() for side in (clean, corrupt)]
    right, wrong = (layout.answers[side.sum(1) % p, None].tolist() for side in (clean, corrupt))
    x_place, y_place = layout.places
    return collate(
        FAMILY,
        list(zip(*rows, strict=True)),
        answers=right,
        wrong=wrong,
        roles=[{"x": x_place, "y": y_place}] * n,
        templates=["sum"] * n,
        corruption=kind,
        metric=METRIC,
        split=split,
        record={"source": "all pairs of residues", "seed": seed, **layout.facts()},
    )
