"""Attention to named parts of a prompt: planted retrieval, dense patterns, uniform attention, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny

import interp
from interp.batch import Batch
from interp.edits import Scale
from interp.errors import TaskError
from interp.zoo.planted import factory
from probes.attention import _span_attention as measured


def rows(result, variant):
    return result.table[result.table["variant"] == variant].set_index("component")


@pytest.fixture(scope="module")
def retriever():
    made = factory.plant([factory.Retrieval()], architecture="llama", seed=1)
    return interp.load(made.model, tokenizer=made.tokenizer), made.truth


def test_the_retrieval_head_attends_to_the_needle(retriever):
    model, truth = retriever
    result = interp.analyze(model, "span_attention", n_prompts=12, length=60)
    found = rows(result, "strongest")
    ((layer, head),) = truth.roles["retrieval"]
    name = f"L{layer}H{head}"
    assert found.loc[name, "span"] == "needle"
    assert set(found.index[found["label"]]) == {name}
    assert result.provenance["data"]["spans"] == ["document", "needle", "answer"]


@pytest.mark.parametrize(("architecture", "side"), [("llama", "left"), ("mistral", "right"), ("gpt2", "right")])
def test_masses_and_nulls_are_those_of_the_pattern(architecture, side):
    model = tiny(architecture)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(model.info.d_vocab, (n,), generator=generator).tolist() for n in (40, 33, 29)]
    spans = {"document": [(0, 12)] * 3, "middle": [(15, 20), (12, 14), None], "question": [(36, 40), None, (25, 29)]}
    batch = Batch.of(ids, side=side, spans=spans)
    result = interp.analyze(model, "span_attention", prompts=batch)
    run = model.run(batch, capture=["pattern"])
    p = torch.stack([run[f"L{layer}.pattern"] for layer in model.info.attention_layers], 1).double().numpy()
    asking = [range(36, 40), range(17, 33), range(25, 29)]
    for name in ("document", "middle"):
        inside, mass, null = spans[name], [], []
        for b, queries in enumerate(asking):
            pad = int(batch.first[b])
            keys = [] if inside[b] is None else [k for k in range(*inside[b]) if k > 0]
            own = p[b][..., [q + pad for q in queries], :][..., [k + pad for k in keys]]
            mass.append(own.sum(-1).mean(-1))
            seen = [[k for k in keys if q - (w or 99) < k] for w in model.info.windows for q in queries]
            total = [min(q + 1, w or 99) for w in model.info.windows for q in queries]
            share = np.array([len(s) / t for s, t in zip(seen, total, strict=True)])
            null.append(share.reshape(len(model.info.windows), -1).mean(1))
        got = rows(result, name)
        assert_allclose(got["value"], np.mean(mass, 0).ravel(), atol=1e-5)
        assert_allclose(got["null"], np.repeat(np.mean(null, 0), model.info.n_heads), atol=1e-9)


def test_uniform_attention_is_the_null():
    model = tiny("llama")
    batch = Batch.of(torch.arange(30)[None].repeat(3, 1), spans={"document": (3, 11), "question": (26, 30)})
    with model.editing([Scale(f"L{layer}.q", 0.0) for layer in range(model.info.n_layers)]):
        result = interp.analyze(model, "span_attention", prompts=batch)
    assert_allclose(rows(result, "document")["value"], rows(result, "document")["null"], atol=1e-6)
    assert not rows(result, "strongest")["label"].any()


def test_the_last_tokens_ask_where_no_question_is_named():
    batch = Batch.of([list(range(1, 41)), list(range(1, 13))], spans={"a": (2, 5)})
    asking = measured.asking_rows(batch, "question")
    assert asking.sum(1).tolist() == [16, 12]
    assert asking[0, -16:].all()


def test_prompts_whose_parts_have_no_names_are_refused():
    model = tiny("gpt2")
    with pytest.raises(TaskError, match="no part of these prompts has a name"):
        interp.analyze(model, "span_attention", prompts=[[1, 2, 3, 4]])
    one = interp.analyze(model, "span_attention", prompts=Batch.of([list(range(20))], spans={"a": (2, 5)}))
    assert rows(one, "strongest")["q"].isna().all()
