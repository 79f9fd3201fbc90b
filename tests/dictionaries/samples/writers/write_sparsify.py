# ruff: noqa
import sys

import torch
from common import answers, draw, inputs
from sparsify import SparseCoder, SparseCoderConfig

root = sys.argv[1]


def dense(coder, x):
    acts, index, _ = coder.encode(x)
    return torch.zeros(len(x), coder.num_latents).scatter(1, index, acts)


for name, options in {
    "layers.1": {},
    "layers.0.mlp": {"transcode": True, "skip_connection": True},
    "layers.1.attention": {"activation": "groupmax"},
}.items():
    coder = SparseCoder(6, SparseCoderConfig(expansion_factor=2, k=3, **options))
    draw(coder, 1)
    coder.set_decoder_norm_to_unit_norm()
    coder.save_to_disk(f"{root}/{name}")
    x = inputs(5, 6)
    answers(f"{root}/{name}", x=x, features=dense(coder, x), output=coder(x).sae_out)
