"""Which heads the report shows attention of, and on which prompt."""

from __future__ import annotations

from typing import Any

from interp import tasks
from interp.errors import TaskError
from interp.measurement.registry import analyses, find
from interp.model import Model
from interp.plots.rows import largest, scores
from interp.reports.rows import FEW, Head, choose
from interp.reports.sections import headline, title_of
from interp.reports.viewer import View, view_of
from interp.results.results import Result

BLOCK = 12  # tokens of the random block that is repeated: two copies fit on a phone
MOST = 6  # heads to switch between
ENTRIES = 100_000  # probabilities that all other heads keep for the overview, which is left out where there are more


def attention(model: Model, result: Result, prompt: Any, *, seed: int) -> View:
    """View of the labelled heads that open this section and the top heads of the analyses, on a prompt or a sample.

    Raises:
        TaskError: no analysis of heads, no room for a sample prompt, or a prompt that cannot be run.
    """
    reasons = dict(list(top_heads(result).items())[:MOST])
    ids, targets, about = _sample(model, seed=seed) if prompt is None else _own_prompt(model, prompt)
    heads, queries = choose(model, ids, list(reasons), None)
    notes = [f"{why[:1].upper()}{why[1:]}." for why in reasons.values()]
    n_heads = len(model.info.attention_layers) * model.info.n_heads
    entries = ENTRIES if n_heads * len(queries) * FEW <= ENTRIES else 0
    options = {"about": about, "notes": notes, "targets": targets, "entries": entries}
    return view_of(model, ids, heads, queries=queries, **options)


def top_heads(result: Result) -> dict[Head, str]:
    """Heads worth a look, each with the reason: the top head of each analysis.

    The best labelled head of an analysis that opens this section stands before them.

    Raises:
        TaskError: no analysis of heads in the result.
    """
    names = [str(n) for n in dict.fromkeys(result.table["analysis"])]
    nouns = {name: find(name).noun for name in names if name in analyses() and find(name).section == "attention"}
    reasons: dict[Head, list[str]] = {}
    remarks = dict.fromkeys(names, "")
    for name, noun in nouns.items():
        labelled = largest((s for s in scores(headline(result, name)) if s.label), 1)
        for best in labelled:
            if best.layer is not None and best.head is not None:
                reasons.setdefault((best.layer, best.head), []).append(f"the labelled {noun} with the highest score")
        if not labelled:
            article = "an" if noun[:1] in "aeiou" else "a"
            remarks[name] = f"; no head was labelled {article} {noun}"
    labelled_names = {name for name in nouns if not remarks[name]}
    for name in names:
        for best in largest(scores(headline(result, name)), 1):
            if best.layer is not None and best.head is not None:
                why = reasons.setdefault((best.layer, best.head), [])
                if not (name in labelled_names and why):
                    why.append(f"the highest score under {title_of(name)}{remarks[name]}")
    if not reasons:
        raise TaskError("no analysis of heads in these results")
    return {head: ", ".join(why) for head, why in reasons.items()}


def _sample(model: Model, *, seed: int) -> tuple[list[int], dict[int, int], str]:
    """A random block twice: ids, for each token of the second copy the key after its first copy, and what this is."""
    start = 0 if tasks.bos_id(model) is None else 1
    room = len(tasks.ordinary_tokens(model))
    room = room if model.info.context is None else min(room, (model.info.context - start) // 2)
    length = min(BLOCK, room)
    if length < 2:
        raise TaskError(f"no room for a repeated block in a context of {model.info.context}")
    group = tasks.repeated_random(model, lengths=[length], n_each=1, bos="default", seed=seed)[0]
    about = f"A block of {length} random tokens, twice{', after the first token the tokenizer adds' * start}."
    return group.batch.ids[0].tolist(), {int(i): int(i) - length + 1 for i in group.second}, about


def _own_prompt(model: Model, prompt: Any) -> tuple[list[int], dict[int, int], str]:
    batch = model.batch(prompt)
    ids = batch.ids[0][batch.mask[0]].tolist()
    return ids, {}, f"The given prompt, {len(ids)} token{'s' * (len(ids) != 1)}."
