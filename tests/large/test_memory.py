"""What captures cost is known beforehand; activations of many prompts go to disk within a bound and come back."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import build, ragged, tiny
from tolerance import assert_equal_to_rounding

import interp
from interp.attention import Entropy, Mean, Offset
from interp.backends.plan import budget
from interp.backends.plan.places import SiteCapture
from interp.environment import free_bytes, human_bytes
from interp.errors import BackendError, InterpError, SchemaError, SiteError
from interp.storage import INDEX, Store, capture_to, on_cpu

SITES = ["L0.resid_post", "L1.resid_pre", "L0H3.z", "L1.k", "L0.resid_mid@-1"]


def batches(n=3):
    return [ragged(12, side, lengths=(12, 7), seed=s) for s, side in zip(range(n), ["left", "right"] * n, strict=False)]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_the_estimate_is_what_captures_take(name):
    model, batch = tiny(name), ragged(11, "unpadded", lengths=(11, 11))
    run = model.run(batch, capture="all")
    for site, x in run.acts.items():
        assert model.info.activation_bytes(site, (2, 11), d_mlp=model._d_mlp) == x.nbytes, site
    places = {(site.kind, site.first): [SiteCapture(site, None)] for site in run.acts}
    cost = budget.estimate(places, model.info, (2, 11), d_mlp=model._d_mlp)
    assert sum(cost.captures.values()) == sum(x.nbytes for x in run.acts.values())
    assert cost.logits == run.logits.nbytes


@pytest.mark.parametrize("backend", ["hf", "lens", "nnsight"])
def test_a_capture_that_would_not_fit_is_refused_before_it_runs(backend, monkeypatch):
    module = build("gpt2")
    model = interp.load(module, backend=backend)
    monkeypatch.setattr(budget, "free_bytes", lambda device: 10**6)
    monkeypatch.setattr(budget, "UNASKED", 10**5)
    batch = ragged(300, "unpadded", lengths=(300,))
    ran = []
    handle = module.get_input_embeddings().register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(InterpError, match=r"capturing pattern of 1 x 300 tokens would take 8.72 MB .*1 MB are free"):
        model.run(batch, capture=["pattern"])
    assert not ran
    handle.remove()
    assert model.run(batch, capture=["L0H1.pattern@-1"]).acts
    if backend == "hf":  # one head of one layer; all heads in passing
        reduced = model.run(batch, capture={"L0H2.pattern": lambda p: p.diagonal(-1, 1, 2).mean(-1)}, stop=0)
        assert reduced["L0H2.pattern"].shape == (1,)


def test_a_machine_says_what_is_free():
    free = free_bytes(torch.device("cpu"))
    assert 10**6 < free < 10**15
    assert [human_bytes(x) for x in (5.0, 2.5e3, 1e7, 1.5e9, 4e12)] == ["5 B", "2.5 kB", "10 MB", "1.5 GB", "4 TB"]


def test_what_is_stored_is_what_was_captured(tmp_path):
    model, given = tiny("llama"), batches()
    store = capture_to(model, given, SITES, tmp_path, max_bytes=2**20)
    assert store.complete
    assert len(store) == 3
    assert [str(s) for s in store.sites] == SITES
    assert store.provenance["model"]["family"] == "LlamaForCausalLM"
    for number, batch in enumerate(given):
        assert torch.equal(store.batch(number).ids, batch.ids)
        run = model.run(batch, capture=SITES)
        for site in SITES:
            assert_equal_to_rounding(store.get(site, number), run[site])
    real = [model.run(b, capture=["L1.k"])["L1.k"][b.mask] for b in given]
    assert_equal_to_rounding(store.tokens("L1.k"), torch.cat(real))
    half = capture_to(model, given, ["L1.k"], tmp_path / "half", dtype=torch.bfloat16)
    assert half.get("L1.k", 0).dtype == torch.bfloat16


def test_memory_held_stays_within_the_bound(tmp_path):
    model, bound = tiny("llama"), 30_000
    store = capture_to(model, [torch.ones(40, 12, dtype=torch.long)], ["resid_post", "z"], tmp_path, max_bytes=bound)
    sizes = [f["bytes"] for f in store.index["files"]]
    assert len(sizes) > 3
    assert max(sizes) <= bound + 40 * 12 * 9  # ids and mask come on top
    assert store.tokens("L0.z").shape == (480, 8, 8)
    with pytest.raises(BackendError, match="one prompt of 12 tokens takes 12.3 kB at 4 sites, above max_bytes = 5 kB"):
        capture_to(model, [[[1] * 12]], ["resid_post", "z"], tmp_path / "b", max_bytes=5000)


def test_an_interrupted_capture_goes_on(tmp_path):
    model, given = tiny("gpt2"), batches()

    def broken():
        yield from given[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_to(model, broken(), ["L0.z"], tmp_path, max_bytes=7000)
    before = Store.open(tmp_path)
    assert (before.complete, len(before)) == (False, 1)
    written = (tmp_path / "00000.safetensors").stat().st_mtime_ns
    store = capture_to(model, given, ["L0.z"], tmp_path, max_bytes=7000)
    assert (store.complete, len(store)) == (True, 3)
    assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == written
    whole = capture_to(model, given, ["L0.z"], tmp_path / "whole")
    assert torch.equal(store.tokens("L0.z"), whole.tokens("L0.z"))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    model = tiny("gpt2")
    capture_to(model, batches(1), ["L0.z"], tmp_path)
    for again, match in [
        (lambda: capture_to(tiny("llama"), batches(1), ["L0.z"], tmp_path), "activations of model"),
        (lambda: capture_to(model, batches(1), ["L1.z"], tmp_path), "holds sites"),
        (lambda: capture_to(model, batches(2)[1:], ["L0.z"], tmp_path), "other prompts"),
        (lambda: Store.open(tmp_path / "none"), "cannot read"),
        (lambda: Store.open(tmp_path).get("L0.z", 5), "no batch 5; 1 are stored"),
    ]:
        with pytest.raises(SchemaError, match=match):
            again()
    with pytest.raises(SiteError, match="did you mean 'L0.z'"):
        Store.open(tmp_path).get("L0.q", 0)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index | {"schema_version": 99}))
    with pytest.raises(SchemaError, match="schema 99"):
        Store.open(tmp_path)


def test_off_the_accelerator_a_head_leaves_the_others_behind():
    x = torch.randn(2, 5, 8, 4)
    head = on_cpu(x.select(2, 3))
    assert torch.equal(head, x[:, :, 3])
    assert head.untyped_storage().nbytes() == head.nbytes


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_half_precision_weights_have_single_precision_statistics(name):
    single, half = tiny(name), interp.load(build(name).to(torch.bfloat16))
    batch = ragged(20, "left")
    asked = {"previous": Mean(Offset(1)), "entropy": Mean(Entropy())}
    answers, reference = half.attention(batch, asked), single.attention(batch, asked)
    for question in asked:
        assert answers[question].dtype == torch.float32
        assert (answers[question] - reference[question]).abs().max() < 0.3
    assert half.mean(batch).dtype == torch.float32
    run = half.run(batch, capture=["norm_scale", "L0.z", "L0.z@-1"])
    assert run["norm_scale"].dtype == torch.float32
    assert run["L0.z"].dtype == torch.bfloat16
    exact = run["L0.z"][batch.mask].float().mean(0)  # rounding of the sum alone would be about 1e-2
    assert_equal_to_rounding(half.mean(batch)[0], exact)
