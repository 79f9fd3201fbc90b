"""Activation patching: batched runs against single ones, and what must hold on every architecture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import D_VOCAB, SPANNING, tiny
from tolerance import assert_equal_to_rounding

import interp
from interp.batch import Batch
from interp.edits import Replace
from interp.errors import SchemaError, SiteError, TaskError
from interp.patching.activations import activation_patching
from interp.patching.effect_table import effects
from interp.results.stats import resample
from interp.tasks import metrics, planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def pairs(lengths=(9, 9, 6), seed=0):
    """Random prompts whose corrupted twins differ at every token but the first, one of them shorter."""
    generator = torch.Generator().manual_seed(seed)
    found, roles = [], []
    for n in lengths:
        clean = torch.randint(3, D_VOCAB, (n,), generator=generator).tolist()
        found.append((clean, [clean[0], *((7 * x + 3) % D_VOCAB for x in clean[1:])]))
        roles.append({"SUBJECT": 2, **({"LATE": 7} if n > 7 else {})})
    return collate(
        "pairs",
        found,
        answers=[[5 + i] for i in range(len(lengths))],
        wrong=[[20 + i] for i in range(len(lengths))],
        roles=roles,
        templates=["random"] * len(lengths),
        corruption="all",
        metric="logit_diff",
    )


@pytest.fixture(params=SPANNING)
def model(request):
    return tiny(request.param)


def naive(model, task, site, *, mode, positions=None, metric="logit_diff"):
    """One forward for one node, nothing shared."""
    base, other = (task.clean, task.corrupt) if mode == "noising" else (task.corrupt, task.clean)
    value = model.run(other, capture=[site]).acts[interp.Site.parse(site)]
    patched = model.run(base, edits=[Replace(site, value, positions=positions)]).logits
    of = metrics.by_name(metric)
    return (of(patched, task) - of(model.run(base).logits, task)).mean().item()


@pytest.mark.parametrize("mode", ["noising", "denoising"])
def test_batched_is_one_at_a_time(model, mode):
    task = pairs()
    groups = {"noising": ("heads", "q", "mlps"), "denoising": ("k", "v", "attn", "resid")}
    for nodes in groups[mode]:
        table = activation_patching(model, task, nodes=nodes, mode=mode).table
        expected = [naive(model, task, site, mode=mode) for site in table["site"]]
        assert_allclose(table["value"], expected, atol=3e-5, rtol=1e-4)
        assert (table["n"] == 3).all()


def test_batch_size_changes_nothing(model):
    task = pairs()
    options = {"nodes": ["L0H0.z", "L1H3.z", "L0.mlp_out"], "positions": "roles"}
    whole, small = (activation_patching(model, task, batch_size=b, **options).table for b in (64, 2))
    for column in ("value", "normalised", "ci_low"):
        assert_allclose(whole[column], small[column], atol=3e-5, rtol=1e-4)


def test_padding_changes_nothing(model):
    task = pairs()
    whole = activation_patching(model, task.select([2, 0]), nodes="heads").table
    alone = [activation_patching(model, task.select([i]), nodes="heads").table for i in (2, 0)]
    mean = (alone[0]["value"] + alone[1]["value"]) / 2
    assert_allclose(whole["value"], mean, atol=3e-5, rtol=1e-4)


def test_patching_the_whole_stream_is_the_other_run_and_patching_with_itself_is_nothing(model):
    task = pairs()
    for mode in ("noising", "denoising"):
        table = activation_patching(model, task, nodes=["L0.resid_pre", "L1.resid_pre"], mode=mode).table
        assert_allclose(table["normalised"], 1.0, **CLOSE)
        assert_allclose(table["patched"], table["other"], **CLOSE)
    same = replace(task, corrupt=task.clean)
    table = activation_patching(model, same, nodes="heads").table
    assert_allclose(table["value"], 0.0, **CLOSE)
    assert table["normalised"].isna().all()  # nothing to divide by


def test_positions_and_roles_are_the_tokens_they_name(model):
    task = pairs()
    roles = activation_patching(model, task, nodes=["L0.mlp_out"], positions="roles", mode="noising").table
    assert roles["role"].tolist() == ["SUBJECT", "LATE", "END"]
    assert roles["n"].tolist() == [3, 2, 3]
    for name, row in zip(("SUBJECT", "END"), (0, 2), strict=True):
        expected = naive(model, task, "L0.mlp_out", mode="noising", positions=task.roles[name])
        assert roles["value"][row] == pytest.approx(expected, abs=3e-5)
    late = naive(model, task.select([0, 1]), "L0.mlp_out", mode="noising", positions=7)
    assert roles["value"][1] == pytest.approx(late, abs=3e-5)
    every = activation_patching(model, task, nodes=["L0.mlp_out"], positions="all", mode="noising").table
    assert every["position"].tolist() == list(range(9))
    assert every["n"].tolist() == [3] * 6 + [2] * 3
    size = float(model.run(task.clean).logits.abs().max())  # of what a value is a difference of
    assert_equal_to_rounding(every["value"][0], 0, scale=size)  # the first token is the same in both
    assert_equal_to_rounding(every["value"][2], roles["value"][0], scale=size)


@pytest.mark.parametrize("metric", ["prob_diff", "kl", "logit_margin", "loss_nats"])
def test_other_metrics_are_of_all_logits(metric):
    for name in ("gpt2", "gemma2"):
        model, task = tiny(name), pairs()
        table = activation_patching(model, task, nodes="mlps", metric=metric, mode="noising").table
        if metric == "kl":
            assert (table["value"] > 0).all()
            assert table["base"].abs().max() < 1e-5
            continue
        expected = [naive(model, task, site, mode="noising", metric=metric) for site in table["site"]]
        assert_allclose(table["value"], expected, atol=3e-5, rtol=1e-4)


def test_a_share_and_its_interval_are_of_both_runs_drawn_together():
    """A node that moves every prompt the same share of its way moves every resample so."""
    generator = torch.Generator().manual_seed(0)
    base, other = (torch.randn(12, generator=generator, dtype=torch.float64).numpy() + shift for shift in (0, 3))
    (row,) = effects((base + 0.4 * (other - base))[None], base, other, seed=0)
    assert [row[k] for k in ("normalised", "normalised_low", "normalised_high")] == pytest.approx([0.4] * 3)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["value"] == pytest.approx(0.4 * (other - base).mean())


def test_several_corruptions_are_variants():
    planted = factory.plant([factory.Induction()], seed=0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    tasks = [planted_task(planted, "induction", n=6, corruption=c) for c in ("random", "minimal")]
    result = activation_patching(model, tasks, nodes="heads")
    assert result.table["variant"].unique().tolist() == ["random", "minimal"]
    best = result.top(variant="minimal", k=1).iloc[0]
    assert (best["layer"], best["head"]) == planted.truth.roles["induction"][0]
    assert best["normalised"] > 0.9
    assert best["ci_low"] <= best["value"] <= best["ci_high"]
    assert [d["corruption"] for d in result.provenance["data"]["tasks"]] == ["random", "minimal"]


def test_a_planted_chain_is_found_at_its_tokens():
    planted = factory.plant([factory.Induction()], seed=1, noise=0.0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    task = planted_task(planted, "induction", n=8, corruption="minimal")
    table = activation_patching(model, task, nodes="heads", positions=["B1", "END"], mode="denoising").table
    roles = {place: role for role, places in planted.truth.roles.items() for place in places}
    best = table.assign(name=[roles.get(p) for p in zip(table["layer"], table["head"], strict=True)])
    of = best.set_index(["name", "role"])["normalised"]
    assert of["induction", "END"].item() == pytest.approx(1, abs=0.02)
    assert of["previous_token", "B1"].item() > 0.3
    assert best[best["name"].isna()]["value"].abs().max() < 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_patched_pattern_weighs_the_values_of_the_run_itself(name):
    """z' = p_other v, set in place of the head's z, whole and at one query."""
    model, task = tiny(name), pairs()
    table = activation_patching(model, task, nodes="pattern", mode="noising").table
    assert len(table) == model.info.n_layers * model.info.n_heads
    p = model.run(task.corrupt, capture=["L1H5.pattern"])["L1H5.pattern"]
    v = model.run(task.clean, capture=["L1.v"])["L1.v"][:, :, 5 * model.info.n_kv_heads // model.info.n_heads]
    at = activation_patching(model, task, nodes=["L1H5.pattern"], positions="END", mode="noising").table
    base = metrics.logit_diff(model.run(task.clean).logits, task)
    for found, where in ((table.set_index("site").loc["L1H5.pattern", "value"], None), (at["value"][0], task.end)):
        logits = model.run(task.clean, edits=[Replace("L1H5.z", p @ v, positions=where)]).logits
        assert found == pytest.approx((metrics.logit_diff(logits, task) - base).mean().item(), abs=3e-5, rel=1e-3)


def test_several_kinds_at_once_are_each_of_them_alone_and_drawn_apart():
    model, task = tiny("gpt2"), pairs()
    kinds, options = ("resid", "attn", "mlp"), {"positions": "all", "mode": "noising"}
    together = activation_patching(model, task, nodes=kinds, **options)
    alone = [activation_patching(model, task, nodes=kind, **options).table["value"] for kind in kinds]
    assert_allclose(together.table["value"], np.concatenate(alone), atol=3e-5, rtol=1e-4)
    assert [trace.z.shape for trace in together.plot().data] == [(2, 9)] * 3
    same = activation_patching(model, task, nodes=("z", "mlps"), mode="noising").table
    assert same["head"].notna().sum() == model.info.n_layers * model.info.n_heads


def test_refusals():
    model, task = tiny("gpt2"), pairs()
    with pytest.raises(SiteError, match="unknown nodes 'head'"):
        activation_patching(model, task, nodes="head")
    with pytest.raises(SiteError, match="cannot be patched"):
        activation_patching(model, task, nodes=["norm_scale"])
    with pytest.raises(TaskError, match="no role 'SUBJ'"):
        activation_patching(model, task, positions=["SUBJ"])
    with pytest.raises(SchemaError, match="unknown mode 'noise'"):
        activation_patching(model, task, mode="noise")
    with pytest.raises(SiteError, match="no nodes"):
        activation_patching(model, task, nodes=[])
    assert isinstance(task.clean, Batch)


@pytest.mark.parametrize("backend", ["nnsight", "lens"])
def test_the_backends_agree(backend):
    hf, task = tiny("llama"), pairs((6, 6))
    other = interp.load(hf.torch_module, backend=backend)
    tables = [activation_patching(m, task, nodes="heads", metric=c).table for m in (hf, other) for c in ("prob", None)]
    assert_allclose(tables[0]["value"], tables[2]["value"], **CLOSE)
    assert_allclose(tables[1]["value"], tables[3]["value"], **CLOSE)


def test_intervals_resample_numerator_and_denominator_together():
    """With a prompt that one node lacks, which then is in no draw of that node."""
    generator = np.random.default_rng(0)
    base, other = generator.normal(size=12), generator.normal(3, 1, size=12)
    patched = base + generator.normal(1, 1, size=(2, 12))
    patched[1, 4] = np.nan
    for row, node in zip(effects(patched, base, other, seed=5), patched, strict=True):
        known = ~np.isnan(node)
        weights = resample(int(known.sum()), seed=5)
        change, span = weights @ (node - base)[known], weights @ (other - base)[known]
        ends = [np.quantile(x, [0.025, 0.975]) for x in (change, change / span)]
        assert_allclose([row["ci_low"], row["ci_high"]], ends[0], rtol=1e-10)
        assert_allclose([row["normalised_low"], row["normalised_high"]], ends[1], rtol=1e-10)
