"""`hygiene`: what a dictionary is worth before its features are read: L0, FVU, loss recovered, dead, density, seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from interp.batch import Prompts
from interp.dictionaries.activity import features
from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.fit import FIRST, prompts_of, quality
from interp.errors import SchemaError
from interp.model import Model
from interp.results.provenance import recorded
from interp.results.results import Result, frame

MATCHED = 0.7
"""Cosine from which two features of different seeds are one (Paulo & Belrose 2025)."""
DENSE = 0.1
"""Share of tokens above which a feature is dense."""


@recorded
def hygiene(
    model: Model,
    dictionary: Dictionary | Dictionaries,
    prompts: Prompts = None,
    *,
    twins: Sequence[Dictionary | Dictionaries] = (),
) -> Result:
    """L0, FVU, loss recovered, dead and dense features, and how far other seeds have the same features.

    Variants, a row each, of each member where it has its own:
        l0: mean active features of a token, with its standard error over prompts.
        fvu: sum |y - y_hat|^2 / sum |y - mean y|^2, at each site written to.
        loss_recovered: (zeros - spliced) / (zeros - clean), of all members together.
        dead: share of features active at no token. dense: at more than a tenth of the tokens.
        density: median over living features of the share of tokens at which they are active.
        mmcs: mean over features of the largest cosine with a feature of another seed (Sharkey et al. 2022).
        matched: share of features whose partner, in the one-to-one matching of largest total cosine, has .7 or more.

    Args:
        model: that the dictionary is of.
        dictionary: with its sites, or several.
        prompts: held out from its training; text of this machine where the model has a tokenizer.
        twins: the same, trained from other seeds.

    Raises:
        SchemaError: no prompts and no tokenizer, or twins of another size.
    """
    batch = prompts_of(model, prompts)
    measured = quality(model, dictionary, batch, loss=True)
    active = features(model, dictionary, batch)
    counted = batch.mask & (batch.positions >= FIRST)
    n = int(counted.sum())
    prompt, column, member, feature = active.index.cpu().T
    keep = counted.cpu()[prompt, column]
    rows: list[dict] = []
    for i, d in enumerate(dictionary.members):
        place = {"component": str(d.site_in), "layer": None if d.site_in is None else d.site_in.first}
        own = keep & (member == i)
        rate = torch.bincount(feature[own], minlength=d.n_features).double() / n
        tokens = counted.sum(1).cpu()
        by_prompt = (torch.bincount(prompt[own], minlength=len(tokens)) / tokens)[tokens > 0].double()
        living = rate[rate > 0]
        se = float(by_prompt.std() / len(by_prompt) ** 0.5) if len(by_prompt) > 1 else None
        values = {
            "l0": (float(rate.sum()), n, "features", se),
            "dead": (float((rate == 0).double().mean()), d.n_features, "share", None),
            "dense": (float((rate > DENSE).double().mean()), d.n_features, "share", None),
            "density": (float(living.median()) if len(living) else 0.0, len(living), "share", None),
        }
        if twins:
            pairs = [stability(d, _member(twin, i)) for twin in twins]
            for name, column_of in (("mmcs", 0), ("matched", 1)):
                numbers = [pair[column_of] for pair in pairs]
                values[name] = (
                    sum(numbers) / len(numbers),
                    d.n_features,
                    "cosine" if column_of == 0 else "share",
                    None,
                )
        rows += [
            {"variant": v, **place, "value": x, "n": size, "unit": unit, "se": spread}
            for v, (x, size, unit, spread) in values.items()
        ]
    for site, fve in measured.fve.items():
        place = {"component": str(site), "layer": site.first}
        rows.append({"variant": "fvu", **place, "value": 1 - fve, "n": n, "unit": "share"})
    rows.append({"variant": "loss_recovered", "value": measured.loss_recovered, "n": n, "unit": "share"})
    table = frame([{"analysis": "dictionary", **row} for row in rows])
    data = {"prompts": len(batch.ids), "tokens": n, "loss_nats": list(measured.loss), "twins": len(twins)}
    return Result(table, {"data": data})


def stability(one: Dictionary, other: Dictionary) -> tuple[float, float]:
    """(MMCS, matched share) of two dictionaries of one width, by decoder directions.

    Raises:
        SchemaError: directions of different widths.
    """
    cosines = cosines_of(one, other)
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    matched = (cosines[rows, columns] >= MATCHED).sum() / len(cosines)
    return float(cosines.max(1).values.mean()), float(matched)


def cosines_of(one: Dictionary, other: Dictionary) -> Float[Tensor, "feature other"]:
    """Cosines of the decoder directions of two dictionaries, those of several sites joined."""
    a, b = (torch.nn.functional.normalize(d.w_dec.detach().flatten(1).double().cpu(), dim=1) for d in (one, other))
    if a.shape[1] != b.shape[1]:
        raise SchemaError(f"directions of width {a.shape[1]} and {b.shape[1]}; compare dictionaries of one site")
    return a @ b.mT


def _member(twin: Dictionary | Dictionaries, i: int) -> Dictionary:
    if i >= len(twin.members):
        raise SchemaError(f"a twin has {len(twin.members)} members; it must have as many as the dictionary")
    return twin.members[i]
