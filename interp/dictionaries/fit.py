"""What a dictionary is worth in a model: variance explained, L0, loss recovered; and whether that is what it claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.dictionaries.activations import NORMALISATIONS, BatchTopK, Normalisation
from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.splice import Splice
from interp.edits import Ablate
from interp.errors import ModelLoadError, SchemaError, SiteError
from interp.model import Model
from interp.sites import PER_HEAD, Site
from interp.texts import sources

FIRST = 1
"""Tokens at the start of a prompt that are not counted: attention sinks, of a norm that most dictionaries never saw."""
SLACK = 0.15
"""By how much variance explained and loss recovered may be below what is claimed."""
FACTOR = 2.0
"""By which factor L0 may differ from what is claimed: it depends on the text."""
TEXTS, TOKENS, CHARACTERS = 8, 128, 4000  # prompts of this machine, their length


@dataclass(frozen=True)
class Quality:
    """What a dictionary keeps of a model's activations.

    Attributes:
        fve: fraction of variance explained by site written to, 1 - sum |y - y_hat|^2 / sum |y - mean y|^2 over tokens.
        l0: active features of a token, mean, by site read.
        n_tokens: tokens counted.
        loss: of next tokens, nats: with the model as it is, with the dictionaries alone, with zeros in their place;
            empty where it was not asked for.
    """

    fve: dict[Site, float]
    l0: dict[Site, float]
    n_tokens: int
    loss: tuple[float, ...] = field(default=())

    @property
    def loss_recovered(self) -> float:
        """(zeros - spliced) / (zeros - clean): 1 where the dictionaries cost no loss, 0 where zeros do as well.

        Raises:
            SchemaError: the loss was not measured.
        """
        if not self.loss:
            raise SchemaError("the loss was not measured; ask for quality(..., loss=True)")
        clean, spliced, zeros = self.loss
        return (zeros - spliced) / (zeros - clean) if zeros != clean else float("nan")

    def __str__(self) -> str:
        """The numbers in a sentence."""
        fve = ", ".join(f"{x:.3f} at {site}" for site, x in self.fve.items())
        l0 = ", ".join(f"{x:.1f}" for x in self.l0.values())
        return f"fraction of variance explained {fve}; L0 {l0}; {self.n_tokens} tokens"


@torch.no_grad()
def quality(
    model: Model,
    dictionary: Dictionary | Dictionaries,
    prompts: Prompts = None,
    *,
    loss: bool = False,
    first: int = FIRST,
) -> Quality:
    """Variance explained, L0 and, where asked for, losses of dictionaries in a model.

    Args:
        model: whose activations.
        dictionary: with its sites, or several.
        prompts: to measure on; text of this machine where the model has a tokenizer.
        loss: whether to run the model with the dictionaries alone, and with zeros in their place, as well.
        first: tokens at the start of each prompt that are left out of variance and L0.

    Raises:
        SchemaError: no prompts, and no tokenizer to make some.
        SiteError: sites that the model does not have.
    """
    batch = prompts_of(model, prompts)
    counted = batch.mask & (batch.positions >= first)
    if not bool(counted.any()):
        raise SchemaError(f"no prompt is longer than {first} tokens, which are left out: attention sinks")
    members = dictionary.members
    outs = tuple(dict.fromkeys(site for d in members for site in d.sites_out))
    run = model.run(batch, capture=list(dict.fromkeys([d.site_in for d in members if d.site_in is not None] + [*outs])))
    keep = counted.to(run[outs[0]].device)
    xs = [_flat(run[d.site_in], d.site_in)[keep].to(d.w_enc) for d in members if d.site_in is not None]
    features = [d.encode(x) for d, x in zip(members, xs, strict=True)]
    written = _written(members, features, xs)
    fve = {site: explained(_flat(run[site], site)[keep].to(y), y) for site, y in written.items()}
    l0 = {d.site_in: float((f != 0).float().sum(-1).mean()) for d, f in zip(members, features, strict=True)}
    losses = _losses(model, dictionary, batch, outs) if loss else ()
    return Quality(fve, {s: x for s, x in l0.items() if s is not None}, int(counted.sum()), losses)


def explained(y: Tensor, y_hat: Tensor) -> float:
    """1 - sum |y - y_hat|^2 / sum |y - mean y|^2 over tokens, [token d] each."""
    total = (y - y.mean(0)).double().square().sum()
    return float(1 - (y - y_hat).double().square().sum() / total)


def check(
    model: Model, dictionary: Dictionary | Dictionaries, prompts: Prompts = None, *, measure: bool = True
) -> Quality | None:
    """Refuse a dictionary that is not one of this model at these sites; what was measured otherwise.

    Raises:
        ModelLoadError: sites that are not said or that the model lacks, other widths, or numbers that are not what is
            claimed (without claims: less explained than by the mean alone), with the numbers.
    """
    for d in dictionary.members:
        _check_places(model, d)
    if not measure:
        return None
    claims = claims_of(dictionary)
    try:
        found = quality(model, dictionary, prompts, loss="loss_recovered" in claims)
    except SiteError as error:
        raise ModelLoadError(f"{dictionary!r} does not fit {model.info.name}: {error}") from error
    wrong = _disagreements(found, claims)
    if wrong:
        hint = _hint(model, dictionary, prompts, max(found.fve.values()))
        raise ModelLoadError(
            f"{dictionary!r} is not what its files say in {model.info.name}: {'; '.join(wrong)} ({found}){hint}; "
            "measure=False loads it all the same"
        )
    return found


def prompts_of(model: Model, prompts: Prompts) -> Batch:
    """Prompts as a batch; a few texts of this machine where there are none.

    Raises:
        SchemaError: none, and no tokenizer to make some.
    """
    if prompts is not None:
        return model.batch(prompts)
    if model.tokenizer is None:
        raise SchemaError(f"{model.info.name} has no tokenizer to read text with; give prompts=, as token ids")
    length = min(TOKENS, model.info.context or TOKENS)
    texts = [text[:CHARACTERS] for text in list(sources("held-out").values())[:TEXTS]]
    ids = [Batch.of(text, model.tokenizer).ids[0, :length].tolist() for text in texts]
    return model.batch(ids)


def _written(members: Sequence[Dictionary], features: Sequence[Tensor], xs: Sequence[Tensor]) -> dict[Site, Tensor]:
    if len(members) > 1:
        return Dictionaries(tuple(members)).decode(features, xs)
    d, f, x = members[0], features[0], xs[0]
    return {site: d.decode(f, x, out=i if d.w_dec.ndim == 3 else None) for i, site in enumerate(d.sites_out)}


def _flat(x: Tensor, site: Site | None) -> Tensor:
    """[batch pos d]: heads joined, where the site has some and names none."""
    return x.flatten(2) if site is not None and site.kind in PER_HEAD and site.head is None else x


def _losses(
    model: Model, dictionary: Dictionary | Dictionaries, batch: Batch, outs: Sequence[Site]
) -> tuple[float, ...]:
    """Mean loss of the next token, nats: clean, spliced without the error, zeros."""
    zeros = [Ablate(site) for site in outs]
    return tuple(_loss(model, batch, edits) for edits in ((), [Splice(dictionary, error=False)], zeros))


def _loss(model: Model, batch: Batch, edits: Sequence) -> float:
    logits = model.run(batch, edits=edits).logits
    assert logits is not None  # the run has no `stop`
    real = (batch.mask[:, 1:] & batch.mask[:, :-1]).to(logits.device)
    scores = logits[:, :-1].float().log_softmax(-1)
    return float(-scores.gather(-1, batch.ids[:, 1:, None].to(logits.device))[..., 0][real].double().mean())


def _check_places(model: Model, d: Dictionary) -> None:
    if d.site_in is None or not d.sites_out:
        raise ModelLoadError(f"{d!r} does not say where it belongs; give site= (and site_out= of a transcoder)")
    batch = model.batch(torch.zeros(1, 1, dtype=torch.long))
    for site, width in ((d.site_in, d.d_in), *((s, d.d_out) for s in d.sites_out)):
        try:
            model.info.layers_of(site)
            x = _flat(model.run(batch, capture=[site])[site], site)
        except SiteError as error:
            raise ModelLoadError(f"{d!r} does not fit {model.info.name}: {error}") from error
        if x.shape[-1] != width:
            raise ModelLoadError(
                f"{d!r} is of vectors of {width} at {site}, where those of {model.info.name} have {x.shape[-1]}"
            )


def claims_of(dictionary: Dictionary | Dictionaries) -> dict[str, float]:
    """What the files say: "l0", "fve", "loss_recovered"; features of a BatchTopK dictionary are k on average."""
    d = dictionary.members[0]
    if len(dictionary.members) > 1:
        return {}
    return {"l0": float(d.activation.k)} | dict(d.claims) if isinstance(d.activation, BatchTopK) else dict(d.claims)


def _disagreements(found: Quality, claims: dict[str, float]) -> list[str]:
    wrong = []
    for site, fve in found.fve.items():
        claimed = claims.get("fve")
        if claimed is not None and not fve >= claimed - SLACK:
            wrong.append(f"it explains {fve:.3f} of the variance at {site} and claims {claimed:.3f}")
        elif claimed is None and not fve > 0:
            wrong.append(f"it explains less of the variance at {site} than the mean alone ({fve:.3f})")
    for site, l0 in found.l0.items():
        claimed = claims.get("l0")
        if claimed is not None and not claimed / FACTOR <= l0 <= claimed * FACTOR:
            wrong.append(f"L0 is {l0:.1f} at {site} and claimed to be {claimed:.1f}")
    claimed = claims.get("loss_recovered")
    if claimed is not None and not found.loss_recovered >= claimed - SLACK:
        wrong.append(f"it recovers {found.loss_recovered:.3f} of the loss and claims {claimed:.3f}")
    return wrong


@torch.no_grad()
def _hint(model: Model, dictionary: Dictionary | Dictionaries, prompts: Prompts, fve: float) -> str:
    """Another normalisation, or another layer, at which an autoencoder explains more; nothing for a transcoder."""
    d = dictionary.members[0]
    if len(dictionary.members) > 1 or d.writes_elsewhere or d.site_in is None:
        return ""
    batch = prompts_of(model, prompts)
    everywhere = replace(d.site_in, first=None, last=None) if d.site_in.first is not None else d.site_in
    run = model.run(batch, capture=[everywhere])
    keep = batch.mask & (batch.positions >= FIRST)
    x = {s: _flat(y, s)[keep.to(y.device)].to(d.w_enc) for s, y in run.acts.items()}
    own = x[d.site_in]
    scale = d.d_in**0.5 / float(own.norm(dim=-1).mean())
    tries = {
        f"with normalisation {kind}" + (f", scale={scale:.4g}" if kind == "scale" else ""): (
            replace(d, normalisation=Normalisation(kind, scale=scale if kind == "scale" else 1.0)),
            own,
        )
        for kind in NORMALISATIONS
    } | {f"at {s}": (d, y) for s, y in x.items() if s != d.site_in}
    best = {text: explained(y, e.forward(y)) for text, (e, y) in tries.items()}
    text = max(best, key=lambda t: best[t])
    return f"; {text} it would explain {best[text]:.3f}" if best[text] > max(fve, 0) + SLACK else ""
