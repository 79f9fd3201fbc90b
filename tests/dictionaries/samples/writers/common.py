# ruff: noqa
"""Random parameters for a module, drawn from one seed, and the file that holds a package's own answers."""

import torch
from safetensors.torch import save_file


def draw(module, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(99))


def answers(folder, **tensors):
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, f"{folder}/answers.safetensors")
