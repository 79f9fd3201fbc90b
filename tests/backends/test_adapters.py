"""A low-rank adapter and the layer that it wraps are one: edits, sites and weights are those of the merged model."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import build, ragged
from tolerance import assert_equal_to_rounding
from torch import nn

import interp
from interp.decompose import attribute
from interp.errors import ModelLoadError

IDS = ragged(9, "unpadded", lengths=(9, 9))
KINDS = ["z", "head_out", "attn_out", "mlp_in", "mlp_post", "mlp_out", "resid_mid"]


class Adapter(nn.Module):
    """W x + B A x, made as peft makes it: the layer inside, two small maps beside it."""

    def __init__(self, base: nn.Module, sizes: tuple[int, int], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base_layer = base
        self.lora_A, self.lora_B = nn.Linear(sizes[0], 3, bias=False), nn.Linear(3, sizes[1], bias=False)
        for part in (self.lora_A, self.lora_B):
            part.weight.data.normal_(0, 0.3, generator=generator)
        self.lora_dropout = nn.Dropout(0.5)

    @property
    def weight(self) -> torch.Tensor:
        """That of the layer inside, as peft has it."""
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(self.lora_dropout(x)))

    def merged(self) -> nn.Module:
        """The layer with the adapter in its weights."""
        layer, change = copy.deepcopy(self.base_layer), self.lora_B.weight @ self.lora_A.weight
        layer.weight.data += change if isinstance(layer, nn.Linear) else change.T
        return layer


def adapted(name: str, targets: tuple[str, ...]) -> tuple[nn.Module, nn.Module]:
    """A model with adapters around these layers, and the same with them merged."""
    module, merged = build(name).eval(), build(name).eval()
    for seed, (path, layer) in enumerate(list(module.named_modules())):
        if path.endswith(targets):
            shape = tuple(layer.weight.shape)
            adapter = Adapter(layer, shape[::-1] if isinstance(layer, nn.Linear) else shape, seed).eval()
            module.set_submodule(path, adapter)
            merged.set_submodule(path, adapter.merged())
    return module, merged


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ("o_proj",)),
        ("llama", ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ("gpt2", ("c_proj", "c_attn", "c_fc")),
        ("gemma2", ("o_proj", "down_proj")),
    ],
)
def test_an_adapted_model_is_the_merged_one(name, targets):
    ours, right = (interp.load(module) for module in adapted(name, targets))
    plain = interp.load(build(name))
    run, expected = ours.run(IDS, capture=KINDS), right.run(IDS, capture=KINDS)
    assert set(run.acts) == set(expected.acts)
    assert not torch.allclose(run.logits, plain.run(IDS).logits, atol=1e-2)
    for site, value in expected.acts.items():
        assert_equal_to_rounding(run[site], value, depth=256)
    edits = [*interp.ablate_heads(["L1H2", "L0H0"]), interp.Ablate("L0.mlp_out")]
    assert_equal_to_rounding(ours.run(IDS, edits=edits).logits, right.run(IDS, edits=edits).logits, depth=256)
    for layer in range(2):
        a, b = (m.weights()[layer] for m in (ours, right))
        for matrix in ("w_q", "w_k", "w_v", "w_o"):
            assert_equal_to_rounding(getattr(a, matrix), getattr(b, matrix), depth=256)
    a, b = (attribute(m, IDS, 3) for m in (ours, right))
    assert_equal_to_rounding(a.values, b.values, depth=256)


class Wrapped(nn.Module):
    """What peft hands out: the model inside, and how it was adapted."""

    def __init__(self, module: nn.Module, **config: bool) -> None:
        super().__init__()
        self.base_model = module
        self.peft_config = {"default": type("Config", (), config)()}

    def get_base_model(self) -> nn.Module:
        return self.base_model


def test_the_object_that_holds_adapters_comes_in():
    module, merged = adapted("llama", ("o_proj",))
    model = interp.load(Wrapped(module, is_prompt_learning=False))
    assert_equal_to_rounding(model.run(IDS).logits, interp.load(merged).run(IDS).logits, depth=256)
    with pytest.raises(ModelLoadError, match="adds tokens in front of every prompt"):
        interp.load(Wrapped(module, is_prompt_learning=True))
