"""Fictional ontologies: chains of made-up kinds, each a kind of the next, and what one of their members therefore is.

    Every dax is a zib. Every wub is a gor. Every zib is a lun. Every gor is a hep. Max is a dax. Sam is a wub. Max is a

The conclusion of depth 2 is "lun". Nothing of it can be known by heart: the words mean nothing, so the answer is
read in the text, link after link. A second chain, as long, has the wrong answer in as many statements and as near
the end.

Which words are kinds depends on the tokenizer: made-up words where enough of them are one token each, else capital
letters where those are, else made-up words of equally many tokens, whose first tokens differ and stand for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from interp.errors import NotApplicable, SchemaError, nearest
from interp.tasks.prompt import STOP
from interp.tasks.source import Document, Template
from interp.tasks.spell import Example, Speller

FAMILY = "fictional_ontology"
CORRUPTIONS = ("link", "fact", "asked")
"""link: one link of the asked chain and the same of the other exchange where they lead to. fact: the two members
exchange what they are. asked: it is asked for the other one."""
METRIC = "logit_diff"
OPTIONS = ("depths", "distractors", "order", "steps")
ORDERS = ("shuffled", "facts", "chain")
"""shuffled: rules in random order, then the facts. facts: the facts, then rules in random order. chain: the facts, then
rule after rule of one chain after another."""
LISTS = ("kind", "letter")


def fit(document: Document, speller: Speller, corruption: str) -> tuple[Callable[..., Example | None], str]:
    """`draw` with words that suit a tokenizer, and which they are: "kind", "letter" or "first token"."""
    if document.order not in ORDERS:
        raise SchemaError(f"{document.source}: unknown order {document.order!r}; {nearest(document.order, ORDERS)}")
    need = (1 + document.distractors) * (1 + max(document.depths))
    before = document.forms("question")[0].text.format(name="Max")
    for name in LISTS:
        kinds, apart = _alike(speller, before, document.words[name], length=1)
        if len(kinds) >= need:
            form = name
            break
    else:
        kinds, apart = _alike(speller, before, document.words[LISTS[0]])
        form = "first token"
    members, _ = _alike(speller, "is a dax.", document.words["name"])
    for what, words, least in (("kinds", kinds, need), ("names", members, 1 + document.distractors)):
        if len(words) < least:
            raise NotApplicable(
                f"{document.name} cannot be asked with this tokenizer: of its {what} only {len(words)} have equally "
                f"many tokens and first tokens of their own; chains of {max(document.depths)} links beside "
                f"{document.distractors} others need {least}: lower `depths` or `distractors`"
            )
    return partial(draw, kinds=kinds, names=members, apart=apart), form


def _alike(
    speller: Speller, before: str, words: Sequence[str], *, length: int | None = None
) -> tuple[tuple[str, ...], bool]:
    """Most words of one number of tokens (or of `length`), first ones distinct; whether the space is a token apart."""
    space = speller.lone_space(before, words)
    by_length: dict[int, dict[int, str]] = {}
    for word, tail in zip(words, speller.tails(before, [" " + word for word in words]), strict=True):
        if tail is not None and len(tail) > space:
            by_length.setdefault(len(tail) - space, {}).setdefault(tail[space], word)
    groups = by_length if length is None else {length: by_length.get(length, {})}
    best = max(groups.values(), key=len, default={})
    return tuple(best.values()), space > 0


@dataclass(frozen=True)
class World:
    """Chains of kinds and their members: `kinds`[c][i] leads to [c][i + 1]; `names`[c] is a `kinds`[c][0]."""

    names: tuple[str, ...]
    facts: tuple[str, ...]
    rules: Mapping[tuple[int, int], tuple[str, str]]
    """(chain, link) -> kind and what it is a kind of."""
    asked: int = 0

    def conclusions(self) -> list[str]:
        """What the asked member is, from what the fact says to the end of its chain."""
        onwards, kinds = dict(self.rules.values()), [self.facts[self.asked]]
        while kinds[-1] in onwards:
            kinds.append(onwards[kinds[-1]])
        return kinds

    def corrupted(self, corruption: str, link: int) -> World:
        """The twin; chains 0 and 1 are those that it mixes."""
        if corruption == "asked":
            return replace(self, asked=1)
        if corruption == "fact":
            return replace(self, facts=(self.facts[1], self.facts[0], *self.facts[2:]))
        (low, high), (other_low, other_high) = self.rules[0, link], self.rules[1, link]
        return replace(self, rules={**self.rules, (0, link): (low, other_high), (1, link): (other_low, high)})


def draw(
    rng: Random, document: Document, corruption: str, *, kinds: Sequence[str], names: Sequence[str], apart: bool = False
) -> Example:
    """Chains drawn afresh; right is the end of the asked member's, wrong are the ends of the others.

    With `apart` the space before the answer is a token of its own, and part of the prompt.
    """
    depth, n = rng.choice(document.depths), 1 + document.distractors
    words = rng.sample(kinds, n * (depth + 1))
    chains = [words[c * (depth + 1) : (c + 1) * (depth + 1)] for c in range(n)]
    rules = {(c, i): (chains[c][i], chains[c][i + 1]) for c in range(n) for i in range(depth)}
    world = World(tuple(rng.sample(names, n)), tuple(chain[0] for chain in chains), rules)
    link = rng.randrange(depth)
    twin = world.corrupted(corruption, link)
    form = rng.choice([t.name for t in document.forms("question")])
    template = _template(document, form, _order(rng, document, n, depth), steps=depth - 1 if document.steps else 0)
    if apart:
        template = replace(template, text=template.text + " ", joint="")
    return Example(
        template,
        clean=_fills(world, depth),
        corrupt=_fills(twin, depth),
        answers=(world.conclusions()[-1],),
        wrong=tuple(chain[-1] for chain in chains[1:]),
        key=f"{chains[0][0]} {chains[0][-1]}",
        variant=f"depth {depth}",
    )


def _order(rng: Random, document: Document, n: int, depth: int) -> list[tuple[int, int | None]]:
    """Statements as (chain, link), a fact where the link is None."""
    chains = rng.sample(range(n), n)
    facts: list[tuple[int, int | None]] = [(c, None) for c in chains]
    rules: list[tuple[int, int | None]] = [(c, i) for c in chains for i in range(depth)]
    if document.order == "chain":
        return [*facts, *rules]
    rng.shuffle(rules)
    return [*facts, *rules] if document.order == "facts" else [*rules, *facts]


def _template(document: Document, form: str, order: Sequence[tuple[int, int | None]], *, steps: int) -> Template:
    """All statements and the question as one sentence form, its slots named by chain and link, its roles by chain."""
    parts = [_statement(document, form, chain, link) for chain, link in order]
    fact = document.form("fact", form)
    for i in range(1, steps + 1):
        parts.append(_renamed(fact, {"name": "asked@STEP", "kind": f"step{i}@STEP{i}"}, f"STEP{i}"))
    question = document.form("question", form).text.replace("{name}", "{asked@ASKED}")
    return Template(text=" ".join([*parts, question]), name=form)


def _statement(document: Document, form: str, chain: int, link: int | None) -> str:
    side = ("", "other ")[chain] if chain < 2 else f"other {chain} "
    if link is None:
        slots = {"name": f"name{chain}@{side}NAME", "kind": f"fact{chain}@{side}FACT"}
        return _renamed(document.form("fact", form), slots, f"{side}FACT")
    slots = {"low": f"low{chain}_{link}@{side}LOW{link + 1}", "high": f"high{chain}_{link}@{side}HIGH{link + 1}"}
    return _renamed(document.form("rule", form), slots, f"{side}RULE{link + 1}")


def _renamed(template: Template, slots: Mapping[str, str], statement: str) -> str:
    """The sentence with these slots, and its last sign in a slot of its own, whose role ends the statement."""
    text = template.text
    for slot, name in slots.items():
        text = text.replace(f"{{{slot}}}", f"{{{name}}}")
    return f"{text}{{stop@{statement}{STOP}}}"


def _fills(world: World, depth: int) -> dict[str, str]:
    kinds = world.conclusions()
    return {
        **{f"name{c}": name for c, name in enumerate(world.names)},
        **{f"fact{c}": kind for c, kind in enumerate(world.facts)},
        **{f"low{c}_{i}": low for (c, i), (low, _) in world.rules.items()},
        **{f"high{c}_{i}": high for (c, i), (_, high) in world.rules.items()},
        **{f"step{i}": kinds[i] for i in range(1, depth)},
        "asked": world.names[world.asked],
        "stop": ".",
    }
