"""Patchscopes: an activation of one prompt put into another, which says in words what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.edits import Edit, Replace
from interp.errors import SiteError, TaskError
from interp.model import Model
from interp.results.provenance import recorded
from interp.sites import PER_HEAD, UNLAYERED, Site
from interp.tokens.texts import token_texts


@recorded
def patchscope(
    model: Model,
    source: Prompts,
    target: Prompts,
    *,
    layer: int | Sequence[int],
    position: int = -1,
    target_layer: int | Sequence[int] | None = None,
    target_position: int = -1,
    kind: str = "resid_post",
    translate: Callable[[Tensor], Tensor] | None = None,
    new_tokens: int = 0,
    top: int = 1,
    edits: Sequence[Edit] = (),
) -> pd.DataFrame:
    """p(token | target prompt, a(target_layer, target_position) := f(a(source; layer, position))).

    The activation of a source prompt takes the place of one in a target prompt, such as "cat -> cat; 135 -> 135;
    hello -> hello; ?", and the model goes on from there. Every pair of `layer` and `target_layer` is a row; without
    target layers each goes where it came from. Beside it stands the target prompt as it is: what it says anyway
    (`control_p`, `control_text`) is no reading of the source. Late layers say the next token, not the subject. Layers
    differ in scale and basis, so an early activation in a late layer may fail for that alone: `translate` is the place
    for a map between them. Reference: Ghandeharioun et al. 2024 (arXiv 2401.06102).

    Args:
        model: any backend.
        source: one prompt, whose activation is read.
        target: one prompt, into which it is put.
        layer: the activation is taken after; one or several.
        position: token of the source, counted from its start or (negative) its end.
        target_layer: where it goes; one or several.
        target_position: token of the target.
        kind: of activation: "resid_post", or any with one vector per token.
        translate: f; the identity without.
        new_tokens: also generate so many, greedily, with and without the activation.
        top: likeliest next tokens, a row each.
        edits: changes under which the model runs.

    Returns:
        Rows with layer, target_layer, rank, token, token_text, p, control_p (of that token without the activation), kl
        (patched from unpatched, in nats; 0 says that nothing arrived) and, where tokens are generated, text and
        control_text.

    Raises:
        SiteError: no such layer or position, or a kind without one vector per token.
        TaskError: more than one prompt on a side.

    >>> import interp
    >>> from circuits import patchscope
    >>> model = interp.load("zoo:planted-induction")
    >>> rows = patchscope(model, [5, 9, 17, 5], [20, 21, 22], layer=1)
    >>> int(rows["token"].iloc[0])  # the last layer's stream is the source's own next token
    9
    """
    if kind in (*PER_HEAD, *UNLAYERED, "norm_scale"):
        raise SiteError(f"{kind!r} has no one vector per token and layer; choose resid_post, attn_out, mlp_out, ...")
    batches = {"source": model.batch(source), "target": model.batch(target)}
    for name, batch in batches.items():
        if len(batch.ids) != 1:
            raise TaskError(f"{len(batch.ids)} {name} prompts; a patchscope is of one")
    layers = [layer] if isinstance(layer, int) else list(layer)
    ends = None if target_layer is None else [target_layer] if isinstance(target_layer, int) else list(target_layer)
    sites = {i: Site(kind, i, position=position) for i in layers}
    acts = model.run(batches["source"], capture=list(sites.values()), stop=max(layers)).acts
    plain, said = _outcome(model, batches["target"], [], new_tokens)
    rows: list[dict[str, Any]] = []
    pairs = [(i, end) for i in layers for end in ([i] if ends is None else ends)]
    for i, j in pairs:
        value = acts[sites[i]] if translate is None else translate(acts[sites[i]])
        patch = [Replace(Site(kind, j, position=target_position), value)]
        log_p, text = _outcome(model, batches["target"], patch, new_tokens)
        kl = float((log_p.exp() * (log_p - plain)).sum())
        words = {"text": text, "control_text": said} if new_tokens else {}
        for rank, token in enumerate(log_p.topk(min(top, len(log_p))).indices.tolist()):
            name = None if model.tokenizer is None else token_texts([token], model.tokenizer)[0]
            where = {"layer": i, "target_layer": j, "rank": rank, "token": token, "token_text": name}
            chances = {"p": float(log_p[token].exp()), "control_p": float(plain[token].exp()), "kl": kl}
            rows.append({**where, **chances, **words})
    return pd.DataFrame(rows)


def _outcome(model: Model, batch: Batch, edits: Sequence[Edit], new_tokens: int) -> tuple[Tensor, str | list[int]]:
    """log p of the token that follows the prompt, and what is generated; ids where there is no tokenizer."""
    logits = model.run(batch, edits=edits).logits
    assert logits is not None  # the run has no `stop`
    end = int(batch.mask[0].nonzero().max())
    log_p = logits[0, end].float().log_softmax(-1).cpu()
    if not new_tokens:
        return log_p, ""
    ids = torch.as_tensor(model.generate(batch, edits=edits, max_new_tokens=new_tokens, do_sample=False))
    new = ids[0, batch.ids.shape[1] :].tolist()
    return log_p, new if model.tokenizer is None else str(model.tokenizer.decode(new))
