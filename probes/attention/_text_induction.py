"""Induction on natural text: attention to what followed earlier occurrences of the same word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import TaskError
from interp.measurement.declaration import CAUSAL, REASON, Stage
from interp.measurement.pairs import pair_scores
from interp.measurement.prompts import PromptSet, text_prompts
from interp.measurement.registry import Findings, analysis
from interp.measurement.scoring import score_rows
from interp.model import Model

GAP = 12  # tokens between query and target: nearer ones are where heads look anyway
_SPACES = "▁ĠĊĉčÂ \t\r\n"


@analysis(
    name="text_induction",
    presumes=(CAUSAL,),
    family="copy",
    title="Induction heads on text",
    headline="fuzzy_pm",
    order=230,
    needs="text",
    stage=Stage("text induction", REASON),
    quick={"n_prompts": 8, "length": 96},
    exemptions={"planted": "text, of which planted models know none"},
    columns={"label": "boolean"},
    means="On text, too, the head looks at what followed earlier occurrences of the current word, its other spellings "
    "(case, leading space) included.",
    misleads="Text repeats itself in stretches: a head that finds the passage by other means scores as well, and one "
    "that serves only where the repeat is informative scores low, as do all heads where words are frequent.",
    reference="Olsson et al. 2022, arXiv 2209.11895 (prefix matching, fuzzy copies)",
)
def text_induction(
    model: Model,
    *,
    texts: Sequence[str] | None = None,
    n_prompts: int = 32,
    length: int = 192,
    max_earlier: int = 8,
    bos: str = "default",
    method: str = "auto",
    seed: int = 0,
) -> Findings:
    """Fuzzy prefix matching: mean over queries i of sum_j p(i, j+1) over j <= i - 13 whose token is the same word.

    Variants: `fuzzy_pm` counts tokens as the same word that agree but for case and leading space, `exact_pm` equal ids
    only. Queries have at least one such j and at most `max_earlier`: a comma follows from too much. Targets less than
    12 tokens back are left out, because heads look there anyway.

    The null is uniform causal attention over the same pairs; p tests that the targets get at most 0.05 more than
    sixteen sets of keys 2 to 9 places around them (same queries, same head); q is Benjamini-Hochberg over all heads. A
    head is labelled at q < 0.01 and score >= 0.3.

    Args:
        model: a model with a tokenizer.
        texts: natural text; without, held-out modules of the standard library, where the tokenizer can read them.
        n_prompts: stretches, the unit of the interval.
        length: tokens per stretch, BOS included; shortened to the context.
        max_earlier: earlier occurrences that a query may have.
        bos: "default", "forced" or "none".
        method: attention method, "fused" or "naive".
        seed: of stretches and bootstrap.

    Raises:
        NotApplicable: no tokenizer, or one that cannot read the default texts.
        TaskError: texts given that are too short, or in which no word comes back.

    Reference: Olsson et al. 2022 (arXiv 2209.11895) describe fuzzy matches; the definition and the test are ours.
    """
    data = text_prompts(model, texts, n=n_prompts, length=length, bos=bos, seed=seed)
    words = word_classes(model)
    parts = []
    for name, classes in (("fuzzy_pm", words), ("exact_pm", torch.where(words >= 0, torch.arange(len(words)), -1))):
        prompt, query, key = matches(data, classes, max_earlier=max_earlier)
        parts.append(_variant_rows(model, data, name, prompt, query, key, method=method, seed=seed))
    return Findings(pd.concat(parts, ignore_index=True), data.data)


def word_classes(model: Model) -> Int[Tensor, " token"]:
    """For each token a number that is the same for spellings of one word, -1 for specials and white space."""
    tokenizer: Any = model.tokenizer
    n = min(len(tokenizer), model.info.d_vocab)
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(n)))
    return spellings([None if i in special else name for i, name in enumerate(names)], model.info.d_vocab)


def spellings(names: Sequence[str | None], size: int) -> Int[Tensor, " token"]:
    """Numbers of words that differ in more than case and leading space; -1 where there is no name, up to `size`."""
    word_ids: dict[str, int] = {}
    classes = torch.full((size,), -1)
    for i, name in enumerate(names):
        word = (name or "").strip(_SPACES).casefold()
        if word:
            classes[i] = word_ids.setdefault(word, len(word_ids))
    return classes


def matches(
    data: PromptSet, classes: Int[Tensor, " token"], *, max_earlier: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """(prompt, query, key) of every j + 1 where j holds the word of query i, at least `GAP` tokens before it."""
    pairs = [torch.empty(3, 0, dtype=torch.long)]
    for row, ids in enumerate(data.batch.ids):
        word = classes[ids]
        order = word.argsort(stable=True)
        for run in order.split(word[order].unique_consecutive(return_counts=True)[1].tolist()):
            if len(run) < 2 or word[run[0]] < 0:
                continue
            j, i = torch.combinations(run).T
            near = j + 1 > i - GAP
            j, i = j[~near], i[~near]
            few = torch.bincount(i, minlength=len(ids))[i] <= max_earlier
            pairs.append(torch.stack([torch.full_like(i[few], row), i[few], j[few] + 1]))
    prompt, query, key = torch.cat(pairs, dim=1)
    return prompt, query, key


def _variant_rows(
    model: Model, data: PromptSet, name: str, prompt: Tensor, query: Tensor, key: Tensor, *, method: str, seed: int
) -> pd.DataFrame:
    """Rows of one variant; prompts in which nothing repeats have no say."""
    # a prompt in which nothing repeats has no answer
    if len(prompt.unique()) < 2:
        raise TaskError("no word comes back after 12 tokens or more in two of these texts: nothing to measure")
    scores = pair_scores(model, data.batch, (prompt, query, key), start=data.start, method=method)
    return score_rows(model, name, "probability", scores.values, scores.wrong, null=scores.null, seed=seed)
