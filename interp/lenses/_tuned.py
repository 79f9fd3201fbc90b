"""`tuned_lens`: an affine map per layer, trained so that what is read off is the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Prompts
from interp.decompose.lens import read_out
from interp.edits import Edit
from interp.errors import NotFinite
from interp.lenses.lens import Lens, chosen_layers, constant_log_p, distances, halves, lens_data, lens_rows, streams
from interp.model import Model
from interp.results.provenance import recorded

RIDGE = 1e-2
"""Of the least-squares start, in mean squares of the stream."""


@recorded
def tuned_lens(
    model: Model,
    tokens: Prompts,
    *,
    layers: Sequence[int] | None = None,
    held_out: float = 0.25,
    steps: int = 200,
    rate: float = 1e-3,
    tokens_per_step: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> Lens:
    """KL(p_model || softmax(cap(W_U norm(A_l h_l + b_l)))) on held-out prompts, A_l and b_l trained to make it small.

    One affine map per layer, all trained at once by Adam on random tokens of the prompts fitted on. It starts from the
    identity or from the ridge regression of the last layer's stream on the layer's, whichever is nearer to the model on
    those tokens. What is read early is then told apart from what the unembedding does not read; but a map that is
    trained may also predict what the layer does not yet "know": it says what can be read off, as a probe does.
    Reference: Belrose et al. 2023 (arXiv 2303.08112), who train on 16 M tokens: a few hundred prompts give a rough one.

    Args:
        model: any backend with gradients.
        tokens: prompts; their streams at all layers are held in memory.
        layers: to be mapped; all but the last without.
        held_out: share of prompts that are not trained on.
        steps: of Adam; the rate falls to nothing over them.
        rate: of Adam, on maps of the stream in units of its root mean square.
        tokens_per_step: drawn for each step.
        batch_size: prompts of a forward.
        seed: of the split, the draws and the bootstrap.
        edits: changes under which the model runs.

    Returns:
        A `Lens`; its rows have variant ("tuned", "plain"), layer, value (KL in nats, mean over a prompt's tokens, then
        over prompts), its 95 % interval, null (KL of the mean distribution of the tokens trained on, which looks at
        nothing), p and q (that the trained lens is no nearer than the plain one; paired by prompt) and n.

    Raises:
        SiteError: a layer that does not exist, or the last.
        TaskError: fewer than three prompts are held out.
        NotFinite: training that diverges.
    """
    picked = chosen_layers(model, layers)
    train, test = halves(model, tokens, held_out, seed=seed)
    x = streams(model, train, picked, train.mask, batch_size)
    with model.frozen():
        matrices, offsets = _start(model, x)
        matrices, offsets = _descend(model, x, matrices, offsets, steps, rate, tokens_per_step, seed=seed)
    constant = constant_log_p(model, x[-1])
    lens = Lens(picked, matrices.cpu(), offsets.cpu())
    kl = distances(model, test, picked, lens, constant, batch_size=batch_size)
    rows = lens_rows("tuned", picked, kl, seed=seed)
    return Lens(picked, lens.matrices, lens.offsets, rows, {"method": "tuned-lens", "data": lens_data(train, test)})


def _loss(model: Model, x: Tensor, matrices: Tensor, offsets: Tensor, *, gradients: bool) -> Float[Tensor, " layer"]:
    """KL of each layer, mean over tokens; x holds the layers' streams and, last, the final one."""
    with torch.no_grad():
        final = read_out(model, x[-1]).float().log_softmax(-1)
    log_p = read_out(model, x[:-1] @ matrices.mT + offsets[:, None], gradients=gradients).float().log_softmax(-1)
    return (final.exp() * (final - log_p)).sum(-1).mean(-1)


@torch.no_grad()
def _start(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Identity, or least squares where that is nearer, layer by layer."""
    n_layers, d = len(x) - 1, x.shape[-1]
    eye = torch.eye(d, device=x.device)
    mean = x.mean(1)
    centred = x - mean[:, None]
    matrices, offsets = eye.repeat(n_layers, 1, 1), torch.zeros(n_layers, d, device=x.device)
    gram = centred[:-1].mT @ centred[:-1]
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    # towards the identity, not towards zero, where the tokens say nothing
    change = centred[:-1].mT @ (centred[-1] - centred[:-1])
    fitted = eye + torch.linalg.solve(gram + ridge[:, None, None] * eye, change).mT
    shift = mean[-1] - (fitted @ mean[:-1, :, None])[..., 0]
    some = x[:, torch.linspace(0, x.shape[1] - 1, min(256, x.shape[1])).long()]
    nearer = _loss(model, some, fitted, shift, gradients=False) < _loss(model, some, matrices, offsets, gradients=False)
    pick = nearer[:, None]
    return torch.where(pick[..., None], fitted, matrices), torch.where(pick, shift, offsets)


def _descend(
    model: Model, x: Tensor, matrices: Tensor, offsets: Tensor, steps: int, rate: float, size: int, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Adam on what is added to the start, in units of each layer's root mean square and of the last one's."""
    scale = x.square().mean((1, 2)).sqrt().clamp(min=1e-12)
    turn, move = torch.zeros_like(matrices).requires_grad_(), torch.zeros_like(offsets).requires_grad_()
    optimizer = torch.optim.Adam([turn, move], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)

    def maps() -> tuple[Tensor, Tensor]:
        return matrices + turn * (scale[-1] / scale[:-1])[:, None, None], offsets + move * scale[-1]

    for step in range(steps):
        at = torch.randint(x.shape[1], (min(size, x.shape[1]),), generator=generator).to(x.device)
        loss = _loss(model, x[:, at], *maps(), gradients=True).sum()
        if not bool(loss.isfinite()):
            raise NotFinite(f"the loss of step {step} is {float(loss.detach())}; take a smaller rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    trained = maps()
    return trained[0].detach(), trained[1].detach()
