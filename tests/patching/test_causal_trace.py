"""Causal tracing and patchscopes are runs with a few edits, written out here."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny

import interp
from circuits import causal_tracing, patchscope
from interp.edits import Add, Replace
from interp.errors import SiteError, TaskError

TEXT = "While Skozul and Moxgax stayed at the market , Skozul passed a cake to"


@pytest.fixture(scope="module")
def rows():
    return torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "window", "together"), [("resid_post", 1, [0]), ("mlp_out", 2, [0, 1])])
def test_values_are_those_of_plain_runs(rows, kind, window, together):
    model, ids = tiny("gpt2"), rows[:1]
    found = causal_tracing(model, ids, 9, subject=[1, 2], kind=kind, window=window, sd=2.0, n_noise=3, batch_size=7)
    noise = torch.zeros(3, 6, 64)
    noise[:, [1, 2]] = 2 * torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0))
    noisy = [Add("embed", noise)]
    states = model.run(ids, capture=[kind])
    at = 2 if kind == "resid_post" else 5  # the last layer is of use at the end alone
    back = [Replace(f"L{i}.{kind}", states[f"L{i}.{kind}"][0, at], positions=at) for i in together]
    clean, noised, restored = (
        model.run(ids.repeat(3, 1), edits=e).logits[:, -1].softmax(-1)[:, 9] for e in ([], noisy, [*noisy, *back])
    )
    row = found.table[(found.table["layer"] == 0) & (found.table["position"] == at)].iloc[0]
    assert row["patched"] == pytest.approx(float(restored.mean()), abs=1e-6)
    assert row["base"] == pytest.approx(float(noised.mean()), abs=1e-6)
    assert row["other"] == pytest.approx(float(clean.mean()), abs=1e-6)
    assert row["value"] == pytest.approx(float((restored - noised).mean()), abs=1e-6)
    assert row["normalised"] == pytest.approx(float((restored - noised).sum() / (clean - noised).sum()), abs=1e-3)
    assert row["n"] == 3
    assert found.plot().data[0].type == "heatmap"


def test_several_prompts_are_averaged_and_the_noise_is_three_standard_deviations(rows):
    model = tiny("llama")
    both = causal_tracing(model, rows, [9, 8], subject=[[1], [2]], n_noise=3)
    embed = model.run(rows, capture=["embed"])["embed"]
    assert both.provenance["noise_sd"] == pytest.approx(
        3 * float(torch.stack([embed[0, 1], embed[1, 2]]).std()), rel=1e-5
    )
    assert both.provenance["subject"] == [[1], [2]]
    assert (both.table["n"] == 2).all()
    same = causal_tracing(model, rows[:1], 9, subject=[1], n_noise=3, sd=both.provenance["noise_sd"])
    other = causal_tracing(model, rows[1:], 8, subject=[2], n_noise=3, sd=both.provenance["noise_sd"], seed=1)
    assert_allclose(both.table["value"], (same.table["value"] + other.table["value"]) / 2, atol=1e-6)


def test_the_subject_of_a_trained_model_is_where_the_answer_comes_back():
    model = interp.load("zoo:default")
    found = causal_tracing(model, TEXT, "Moxgax", subject="Moxgax", n_noise=4)
    share = found.table.pivot(index="layer", columns="position", values="normalised").to_numpy()
    assert found.table["other"].iloc[0] > 0.9
    assert found.table["base"].iloc[0] < 0.5
    assert (share[:2, 4] > 0.9).all()  # early, at the name
    assert share[-1, -1] > 0.9  # late, at the end
    assert np.abs(np.delete(share, [4, 14], axis=1)).max() < 0.1
    assert found.table["token"].iloc[4].strip() == "Moxgax"
    two = causal_tracing(model, TEXT, "Moxgax", subject="and Moxgax", n_noise=2, kind="attn_out")
    assert two.provenance["subject"] == [[3, 4]]
    with pytest.raises(TaskError, match="stands 2 times"):
        causal_tracing(model, TEXT, "Moxgax", subject="Skozul")


def test_refusals_of_tracing(rows):
    model = tiny("gpt2")
    with pytest.raises(SiteError, match="cannot be traced"):
        causal_tracing(model, rows, 9, subject=[1], kind="z")
    with pytest.raises(SiteError, match="prompt of 6 tokens"):
        causal_tracing(model, rows, 9, subject=[6])
    with pytest.raises(TaskError, match="two draws"):
        causal_tracing(model, rows, 9, subject=[1], n_noise=1)
    with pytest.raises(TaskError, match="1 subjects for 2"):
        causal_tracing(model, rows, 9, subject=[[1]])
    with pytest.raises(TaskError, match="no tokenizer"):
        causal_tracing(model, rows, 9, subject="x")


def test_a_patchscope_is_a_run_with_one_vector_replaced(rows):
    model, source, target = tiny("llama"), rows[:1], rows[1:, :4]
    found = patchscope(
        model, source, target, layer=0, position=2, target_layer=(0, 1), target_position=1, top=2, new_tokens=2
    )
    assert list(found["target_layer"]) == [0, 0, 1, 1]
    value = model.run(source, capture=["L0.resid_post"])["L0.resid_post"][:, 2]
    edits = [Replace("L0.resid_post", value, positions=1)]
    p, plain = (model.run(target, edits=e).logits[0, -1].softmax(-1) for e in (edits, []))
    row = found.iloc[1]
    assert row["token"] == int(p.topk(2).indices[1])
    assert (row["p"], row["control_p"]) == (
        pytest.approx(float(p[row["token"]])),
        pytest.approx(float(plain[row["token"]])),
    )
    assert row["kl"] == pytest.approx(float((p * (p / plain).log()).sum()), rel=1e-3)
    assert row["kl"] > 1e-3
    assert row["text"] == model.generate(target, edits=edits, max_new_tokens=2, do_sample=False)[0, 4:].tolist()
    assert row["control_text"] == model.generate(target, max_new_tokens=2, do_sample=False)[0, 4:].tolist()
    negated = patchscope(model, source, target, layer=1, translate=lambda x: -x)
    assert negated["target_layer"].tolist() == [1]
    assert negated.attrs["provenance"]["call"]["analysis"] == "patchscope"
    itself = patchscope(model, target, target, layer=0, position=2, target_position=2)
    assert itself["kl"].iloc[0] == pytest.approx(0, abs=1e-6)
    with pytest.raises(TaskError, match="2 source prompts"):
        patchscope(model, rows, target, layer=0)
    with pytest.raises(SiteError, match="no one vector"):
        patchscope(model, source, target, layer=0, kind="z")
