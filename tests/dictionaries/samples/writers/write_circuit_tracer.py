# ruff: noqa
import sys

import torch
import torch.nn.functional as F
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet, load_transcoder_set
from common import answers, draw, inputs

root = sys.argv[1]
D, N, L = 6, 10, 2
f32 = dict(device=torch.device("cpu"), dtype=torch.float32)
hooks = dict(feature_input_hook="mlp.hook_in", feature_output_hook="hook_mlp_out")


def config(folder, kind, hooks):
    with open(f"{folder}/config.yaml", "w") as file:  # the entries that utils.caching writes
        yaml.dump({"model_kind": kind, "model_name": "tiny", "scan": "local/tiny", **hooks}, file)


for name, jump, skip in (("transcoders", True, False), ("skip-transcoders", False, True)):
    single = {}
    for i in range(L):
        act = JumpReLU(torch.full((N,), 0.2), 0.1) if jump else F.relu
        single[i] = SingleLayerTranscoder(D, N, act, i, skip_connection=skip, **f32)
        draw(single[i], 10 + i)
    folder = f"{root}/{name}"
    TranscoderSet(single, scan="local/tiny", **hooks).to_safetensors(folder)
    config(folder, "transcoder_set", hooks)
    again = load_transcoder_set(
        {i: f"{folder}/layer_{i}.safetensors" for i in range(L)},
        scan="local/tiny",
        **hooks,
        lazy_encoder=False,
        lazy_decoder=False,
        **f32,
    )
    x = inputs(L, 5, D)
    f = again.encode(x)
    answers(folder, x=x, features=f, output=again.decode(f, x))

hooks = dict(feature_input_hook="hook_resid_mid", feature_output_hook="hook_mlp_out")
for name, act in (("cross-layer", "relu"), ("cross-layer-jumprelu", "jump_relu")):
    clt = CrossLayerTranscoder(3, N, D, activation_function=act, lazy_decoder=False, **hooks, **f32)
    draw(clt, 20)
    folder = f"{root}/{name}"
    clt.to_safetensors(folder)
    config(folder, "cross_layer_transcoder", hooks)
    again = load_clt(folder, lazy_decoder=False, **hooks, **f32)
    x = inputs(3, 5, D)
    answers(folder, x=x, features=again.encode(x), output=again(x))
