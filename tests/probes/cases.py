"""What the tests of attention analyses share: reading a result, dense patterns, a model that attends blindly."""

from __future__ import annotations

import torch
from tiny_models import build

import interp

LENGTH = 40
"""Tokens of each of the prompts of attention analyses."""
HEADLINES = {"entropy": "focus", "offset_profile": "peak", "lag_profile": "best", "distraction": "auroc"}


def variant(result, name):
    return result.table[result.table["variant"] == name].set_index("component")


def column(result, name, field="value"):
    return variant(result, name)[field].to_numpy(dtype=float)


def eager(model, batch):
    """[layer prompt head query key] as transformers itself computes it."""
    with torch.no_grad():
        found = model.torch_module(
            batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, output_attentions=True
        )
    return torch.stack(found.attentions).double().numpy()


def blind(architecture="llama", **changes):
    """A model whose queries are zero: every row is uniform over what it may see."""
    module = build(architecture, **changes)
    for name, parameter in module.named_parameters():
        if "q_proj" in name or "q_norm" in name:
            parameter.data.zero_()
    return interp.load(module)


def named(made, role):
    return ["L{}H{}".format(*at) for at in made.truth.roles[role]]


def resting(*, token=None, position=None, head=0):
    """A GPT-2 of which one head of layer 0 keeps to a token wherever it stands, or to a position whatever stands there.

    Its words are <bos>, ".", and w2 to w63.
    """
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    config = transformers.GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=8, n_positions=64)
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(config).eval()
    module.set_attn_implementation("eager")
    along = torch.zeros(64)
    along[0], along[1] = 1, -1
    for table in (module.transformer.wte, module.transformer.wpe):
        table.weight.data[:, 1] = table.weight.data[:, 0]  # nothing along it
    if token is not None:
        module.transformer.wte.weight.data[token] = 3 * along
    if position is not None:
        module.transformer.wpe.weight.data[position] = 3 * along
    attention, own = module.transformer.h[0].attn.c_attn, slice(8 * head, 8 * head + 8)
    attention.weight.data[:, own] = 0
    attention.bias.data[own] = 1.0  # the query, whatever the token
    attention.weight.data[:, 64 + 8 * head : 72 + 8 * head] = along[:, None] * 0.3
    words = WordLevel({"<bos>": 0, ".": 1, **{f"w{i}": i for i in range(2, 64)}}, unk_token="w2")
    raw = Tokenizer(words)
    raw.pre_tokenizer = WhitespaceSplit()
    return interp.load(module, tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>"))
