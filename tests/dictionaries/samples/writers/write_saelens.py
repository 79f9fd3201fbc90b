# ruff: noqa
import json
import sys

import torch
from common import answers, draw, inputs
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.transcoder import JumpReLUTranscoder, JumpReLUTranscoderConfig, SkipTranscoder, SkipTranscoderConfig

root = sys.argv[1]
D, F = 6, 10


def meta(hook, **more):
    return SAEMetadata(model_name="tiny", hook_name=hook, prepend_bos=False, context_size=8, **more)


cases = {
    "standard": (StandardSAE, StandardSAEConfig(d_in=D, d_sae=F, metadata=meta("blocks.1.hook_resid_pre"))),
    "standard-layer-norm": (
        StandardSAE,
        StandardSAEConfig(
            d_in=D,
            d_sae=F,
            normalize_activations="layer_norm",
            apply_b_dec_to_input=False,
            metadata=meta("blocks.0.hook_mlp_out"),
        ),
    ),
    "topk": (
        TopKSAE,
        TopKSAEConfig(
            d_in=D,
            d_sae=F,
            k=3,
            rescale_acts_by_decoder_norm=True,
            normalize_activations="constant_norm_rescale",
            metadata=meta("blocks.0.hook_resid_post"),
        ),
    ),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig(d_in=D, d_sae=F, metadata=meta("blocks.1.hook_resid_post"))),
    "gated-z": (
        GatedSAE,
        GatedSAEConfig(d_in=D, d_sae=F, reshape_activations="hook_z", metadata=meta("blocks.1.attn.hook_z")),
    ),
    "skip-transcoder": (
        SkipTranscoder,
        SkipTranscoderConfig(
            d_in=D,
            d_sae=F,
            d_out=D,
            apply_b_dec_to_input=False,
            metadata=meta("blocks.0.hook_mlp_in", hook_name_out="blocks.0.hook_mlp_out"),
        ),
    ),
    "jumprelu-transcoder": (
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig(
            d_in=D,
            d_sae=F,
            d_out=D,
            apply_b_dec_to_input=False,
            metadata=meta("blocks.1.hook_mlp_in", hook_name_out="blocks.1.hook_mlp_out"),
        ),
    ),
}
for name, (cls, cfg) in cases.items():
    sae = cls(cfg)
    draw(sae, 2)
    if hasattr(sae, "threshold"):
        sae.threshold.data.abs_()
    folder = f"{root}/{name}"
    sae.save_model(folder)
    x = inputs(5, 2, 3) if name == "gated-z" else inputs(5, D)
    again = SAE.load_from_disk(folder)
    answers(folder, x=x, features=again.encode(x), output=again(x))
# a training SAE, saved for inference by the package itself: BatchTopK becomes JumpReLU
sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=2, metadata=meta("blocks.0.hook_attn_out")))
draw(sae, 3)
sae.topk_threshold = torch.tensor(0.4, dtype=torch.float64)
folder = f"{root}/batchtopk"
sae.save_inference_model(folder)
x = inputs(5, D)
again = SAE.load_from_disk(folder)
answers(folder, x=x, features=again.encode(x), output=again(x))
