"""A model that generates: edits of single steps, activations kept, texts."""

from __future__ import annotations

import pytest
import torch
from agreement import on
from tiny_models import D_MODEL, N_HEADS, ragged, tiny
from tolerance import assert_equal_to_rounding

import interp
from interp.edits import Ablate, Add, Apply, KnockOut, Scale
from interp.sites import SQUARE

NEW = 5
SITES = ["L0.resid_post", "L1H1.z", "L1.k", "L0.pattern", "L1H2.scores", "L0.resid_post@-1", "L1.norm_scale"]
DIRECTION = torch.linspace(-3, 3, D_MODEL)
BY_STEP = {
    0: [Add("L0.resid_post", DIRECTION, positions=3)],
    1: [Ablate("L0H1.z"), Scale("L1H0.v", -2.0)],
    3: [Add("L1.attn_out", DIRECTION.flip(0)), Apply("L0H3.z", torch.sin)],
}


def model_of(backend):
    return tiny("llama") if backend == "hf" else on(backend, "llama")


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("backend", ["hf", "lens", "nnsight"])
def test_what_is_kept_of_a_generation_is_what_a_run_of_its_tokens_keeps(backend, cache):
    model, batch = model_of(backend), ragged(6, "left", lengths=(6, 4))
    edits = [Ablate("L0H1.z")]
    generation = model.generate(batch, edits=edits, capture=SITES, max_new_tokens=NEW, use_cache=cache)
    assert torch.equal(generation.ids, model.generate(batch, edits=edits, max_new_tokens=NEW))
    read = interp.batch.Batch(generation.ids[:, :-1], torch.cat([batch.mask, torch.ones(2, NEW - 1).bool()], 1))
    run = model.run(read, capture=[*SITES[:-2], SITES[-1]], edits=edits)
    for site, x in run.acts.items():
        shape = (2, *(1,) * (x.ndim - 3), -1, 1) if site.kind in SQUARE else (2, -1, *(1,) * (x.ndim - 2))
        seen = x.isfinite() & read.mask.view(shape)
        assert_equal_to_rounding(generation[site].where(seen, 0.0), x.where(seen, 0.0), msg=str(site))
    assert_equal_to_rounding(generation["L0.resid_post@-1"], run["L0.resid_post"][:, 5])


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("backend", ["hf", "lens"])
def test_edits_of_a_step_are_of_its_token_alone(backend, cache):
    """Against runs of the tokens so far, every edit at its own position."""
    model, ids = model_of(backend), torch.tensor([[5, 9, 3, 40]])
    rest = [Scale("L1.mlp_out", 0.5)]
    at = {0: {}, 1: {"positions": 4}, 3: {"positions": 6}}
    edits, expected = [], ids
    for n in range(NEW):
        edits += [type(e)(**{**vars(e), **at[n]}) for e in BY_STEP.get(n, ())]
        logits = model.run(expected, edits=[*rest, *edits]).logits
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    found = model.generate(ids, edits=rest, steps=BY_STEP, max_new_tokens=NEW, use_cache=cache)
    assert torch.equal(found, expected)
    for step in BY_STEP:  # each of them is seen
        fewer = {s: e for s, e in BY_STEP.items() if s != step}
        one = model.generate(
            ids, edits=rest, steps=fewer, capture=["L1.resid_post"], max_new_tokens=NEW, use_cache=cache
        )
        all_ = model.generate(
            ids, edits=rest, steps=BY_STEP, capture=["L1.resid_post"], max_new_tokens=NEW, use_cache=cache
        )
        moved = (one["L1.resid_post"] - all_["L1.resid_post"])[0].abs().amax(-1) > 1e-3
        assert moved[3 + step] and not moved[: 3 + step].any(), step


@pytest.mark.parametrize("backend", ["hf", "lens"])
def test_edits_of_attention_in_a_step(backend):
    model, ids = model_of(backend), torch.tensor([[5, 9, 3, 40]])
    steps = {2: [KnockOut("L0H1.pattern", keys=[0, 1]), Add("L1H2.scores", torch.tensor(2.0).expand(1))]}
    kept = model.generate(ids, steps=steps, capture=["L0.pattern"], max_new_tokens=4)["L0.pattern"]
    zero = (kept[0, :, :, :2] == 0).all(-1)
    assert zero[1].tolist() == [False, False, False, False, False, True, False] and not zero[2:].any()
    if backend == "hf":
        with pytest.raises(interp.errors.BackendError, match="need the cache"):
            model.generate(ids, steps=steps, max_new_tokens=4, use_cache=False)


@pytest.mark.parametrize("backend", ["hf", "lens"])
def test_texts_and_reducers(backend, tokenizer):
    model, prompts = interp.load(on("hf", "gpt2").torch_module, tokenizer=tokenizer), ["w5 w6 w7", "w9"]
    if backend == "lens":
        model = on("lens", "gpt2")
        before, model.tokenizer = model.tokenizer, tokenizer
    texts = model.generate(prompts, text=True, max_new_tokens=3)
    ids = model.generate(prompts, max_new_tokens=3)
    mean = {"L1.z": lambda z: z.mean(1)}
    both = model.generate(prompts, text=True, capture={**mean, "logits": None}, max_new_tokens=3)
    if backend == "lens":
        model.tokenizer = before
    assert texts == both.text
    for row, text, prompt in zip(ids, texts, prompts, strict=True):
        assert text.startswith(prompt)
        assert text.split()[-3:] == [f"w{i}" for i in row[-3:].tolist() if i not in (0, 1, 2)][-3:]
    assert both["L1.z"].shape == (3, 2, N_HEADS, D_MODEL // N_HEADS)
    assert torch.equal(both["logits"].argmax(-1), ids[:, -3:])


def test_what_cannot_be_of_a_generation():
    model = tiny("llama")
    for options, why in (
        ({"text": True}, "no tokenizer"),
        ({"steps": [[]]}, "expected {step: edits}"),
        ({"steps": {-1: []}}, "-1 is no step"),
        ({"steps": {1: [Ablate("L9.z")]}}, "out of range"),
        ({"steps": {1: [Scale("L0.norm_scale", 2.0)]}}, "divisor of a norm"),
        ({"capture": ["L1.z"], "num_beams": 2}, "one for each"),
        ({"capture": {"L1.z": lambda z: z}}, "one shape for every pass"),
    ):
        with pytest.raises(interp.InterpError, match=why):
            model.generate([[5, 6, 7]], max_new_tokens=3, **options)
    assert model.generate([[5, 6, 7]], max_new_tokens=3).shape == (1, 6)
