"""`Backward`: gradients of many targets from one forward pass of the held model."""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.features.local import LocalModel
from interp.sites import Site


class Backward:
    """One forward pass of the held model on `size` copies, from which gradients of many targets are taken."""

    def __init__(self, local: LocalModel, size: int, *, heads: bool = False) -> None:
        self.local, self.size = local, size
        values = {site: x.clone().requires_grad_() for site, x in local.clean_values(size).items()}
        self.values = values
        self.read = local.run(values, heads=heads)

    def gradients(
        self, targets: list[tuple[Site, Tensor, Tensor]], inputs: list[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Gradients at each cut, [size pos d], of r . x; targets: (site, positions, directions), a row each."""
        outputs, grads, row = [], [], 0
        for site, pos, r in targets:
            x = self.read[site]
            g = torch.zeros_like(x)
            rows = torch.arange(row, row + len(pos), device=x.device)
            g[rows, pos] = r.to(x.dtype)
            row += len(pos)
            if x.requires_grad:
                outputs.append(x)
                grads.append(g)
        wanted = list(self.values.values()) if inputs is None else inputs
        if not outputs:
            return tuple(torch.zeros_like(x) for x in wanted)
        return torch.autograd.grad(outputs, wanted, grads, retain_graph=True, allow_unused=True, materialize_grads=True)
