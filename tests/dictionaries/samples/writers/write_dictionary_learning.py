# ruff: noqa
import json
import os
import sys

import torch
from common import answers, draw, inputs
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.utils import load_dictionary

root = sys.argv[1]
D, F = 6, 10
common = dict(activation_dim=D, dict_size=F, layer=1, lm_name="tiny", device="cpu")
trainers = {
    "standard": lambda: StandardTrainer(
        steps=10, warmup_steps=1, sparsity_warmup_steps=None, submodule_name="resid_post_layer_1", **common
    ),
    "topk": lambda: TopKTrainer(steps=10, k=3, warmup_steps=1, submodule_name="resid_post_layer_1", **common),
    "batchtopk": lambda: BatchTopKTrainer(steps=10, k=2, warmup_steps=1, submodule_name="resid_post_layer_1", **common),
    "jumprelu": lambda: JumpReluTrainer(
        steps=10, warmup_steps=1, sparsity_warmup_steps=None, submodule_name="resid_post_layer_1", **common
    ),
    "gated": lambda: GatedSAETrainer(
        steps=10, warmup_steps=1, sparsity_warmup_steps=None, submodule_name="attn_layer_1", **common
    ),
    "matryoshka": lambda: MatryoshkaBatchTopKTrainer(
        steps=10, k=2, warmup_steps=1, group_fractions=[0.5, 0.5], submodule_name="mlp_layer_1", **common
    ),
}
for name, make in trainers.items():
    trainer = make()
    ae = trainer.ae
    draw(ae, 4)
    if hasattr(ae, "threshold"):
        with torch.no_grad():
            ae.threshold.copy_(ae.threshold.abs() if ae.threshold.ndim else torch.tensor(0.3))
    folder = f"{root}/{name}"
    os.makedirs(folder, exist_ok=True)
    config = trainer.config
    json.dump(
        {"trainer": {k: (v.item() if isinstance(v, torch.Tensor) else v) for k, v in config.items()}},
        open(f"{folder}/config.json", "w"),
        indent=4,
    )
    torch.save({k: v.cpu() for k, v in ae.state_dict().items()}, f"{folder}/ae.pt")  # as training.trainSAE ends
    again, _ = load_dictionary(folder, "cpu")
    x = inputs(5, D)
    answers(folder, x=x, features=again.encode(x), output=again(x))
