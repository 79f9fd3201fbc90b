"""HookedTransformer checkpoints compute what the layout says: against einsum over the state dict, option by option."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hooked_checkpoints import VARIANTS, logits
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

import interp
from interp.attention import Entropy, Offset
from interp.batch import Batch
from interp.decompose.attribution import attribute
from interp.edits import Ablate, KnockOut, Scale
from interp.errors import BackendError, NotApplicable, TaskError
from interp.measurement.checks import check_backend
from interp.tasks.prompt import PromptTask
from interp.weights.ov import copying_ratio

DEPTH = 64  # sums over the widest axis, layers and their nonlinearities
ALL = pytest.mark.parametrize("variant", VARIANTS)
EAGER_ALONE = ("caps", "coefficient")


def prompts(options, *, rows=3, n=9):
    return torch.randint(options["d_vocab"], (rows, n), generator=torch.Generator().manual_seed(1))


@ALL
def test_logits_are_those_of_the_layout(checkpoint, variant):
    folder, options, state = checkpoint(variant)
    model, ids = interp.load(folder), prompts(options)
    expected = logits(options, state, ids).float()
    assert_equal_to_rounding(model.run(ids).logits, expected, depth=DEPTH)
    assert_equal_to_rounding(model.run(ids, edits=[Scale("pattern", 1.0)]).logits, expected, depth=DEPTH)
    for implementation in ("eager",) if variant in EAGER_ALONE else ("eager", "sdpa"):
        model.torch_module.set_attn_implementation(implementation)
        with torch.no_grad():
            assert_equal_to_rounding(model.torch_module(ids, use_cache=False).logits, expected, depth=DEPTH)


@ALL
def test_padding_changes_nothing(checkpoint, variant):
    folder, options, state = checkpoint(variant)
    ids = prompts(options)[:1]
    batch = Batch.of([ids[0].tolist(), ids[0, :5].tolist()], side="left")
    run = interp.load(folder).run(batch).logits
    assert_equal_to_rounding(run[1, -5:], logits(options, state, ids[:, :5])[0].float(), depth=DEPTH)


@pytest.mark.parametrize("variant", ["both ways", "coefficient", "shortformer", "narrow", "solu_ln"])
def test_every_law_of_models_holds(checkpoint, variant):
    folder, _, _ = checkpoint(variant)
    refused = check_backend(interp.load, modules={variant: lambda: interp.load(folder).torch_module})
    shortformer = {"shortformer: weights reproduce a run"}  # positions are added, so they turn nothing
    assert refused.keys() == (shortformer if variant == "shortformer" else set())


@pytest.mark.slow
@ALL
def test_every_law_of_models_holds_for_every_option(checkpoint, variant):
    folder, options, _ = checkpoint(variant)
    refused = check_backend(interp.load, modules={variant: lambda: interp.load(folder).torch_module})
    reason = "it has no MLP" if options.get("attn_only") else "not one linear map"
    assert all(reason in why for why in refused.values())


@pytest.mark.parametrize("variant", ["LN", "local", "grouped", "rotary", "shortformer"])
def test_a_cache_changes_nothing(checkpoint, variant):
    folder, options, _ = checkpoint(variant)
    model, ids = interp.load(folder), prompts(options, rows=2, n=4)
    kept, anew = (model.generate(ids, max_new_tokens=6, use_cache=flag) for flag in (True, False))
    assert torch.equal(kept, anew)
    assert kept.shape == (2, 10)


def test_attention_both_ways_generates_without_a_cache(checkpoint):
    folder, options, state = checkpoint("both ways")
    model, ids = interp.load(folder), prompts(options, rows=1, n=4)
    tokens = model.generate(ids, max_new_tokens=3)
    for n in range(4, 7):
        assert int(logits(options, state, tokens[:, :n])[0, -1].argmax()) == int(tokens[0, n])
    assert torch.equal(model.torch_module.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0), tokens)
    with pytest.raises(BackendError, match="keeps no cache"):
        model.generate(ids, max_new_tokens=3, use_cache=True)


def test_constant_weights_are_in_patterns_and_statistics(checkpoint):
    folder, options, _ = checkpoint("coefficient")
    model, ids = interp.load(folder), prompts(options)
    assert model.info.softmax_share == 0.3
    run = model.run(ids, capture=["pattern", "v", "z"])
    pattern = run["L1.pattern"]
    assert_close(pattern.sum(-1), torch.full_like(pattern.sum(-1), 0.3 + 0.7 * 9))
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, run["L1.v"])
    assert_close(z, run["L1.z"])
    offset = model.attention(ids, {"previous": Offset(1)})["previous"][1]
    assert_close(offset[:, :, 1:], pattern.diagonal(-1, -2, -1))
    with pytest.raises(NotApplicable, match="have no entropy"):
        model.attention(ids, {"H": Entropy()})
    with pytest.raises(BackendError, match="no fused kernel"):
        model.attention(ids, {"previous": Offset(1)}, method="fused")
    cut = model.run(ids, capture=["L1.pattern"], edits=[KnockOut("L1.pattern", keys=0)])["L1.pattern"]
    assert not cut[..., 0].any()
    assert cut[..., 1:].min() >= 0.7


def test_a_function_that_knows_no_constant_is_refused(checkpoint):
    folder, options, _ = checkpoint("coefficient")
    module = interp.load(folder).torch_module
    assert module.config._attn_implementation == "eager"
    module.set_attn_implementation("sdpa")
    with pytest.raises(BackendError, match="'sdpa' knows nothing of share"):
        module(prompts(options), use_cache=False)


def test_gradients_and_edits_of_heads(checkpoint):
    folder, options, state = checkpoint("attention only")
    model, ids = interp.load(folder), prompts(options)
    gone = {**state, "blocks.1.attn.W_O": state["blocks.1.attn.W_O"].clone()}
    gone["blocks.1.attn.W_O"][2] = 0
    edited = model.run(ids, edits=[Ablate("L1H2.z")]).logits
    assert_equal_to_rounding(edited, logits(options, gone, ids).float(), depth=DEPTH)
    run = model.run(ids, capture=["L1.z"], gradients=True)
    (grad,) = torch.autograd.grad(run.logits[:, -1, 3].sum(), run["L1.z"])
    expected = torch.einsum("hed,d->he", state["blocks.1.attn.W_O"], state["unembed.W_U"][:, 3])
    assert_equal_to_rounding(grad[:, -1], expected.expand_as(grad[:, -1]), depth=DEPTH)


def test_logits_that_are_no_tokens(checkpoint):
    folder, options, _ = checkpoint("narrow", n_ctx=40)
    model = interp.load(folder)
    assert (model.info.d_vocab, model.info.n_logits) == (19, 7)
    result = interp.analyze(model, "induction", n_prompts=16)
    ratio = result.table[result.table["variant"] == "copying_ratio"]
    assert ratio["value"].isna().all()
    assert len(result.interventions) == 0
    with pytest.raises(NotApplicable, match="reads logits as tokens, and here are 7 logits for 19 tokens"):
        interp.analyze(model, "copying")
    with pytest.raises(NotApplicable, match="7 logits for 19 tokens"):
        copying_ratio(model.ov_circuits())
    with pytest.raises(TaskError, match="expected ids from 0 to 6"):
        attribute(model, prompts(options), 18)
    task = PromptTask(
        name="pairs",
        corruption="another",
        clean=Batch.of(prompts(options, rows=4)),
        corrupt=Batch.of(prompts(options, rows=4).flip(1)),
        answers=torch.tensor([[6], [5], [4], [3]]),
        wrong=torch.tensor([[0], [7], [1], [2]]),
        roles={"END": torch.tensor([8, 8, 8, 8])},
        template=torch.zeros(4, dtype=torch.long),
        templates=("pairs",),
        metric="logit_diff",
    )
    with pytest.raises(TaskError, match="answer 7: this model gives 7 logits"):
        task.value(model.run(task.clean).logits)
    answerable = replace(task, wrong=torch.tensor([[0], [1], [2], [0]]))
    assert len(interp.analyze(model, "importance", task=answerable).table)  # a caller's answers are logits, not tokens


def test_positions_beyond_the_context_are_refused(checkpoint):
    folder, options, _ = checkpoint("LN")
    module = interp.load(folder).torch_module
    with pytest.raises(BackendError, match="13 tokens; the context is 12"):
        module(prompts(options, n=13))
