"""The small autoencoder whose features are codes of head outputs: trained on a few prompts, several seeds at once.

Head outputs of different heads are rows of one training set. With W_enc of unit columns and W_dec of unit rows,

    f = relu((x - b) W_enc + b_enc)        x_hat = f W_dec + b        loss = mean (x - x_hat)^2 + penalty E sum f

and the code of an output is its largest feature, or the set of those above 0 (O'Neill and Bui 2024, arXiv 2405.12522).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.dictionaries import Dictionary
from interp.dictionaries.activations import ReLU
from interp.errors import SchemaError

BLOCK = 1 << 18
"""Feature activations held at a time while encoding: 1 MiB in float32, which a cache holds."""


@dataclass(frozen=True)
class Training:
    """How the autoencoder of codes is trained; what stands here is as published.

    Attributes:
        n_features: features.
        n_examples: prompts whose head outputs it is trained on, drawn from positives and negatives alike.
        epochs: steps over all of them at once.
        penalty: weight of the sum of an output's features, a mean over outputs.
        learning_rate: of Adam.
    """

    n_features: int = 200
    n_examples: int = 10
    epochs: int = 500
    penalty: float = 0.02
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse sizes below 1 and weights below 0."""
        for name in ("n_features", "n_examples", "epochs"):
            if getattr(self, name) < 1:
                raise SchemaError(f"{name}={getattr(self, name)}: expected 1 or more")
        if self.penalty < 0 or self.learning_rate <= 0:
            raise SchemaError("expected penalty >= 0 and learning_rate > 0")


def train_codes(
    x: Float[Tensor, "prompt head d"], training: Training | None = None, *, seeds: Sequence[int] = (0,)
) -> tuple[Dictionary, ...]:
    """One autoencoder a seed, each on its own draw of `n_examples` prompts; all are trained in the same steps.

    Adam is elementwise and the loss a sum over seeds: what one seed gives does not depend on the others.

    Raises:
        SchemaError: no seed.
    """
    how = training or Training()
    if not seeds:
        raise SchemaError("no seed to train an autoencoder with")
    rows, starts = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(x), generator=generator)[: how.n_examples]
        rows.append(x[chosen.to(x.device)].reshape(-1, x.shape[-1]).float())
        starts.append(torch.randn(how.n_features, x.shape[-1], generator=generator))
    data = torch.stack(rows)
    w_dec = _unit(torch.stack(starts).to(x.device), 2)
    parameters = [
        w_dec.mT.contiguous(),  # w_enc, whose columns are the decoder's rows at the start
        w_dec,
        data.new_zeros(len(seeds), 1, how.n_features),
        data.mean(1, keepdim=True),
    ]
    for p in parameters:
        p.requires_grad_(True)
    w_enc, w_dec, b_enc, b = parameters
    optimiser = torch.optim.Adam(parameters, lr=how.learning_rate)
    with torch.enable_grad():
        for _ in range(how.epochs):
            f = torch.relu(torch.baddbmm(b_enc - b @ w_enc, data, w_enc))  # no gradient to the data is computed
            error = data - torch.baddbmm(b, f, w_dec)
            loss = error.square().mean((1, 2)) + how.penalty * f.sum(2).mean(1)
            optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimiser.step()
            with torch.no_grad():
                w_enc.copy_(_unit(w_enc, 1))
                w_dec.copy_(_unit(w_dec, 2))
    w_enc, w_dec, b_enc, b = (p.detach() for p in parameters)
    return tuple(
        Dictionary(w_enc[i], w_dec[i], b_enc[i, 0], b[i, 0], centred=True, metadata={"seed": seed})
        for i, seed in enumerate(seeds)
    )


def _unit(x: Tensor, dim: int) -> Tensor:
    return x / x.norm(dim=dim, keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def codes(
    x: Float[Tensor, "prompt head d"], dictionary: Dictionary, *, w_o: Float[Tensor, "head d d_model"] | None = None
) -> Int[np.ndarray, "prompt head"]:
    """The largest feature of every head's output; 0 where no feature is above 0, as published.

    With `w_o`, `x` is z and the outputs are z W_O, which are not made where a ReLU makes the features: by

        (z W_O - b) W_enc + b_enc = z (W_O W_enc) + b_enc - b W_enc

    W_O is folded into the encoder. Codes are the same up to rounding; it is cheaper for more prompts than z is wide.
    Outputs standardised head by head are such products too: of z less its mean with W_O over the head's scale.

    Raises:
        SchemaError: a dictionary of another width, or W_O of other heads than z.
    """
    step = max(1, BLOCK // dictionary.n_features)
    if w_o is None:
        parts = [_largest(_before_relu(rows, dictionary)) for rows in x.flatten(0, 1).split(step)]
        return np.concatenate(parts).reshape(x.shape[:2])
    if w_o.shape[:2] != x.shape[1:]:
        raise SchemaError(f"w_o of shape {tuple(w_o.shape)}; expected (heads, d_head, d_model) for z {tuple(x.shape)}")
    plain, b = _affine(dictionary, w_o.shape[2]), None
    if plain is not None:
        w, b = plain
        w_o = (w_o.to(w.dtype).flatten(0, 1) @ w).view(*w_o.shape[:2], -1)
    heads = []
    for z, weights in zip(x.to(w_o.dtype).unbind(1), w_o, strict=True):
        blocks = z.split(step)
        features = (dictionary.encode(r @ weights) if b is None else torch.addmm(b, r, weights) for r in blocks)
        heads.append(np.concatenate([_largest(f) for f in features]))
    return np.stack(heads, 1)


def _largest(features: Float[Tensor, "row feature"]) -> Int[np.ndarray, " row"]:
    """The largest feature of each row, 0 where none is above 0."""
    if features.device.type == "cpu":  # NumPy's argmax takes a sixth of the time of torch's
        f = features.float().numpy()
        feature = f.argmax(1)
        return np.where(f[np.arange(len(f)), feature] > 0, feature, 0)
    largest, index = features.max(1)
    return torch.where(largest > 0, index, 0).cpu().numpy()


def _affine(dictionary: Dictionary, d: int) -> tuple[Tensor, Tensor] | None:
    """W and b of x W + b, in whose order features above 0 stand; None unless a ReLU of outputs `d` wide makes them."""
    plain = isinstance(dictionary.activation, ReLU) and dictionary.normalisation.kind == "none"
    if not plain or dictionary.scaled or d != dictionary.d_in:
        return None
    w, b = dictionary.w_enc, dictionary.b_enc
    return w, b - dictionary.b_dec @ w if dictionary.centred else b


def _before_relu(x: Float[Tensor, "row d"], dictionary: Dictionary) -> Float[Tensor, "row feature"]:
    """Features of rows; where a ReLU makes them, without it, since it changes no order above 0: one product a block."""
    plain = _affine(dictionary, x.shape[1])
    if plain is None:
        return dictionary.encode(x)
    w, b = plain
    return torch.addmm(b, x.to(w.dtype), w)


@torch.no_grad()
def active_features(
    x: Float[Tensor, "prompt head d"], dictionary: Dictionary
) -> Bool[np.ndarray, "prompt head feature"]:
    """Which features of every head's output are above 0.

    Raises:
        SchemaError: a dictionary of another width.
    """
    step = max(1, BLOCK // (x.shape[1] * dictionary.n_features))
    parts = [dictionary.encode(x[i : i + step]) > 0 for i in range(0, len(x), step)]
    return torch.cat(parts).cpu().numpy()
