"""What a score of heads by discrete codes has to beat: differences of means and of norms, and a linear probe."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FOLDS = 5
RIDGE = 0.1
"""Of the mean squared length of what the probe reads."""
BLOCK = 16
"""Heads whose Gram matrices are held at a time."""


def standardised(x: Float[Tensor, "prompt head d"]) -> Float[Tensor, "prompt head d"]:
    """Each head's outputs less their mean over prompts, over one scale: root mean square of what is left."""
    centred = x - x.mean(0)
    return centred / centred.square().mean((0, 2), keepdim=True).sqrt().clamp_min(1e-12)


def mean_difference(
    x: Float[Tensor, "prompt head d"], labels: Bool[np.ndarray, " prompt"]
) -> Float[np.ndarray, " head"]:
    """|mean over positives - mean over negatives|, the length of a vector."""
    chosen = torch.from_numpy(labels).to(x.device)
    return (x[chosen].mean(0, dtype=torch.float64) - x[~chosen].mean(0, dtype=torch.float64)).norm(dim=-1).cpu().numpy()


def norm_difference(
    x: Float[Tensor, "prompt head d"], labels: Bool[np.ndarray, " prompt"]
) -> Float[np.ndarray, " head"]:
    """|mean |x| over positives - mean |x| over negatives|: no direction, only how much a head writes."""
    lengths, chosen = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64), torch.from_numpy(labels).to(x.device)
    return (lengths[chosen].mean(0) - lengths[~chosen].mean(0)).abs().cpu().numpy()


def probe_auc(
    x: Float[Tensor, "prompt head d"],
    labels: Bool[np.ndarray, " prompt"],
    pair: Int[np.ndarray, " prompt"],
    *,
    seed: int,
    ridge: float = RIDGE,
) -> Float[np.ndarray, " head"]:
    """Held-out AUC of a linear probe for the label at each head, a mean over folds; a pair is never split.

    Ridge regression of +-1 by kernels, all heads of a block at once: with n prompts it solves n x n systems whatever
    the width. NaN with a single pair.
    """
    n_pairs = int(pair.max()) + 1
    if n_pairs < 2:
        return np.full(x.shape[1], np.nan)
    fold = np.random.default_rng(seed).permutation(n_pairs) % min(FOLDS, n_pairs)
    folds = fold[pair]
    y = torch.from_numpy(np.where(labels, 1.0, -1.0)).to(x)
    values = []
    for start in range(0, x.shape[1], BLOCK):
        block = (x[:, start : start + BLOCK] - x[:, start : start + BLOCK].mean(0)).transpose(0, 1)
        gram = block @ block.mT
        scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        values.append(_fold_aucs(gram / scale[:, None, None], y, folds, ridge))
    return np.concatenate(values)


def _fold_aucs(
    gram: Float[Tensor, "head prompt prompt2"], y: Float[Tensor, " prompt"], folds: np.ndarray, ridge: float
) -> Float[np.ndarray, " head"]:
    aucs = []
    for k in range(int(folds.max()) + 1):
        train, test = (torch.from_numpy(np.flatnonzero(rows)).to(y.device) for rows in (folds != k, folds == k))
        inner = gram[:, train][:, :, train]
        ridged = inner + ridge * torch.eye(len(train), dtype=y.dtype, device=y.device)
        targets = y[train].expand(len(gram), -1)[..., None]
        weights = torch.cholesky_solve(targets, torch.linalg.cholesky(ridged))
        scores = (gram[:, test][:, :, train] @ weights)[..., 0]
        positive, negative = scores[:, y[test] > 0], scores[:, y[test] < 0]
        gap = positive[:, :, None] - negative[:, None]
        aucs.append(((gap > 0).double() + 0.5 * (gap == 0).double()).mean((1, 2)))
    return torch.stack(aucs).mean(0).cpu().numpy()
