# ruff: noqa
"""By hand, in the layout of Gemma Scope (npz) and Gemma Scope 2; answers by sae-lens, which reads those files."""

import json
import os
import sys

import numpy as np
import torch
from common import answers, inputs
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.transcoder import JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig
from safetensors.torch import save_file

root = sys.argv[1]
D, N = 6, 16
g = torch.Generator().manual_seed(7)


def r(*s):
    return torch.randn(*s, generator=g) * 0.5


p = {"W_enc": r(D, N), "W_dec": r(N, D), "b_enc": r(N), "b_dec": r(D), "threshold": r(N).abs()}
folder = f"{root}/gemma-scope-tiny-pt-res/layer_1/width_16/average_l0_4"
os.makedirs(folder, exist_ok=True)
np.savez(f"{folder}/params.npz", **{k: v.numpy() for k, v in p.items()})
sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=N, apply_b_dec_to_input=False))
sae.load_state_dict(p)
x = inputs(5, D)
answers(folder, x=x, features=sae.encode(x), output=sae(x))
q = {
    "w_enc": r(D, N),
    "w_dec": r(N, D),
    "b_enc": r(N),
    "b_dec": r(D),
    "threshold": r(N).abs(),
    "affine_skip_connection": r(D, D),
}
folder = f"{root}/gemma-scope-2-tiny-pt/transcoder/layer_1_width_16_l0_small_affine"
os.makedirs(folder, exist_ok=True)
save_file(q, f"{folder}/params.safetensors")
json.dump(
    {
        "architecture": "jump_relu",
        "model_name": "tiny",
        "hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output",
        "affine_connection": True,
    },
    open(f"{folder}/config.json", "w"),
)
t = JumpReLUSkipTranscoder(JumpReLUSkipTranscoderConfig(d_in=D, d_sae=N, d_out=D, apply_b_dec_to_input=False))
t.load_state_dict(
    {
        "W_enc": q["w_enc"],
        "W_dec": q["w_dec"],
        "b_enc": q["b_enc"],
        "b_dec": q["b_dec"],
        "threshold": q["threshold"],
        "W_skip": q["affine_skip_connection"].T.contiguous(),
    }
)
answers(folder, x=x, features=t.encode(x), output=t(x))
