"""One analysis that cannot be run leaves the others alone: small models, odd ones, and faults of its own."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import transformers
from probe_cases import column, variant
from tiny_models import build, tiny
from torch import nn

import interp
from interp import zoo
from interp.edits import Scale
from interp.errors import BackendError, CheckError, InterpError, NotApplicable, NotFinite, SchemaError
from interp.measurement import registry
from interp.measurement.registry import Findings, analyses, analysis, detect

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 200,
}
INTERNAL = re.compile(r"unknown task|(\d+) of \1\b|Traceback|NoneType|-\d+ of")
"""What no reason may say: names of tasks nobody has asked for, words that are all there, negative sizes."""


def test_options_of_single_analyses_go_before_those_of_all():
    model = interp.load("zoo:planted-induction")
    options = {"previous_token": {"n_prompts": 6, "seed": 5}, "copying": {"n_tokens": 16}}
    result = detect(model, ["previous_token", "sink"], seed=3, options=options)
    passed = {call["call"]["analysis"]: call["call"]["passed"] for call in result.provenance["calls"]}
    assert passed == {"previous_token": {"n_prompts": 6, "seed": 5}, "sink": {"seed": 3}}


def test_an_analysis_that_is_asked_something_of_its_own_is_not_left_out():
    model = interp.load("zoo:default")
    task = interp.task("ioi", model, n=8)
    text = ["lamp fork road " * 8] * 3
    options = {"movers": {"task": task, "n_draws": 6}}
    result = detect(model, ["movers", "sink"], prompts=text, options=options)
    assert set(result.table["analysis"]) == {"movers", "sink"}
    with pytest.raises(NotApplicable, match="takes no prompts of one's own"):
        detect(model, ["movers"], prompts=text)


@pytest.fixture
def failing():
    """Register an analysis that raises, for one test."""
    before = dict(registry._registry)
    analyses()
    before |= registry._registry
    texts = {"family": "test", "title": "T", "headline": "score", "means": "m", "misleads": "m", "reference": "none"}

    def register(name, act):
        @analysis(name=name, **texts)
        def run(model, *, seed: int = 0) -> Findings:
            """Nothing."""
            return act(model)

    yield register
    registry._registry.clear()
    registry._registry.update(before)


def only(*names):
    """A progress bar that leaves out all but a few analyses."""
    return lambda todo: [a for a in todo if a.name in names]


def throws(error):
    def act(model):
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotApplicable("too short"), "too short"),
        (BackendError("no such norm"), "no such norm"),
        (SchemaError("no such column"), "no such column"),
        (
            TypeError("stack expects\n each tensor"),
            "ended with TypeError: stack expects each tensor; .* fault of the",
        ),
        (MemoryError("16 GiB"), "ran out of memory .*16 GiB.*; take fewer or shorter prompts"),
    ],
)
def test_whatever_one_analysis_raises_the_others_are_there(failing, error, reason):
    failing("breaks", throws(error))
    found = detect(tiny("gpt2"), progress=only("breaks", "previous_token"))
    assert set(found.table["analysis"]) == {"previous_token"}
    assert re.search(reason, found.provenance["left_out"]["breaks"])
    kind = type(error) if isinstance(error, InterpError) else (CheckError, BackendError)
    with pytest.raises(InterpError, match=f"'breaks': .*{reason}") as raised:  # by name it fails by name
        detect(tiny("gpt2"), ["previous_token", "breaks"])
    assert isinstance(raised.value, kind)
    assert raised.value.__cause__ is error
    with pytest.raises(kind, match=f"'gpt2'|GPT2.*breaks: .*{reason}"):
        detect(tiny("gpt2"), progress=only("breaks"))


def test_an_interrupt_is_no_reason(failing):
    failing("breaks", throws(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        detect(tiny("gpt2"), progress=only("breaks", "previous_token"))


def test_a_model_that_gives_no_numbers_is_an_error(failing):
    """Though there be analyses that do not notice."""
    row = {"variant": "score", "layer": 0, "head": 0, "value": 1.0, "unit": "fraction"}
    failing("constant", lambda model: Findings([row]))
    model = interp.load(build("llama"))
    model.torch_module.model.layers[0].self_attn.q_proj.weight.data[3, 5] = torch.nan
    with pytest.raises(NotFinite, match="^layer 0: attention queries not finite"):
        detect(model, progress=only("constant", "sink"))
    model = interp.load(build("llama"))
    model.torch_module.model.layers[1].mlp.down_proj.weight.data[3, 5] = torch.nan
    failing("whole", lambda model: Findings([{**row, "value": float(model.run(torch.arange(8)[None]).logits.sum())}]))
    with pytest.raises(NotFinite, match="^residual stream not finite"):  # behind the last attention, which sink ends at
        detect(model, progress=only("constant", "whole"))


def test_numbers_that_an_analysis_breaks_are_its_own_reason(failing):
    failing("breaks", lambda model: model.run([1, 2, 3], edits=Scale("L0.resid_pre", torch.inf)))
    found = detect(tiny("gpt2"), progress=only("breaks", "previous_token"))
    assert "not finite" in found.provenance["left_out"]["breaks"]
    assert set(found.table["analysis"]) == {"previous_token"}


def small(context=64, d_vocab=64):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": d_vocab, "n_positions": context}
    return transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)


def quantised():
    """A Llama whose linear layers hold whole numbers and a scale."""

    class Int8(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.scale = float(linear.weight.data.abs().max()) / 127
            whole = (linear.weight.data / self.scale).round().to(torch.int8)
            self.weight = nn.Parameter(whole, requires_grad=False)

        def forward(self, x):
            return x @ (self.weight.to(x.dtype) * self.scale).T

    module = build("llama")
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(part, name, Int8(child))
    return module


def deepseek():
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    }
    config = transformers.DeepseekV3Config(**BASE, **ranks, **experts, num_key_value_heads=4, moe_intermediate_size=16)
    return transformers.DeepseekV3ForCausalLM(config).eval()


def gemma4():
    heads = {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_kv_shared_layers": 0}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 256}
    inputs = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8}
    return transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**BASE, **heads, **kinds, **inputs)).eval()


CASES = {
    "context 3": lambda: transformers.GPT2LMHeadModel(small(context=3)),
    "context 22": lambda: transformers.GPT2LMHeadModel(small(context=22)),
    "4 words": lambda: transformers.GPT2LMHeadModel(small(d_vocab=4)),
    "12 words": lambda: transformers.GPT2LMHeadModel(small(d_vocab=12)),
    "int8": quantised,
    "DeepSeek-V3": deepseek,
    "Gemma-4": gemma4,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_analysis_of_an_odd_model_is_there_or_has_a_reason(name):
    model = interp.load(CASES[name]())
    found = detect(model)
    heads = {a.name for a in analyses().values() if a.unit == "head"}
    left_out = found.provenance["left_out"]
    assert set(found.table["analysis"]) | set(left_out) == heads
    for reason in left_out.values():
        assert "fault of the analysis" not in reason
        assert not INTERNAL.search(reason)


@pytest.mark.parametrize("name", ["context 3", "context 22", "4 words"])
def test_analyses_of_a_small_model_say_what_they_lack(name):
    asked = "induction", "previous_token", "retrieval", "direct_attribution", "movers", "echo_induction", "copying"
    found = detect(interp.load(CASES[name]()), progress=only(*asked))
    left_out = found.provenance["left_out"]
    assert "copying" in set(found.table["analysis"])
    assert {"movers", "direct_attribution", "retrieval", "echo_induction"} <= set(left_out)
    assert left_out["movers"] == left_out["direct_attribution"] == "needs text, and this checkpoint has no tokenizer"
    assert not any(INTERNAL.search(reason) for reason in left_out.values())


@pytest.mark.parametrize("make", [deepseek, gemma4, quantised])
def test_attention_statistics_do_not_wait_for_the_weights(make):
    """Where weights can be read there is a copying ratio; where not, the rest of the table and the reason."""
    model = interp.load(make())
    found = interp.analyze(model, "induction", n_prompts=8, causal=False)
    assert np.isfinite(column(found, "prefix_matching")).all()
    assert np.isfinite(column(found, "argmax_hit")).all()
    reading, ratio = found.provenance["data"]["copying_ratio"], column(found, "copying_ratio")
    assert np.isfinite(ratio).all() if reading == "read" else np.isnan(ratio).all()
    if reading != "read":
        assert reading.startswith("not read off the weights: ")


def test_a_head_is_labelled_by_its_attention_where_weights_cannot_be_read():
    """Queries that are not linear in the stream have no matrix, and attend all the same."""

    class Bent(nn.Linear):
        def forward(self, x):
            q = super().forward(x)
            return q + 0.02 * q.abs()

    model = interp.load("zoo:planted-induction")
    ((layer, head),) = zoo.truth("planted-induction").roles["induction"]
    attention = model.torch_module.model.layers[layer].self_attn
    bent = Bent(attention.q_proj.in_features, attention.q_proj.out_features, bias=attention.q_proj.bias is not None)
    bent.load_state_dict(attention.q_proj.state_dict())
    attention.q_proj = bent
    found = interp.analyze(interp.load(model.torch_module), "induction", n_prompts=16, causal=False)
    rows = variant(found, "prefix_matching")
    assert list(rows.index[rows["label"].astype(bool)]) == [f"L{layer}H{head}"]
    assert variant(found, "copying_ratio")["value"].isna().all()
    assert "queries are not affine" in found.provenance["data"]["copying_ratio"]


def test_no_drop_where_nothing_was_removed():
    """Heads that nothing removed stands before have no drop, rather than one of exactly 0."""
    found = interp.analyze(tiny("gpt2"), "induction", n_prompts=8, causal=False)
    removed = found.provenance["data"]["previous_token_heads"]
    first = min(int(name[1 : name.index("H")]) for name in removed)
    rows = variant(found, "previous_token_dependence")
    assert (rows["value"].isna() == (rows["layer"] <= first)).all()
    assert (rows["se"].isna() == (rows["layer"] <= first)).all()
    made = zoo.truth("planted-induction").roles["previous_token"]
    planted = interp.analyze(interp.load("zoo:planted-induction"), "induction", n_prompts=16, causal=False)
    rows = variant(planted, "previous_token_dependence")
    assert (rows["value"].isna() == (rows["layer"] <= made[0][0])).all()
    assert rows["value"].max() > 0.9
