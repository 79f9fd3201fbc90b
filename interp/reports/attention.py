"""Which heads the report shows attention of, and on which prompt."""

from __future__ import annotations

from typing import Any

from interp import tasks
from interp.errors import TaskError
from interp.model import Model
from interp.reports.rows import Head, choose
from interp.reports.sections import headline, title_of
from interp.reports.viewer import View, view_of
from interp.results.results import Result
from interp.rows import largest, scores

BLOCK = 12  # tokens of the random block that is repeated: two copies fit on a phone
MOST = 6  # heads to switch between


def attention(model: Model, result: Result, prompt: Any, *, seed: int) -> View:
    """View of the best labelled induction head and the top heads of the analyses, on a prompt or a sample.

    Raises:
        TaskError: no analysis of heads, no room for a sample prompt, or a prompt that cannot be run.
    """
    shown = dict(list(top_heads(result).items())[:MOST])
    ids, targets, about = _sample(model, seed=seed) if prompt is None else _given(model, prompt)
    heads, queries = choose(model, ids, list(shown), None)
    notes = [f"{why[:1].upper()}{why[1:]}." for why in shown.values()]
    return view_of(model, ids, heads, queries=queries, about=about, notes=notes, targets=targets)


def top_heads(result: Result) -> dict[Head, str]:
    """Heads worth a look, each with the reason: the best induction head first, then the top head of each analysis.

    Raises:
        TaskError: no analysis of heads in the result.
    """
    names = [str(n) for n in dict.fromkeys(result.table["analysis"])]
    reasons: dict[Head, list[str]] = {}
    if "induction" in names:
        for best in largest((s for s in scores(headline(result, "induction")) if s.label), 1):
            if best.layer is not None and best.head is not None:
                reasons[best.layer, best.head] = ["the labelled induction head with the highest score"]
    unlabelled = "" if reasons or "induction" not in names else "; no head was labelled an induction head"
    for name in names:
        for best in largest(scores(headline(result, name)), 1):
            if best.layer is not None and best.head is not None:
                why = reasons.setdefault((best.layer, best.head), [])
                if not (name == "induction" and why):
                    why.append(f"the highest score under {title_of(name)}{unlabelled * (name == 'induction')}")
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


def _given(model: Model, prompt: Any) -> tuple[list[int], dict[int, int], str]:
    batch = model.batch(prompt)
    ids = batch.ids[0][batch.mask[0]].tolist()
    return ids, {}, f"The given prompt, {len(ids)} token{'s' * (len(ids) != 1)}."
