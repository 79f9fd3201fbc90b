"""Attention as science: nothing in inert models, methods agree, clear refusals, figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import HEADLINES, LENGTH, named, variant
from tiny_models import build, tiny

import interp
from interp.batch import Batch
from interp.errors import NotApplicable, SchemaError, SiteError, TaskError
from interp.measurement.registry import analyses
from interp.plots import attention as plots_attention
from interp.zoo.planted import factory
from probes.relevance import agreement, divergence_map, flow, rollout


@pytest.mark.parametrize("name", HEADLINES)
def test_no_head_of_an_inert_model_is_labelled(name):
    made = factory.plant([], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    found = interp.analyze(model, name, n_prompts=16)
    rows = variant(found, HEADLINES[name])
    assert not rows["label"].any()
    assert rows["q"].min() > 0.01


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_oss"])
@pytest.mark.parametrize("name", HEADLINES)
def test_methods_agree_and_a_call_is_repeatable(name, architecture):
    tables = [
        interp.analyze(tiny(architecture), name, n_prompts=8, method=method, seed=1).table
        for method in ("fused", "naive", "fused")
    ]
    np.testing.assert_array_equal(tables[0]["value"], tables[2]["value"])
    kept = tables[0]["variant"] != "cmr_distance"  # a share of variance: of a nearly flat profile it is noise
    loose = {"separation": 0.05}
    for name_ in tables[0]["variant"][kept].unique():
        a, b = (t[t["variant"] == name_]["value"].to_numpy() for t in tables[:2])
        assert_allclose(a, b, atol=loose.get(name_, 2e-3))


def test_what_does_not_apply_is_said(planted, prompts):
    made, model = planted
    with pytest.raises(NotApplicable, match="tokenizer can read"):
        interp.analyze(model, "text_induction")
    with pytest.raises(NotApplicable, match="tokenizer"):
        interp.analyze(tiny("gpt2"), "icl_score")
    with pytest.raises(TaskError, match="come together"):
        interp.analyze(model, "undifferentiated", prompts=[[1, 2, 3]])
    with pytest.raises(TaskError, match="too short"):
        interp.analyze(model, "entropy", prompts=[[1, 2, 3]] * 3)
    with pytest.raises(TaskError, match="at most 96"):
        flow(tiny("llama"), torch.zeros(1, 97, dtype=torch.long))
    with pytest.raises(TaskError, match="outside a prompt"):
        rollout(tiny("llama"), prompts, rows=[LENGTH])
    with pytest.raises(SiteError, match="L9H9"):
        divergence_map(tiny("llama"), prompts=prompts, heads=["L9H9"])
    with pytest.raises(TaskError, match="not of the same rows"):
        agreement(rollout(tiny("llama"), prompts, rows=[3]), rollout(tiny("llama"), prompts, rows=[4]))


def test_analyses_say_what_they_do_not_mean():
    for name in (*HEADLINES, "text_induction", "icl_score", "undifferentiated"):
        spec = analyses()[name]
        assert spec.misleads
        assert "arXiv" in spec.reference
        assert "null" in (spec.run.__doc__ or "")


def test_icl_score_on_a_model_that_reads_text():
    from interp.zoo.trained.curriculum import build as build_rich
    from interp.zoo.trained.skills import CONTEXT
    from interp.zoo.trained.skills.vocabulary import tokenizer

    model = interp.load(build_rich("default", seed=0).eval(), tokenizer=tokenizer(max_length=CONTEXT))
    found = interp.analyze(model, "icl_score", n_prompts=6, early=20, late=60, heads=["L1H2"], n_random=2)
    rows = found.table.set_index("variant")
    assert set(found.interventions["metric"]) == {"icl_score", "late_loss_nats"}
    assert_allclose(rows.loc["late_loss", "value"], math.log(model.info.d_vocab), atol=0.5)  # untrained: knows nothing
    assert_allclose(
        rows.loc["icl_score", "value"], rows.loc["late_loss", "value"] - rows.loc["early_loss", "value"], atol=1e-9
    )
    assert abs(rows.loc["context_gain", "value"]) < 0.2
    assert rows.loc["icl_score", "p"] > 0.001


def test_figures(planted, prompts):
    made, model = planted
    lags = interp.analyze(model, "lag_profile", n_prompts=8, n_lengths=4).table
    lines = plots_attention.profile_lines(lags[lags["variant"] == "profile"], k=3, axis="lag")
    assert [trace.name for trace in lines.data][-1] == "null"
    assert {named(made, "induction")[0], named(made, "duplicate_token")[0]} <= {t.name for t in lines.data}
    found = divergence_map(tiny("llama"), prompts=prompts, n_rows=3)
    heat = plots_attention.pair_map(found.value, found.components)
    assert_allclose(np.array(heat.data[0].z), found.value)
    points = plots_attention.embedding(found.embedding(), found.components)
    assert list(points.data[0].text) == list(found.components)
    rolled = rollout(tiny("llama"), prompts[:1])
    bars = plots_attention.relevance_bars(rolled.table(), note=rolled.caution)
    assert_allclose(np.array(bars.data[0].y), rolled.value[0, 0])
    assert bars.layout.annotations[0].text.replace("<br>", " ") == rolled.caution
    with pytest.raises(SchemaError):
        plots_attention.pair_map(found.value, found.components[:3])
    with pytest.raises(SchemaError):
        plots_attention.relevance_bars(rollout(tiny("llama"), prompts).table())
    with pytest.raises(SchemaError):
        plots_attention.profile_lines(lags.head(0))


@pytest.mark.parametrize("name", ["entropy", "chunk_selection", "span_profile", "source_decay", "parallel_encoding"])
def test_a_test_over_prompts_is_refused_before_anything_is_run(name):
    model = interp.load(build("llama"))
    batch = Batch.of(torch.randint(3, 64, (2, 60)))
    interp.analyze(model, "previous_token", prompts=batch)  # what is read once is read
    ran = []
    model.torch_module.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(TaskError, match="2 prompts are too few"):
        interp.analyze(model, name, prompts=batch)
    assert not ran
