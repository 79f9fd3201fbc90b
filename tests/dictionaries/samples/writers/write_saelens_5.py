# ruff: noqa
import sys

from common import answers, draw, inputs
from sae_lens import SAE, SAEConfig

root = sys.argv[1]
for name, options in {
    "flat": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
    "flat-gated": {"architecture": "gated", "activation_fn_str": "relu", "activation_fn_kwargs": {}},
    "flat-jumprelu": {
        "architecture": "jumprelu",
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "normalize_activations": "layer_norm",
    },
}.items():
    base = dict(
        architecture="standard",
        d_in=6,
        d_sae=10,
        apply_b_dec_to_input=True,
        finetuning_scaling_factor=False,
        context_size=8,
        model_name="tiny",
        hook_name="blocks.1.hook_resid_pre",
        hook_layer=1,
        hook_head_index=None,
        prepend_bos=False,
        dataset_path="none",
        dataset_trust_remote_code=False,
        normalize_activations="none",
        dtype="float32",
        device="cpu",
        sae_lens_training_version=None,
    )
    sae = SAE(SAEConfig(**{**base, **options}))
    draw(sae, 5)
    if hasattr(sae, "threshold"):
        sae.threshold.data.abs_()
    folder = f"{root}/{name}"
    sae.save_model(folder)
    again = SAE.load_from_pretrained(folder)
    x = inputs(5, 6)
    answers(folder, x=x, features=again.encode(x), output=again(x))
