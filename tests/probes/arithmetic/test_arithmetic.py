"""Frequencies, mechanisms, helices and mediators of models that add, against logits and weights made for it."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

import interp
from interp import tasks
from interp.edits import Ablate, Replace
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.loading.hooked.config import HookedConfig
from interp.loading.hooked.decoder import HookedDecoder
from probes import arithmetic
from probes.arithmetic import _key_frequencies as key
from probes.arithmetic import _mechanism as mechanism
from probes.arithmetic._helix import Fit, helix_features

P, KEYS = 13, (2, 5)
TABLE = 7
"""Modulus of a model that has every sum by heart."""


@cache
def adder():
    return interp.load("zoo:modular-addition")


@cache
def result(name, **options):
    return interp.analyze(adder(), name, **options)


def rows(table, variant):
    return table[table["variant"] == variant]


def grid(p=P):
    every = torch.arange(p)
    return every[:, None, None], every[None, :, None], every[None, None, :]


def clock(k, p=P):
    """Logits cos(w (a + b - c))."""
    a, b, c = grid(p)
    return torch.cos(2 * torch.pi * k * (a + b - c).double() / p)


def pizza(k, p=P):
    """Logits |cos(w (a - b) / 2)| cos(w (a + b - c))."""
    a, b, _ = grid(p)
    return torch.cos(torch.pi * k * (a - b).double() / p).abs() * clock(k, p)


@pytest.mark.parametrize("p", [P, 12])
def test_shares_of_planted_waves_are_those_of_their_squares(p):
    logits = 3 * clock(2, p) + clock(5, p) + torch.randn(p, p, 1, dtype=torch.float64)  # a constant over c is none
    table = key._logit_rows(logits, n_shuffles=20, seed=0)
    share = rows(table, "logits").set_index("frequency")["value"]
    assert_allclose(share[2], 0.9, atol=1e-12)
    assert_allclose(share[5], 0.1, atol=1e-12)
    assert_allclose(rows(table, "total")["value"], 1.0, atol=1e-12)
    assert set(arithmetic.key_list(table, "logits")) == set(KEYS)
    assert rows(table, "logits")["null"].max() < 0.2


def test_the_last_frequency_of_an_even_modulus_has_a_cosine_alone():
    table = key._logit_rows(clock(6, 12), n_shuffles=20, seed=0)
    assert_allclose(rows(table, "logits").set_index("frequency")["value"][6], 1.0, atol=1e-12)


def test_noise_has_no_key_frequency():
    noise = torch.randn(P, P, P, generator=torch.Generator().manual_seed(0))
    table = key._logit_rows(noise, n_shuffles=30, seed=0)
    assert arithmetic.key_list(table, "logits") == []
    assert float(rows(table, "total")["value"].iloc[0]) < 5 / P


def test_distances_of_a_clock_and_of_a_pizza():
    a, b, _ = grid()
    right = torch.cos(torch.pi * 2 * (a - b).double() / P).abs()[..., 0].numpy()
    spread, whole = arithmetic.distance_irrelevance(right)  # the right logit of a pizza
    assert_allclose(spread / whole, 0, atol=1e-12)
    other = np.cos(2 * np.pi * np.arange(P) / P)[:, None] + np.zeros(P)  # depends on a alone
    spread, whole = arithmetic.distance_irrelevance(other)
    assert_allclose(spread.mean() / whole, 1, atol=1e-12)


@pytest.mark.parametrize(("logits", "best"), [(clock, 0), (pizza, 1)])
def test_each_algorithm_fits_its_own_logits(logits, best):
    weights = np.full((1, P), 1 / P)
    fits = [float(x[0]) for x in mechanism.circle_fits(logits(2), 2, weights)]
    assert_allclose(fits[best], 1, atol=1e-12)
    assert 0.5 < fits[1 - best] < 0.9


def test_circles_are_circular_and_random_vectors_are_not():
    t = 2 * np.pi * np.arange(P)[:, None] * np.array(KEYS) / P
    circle = np.concatenate([3 * np.cos(t[:, :1]), 3 * np.sin(t[:, :1]), np.cos(t[:, 1:]), np.sin(t[:, 1:])], 1)
    assert_allclose(arithmetic.circularity(circle), 1, atol=1e-12)
    assert arithmetic.circularity(np.random.default_rng(0).standard_normal((P, 30))).mean() < 0.6


FITS = {"pizza": (0.17, 0.99, 0.75, 0.98), "clock": (0.85, 0.35, 0.98, 0.80)}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (FITS["pizza"], "pizza"),
        (FITS["clock"], "clock"),
        ((0.17, 0.35, 0.75, 0.98), "neither"),
        ((0.85, 0.35, 0.75, 0.98), "neither"),
        ((0.5, 0.99, 0.75, 0.98), "neither"),
    ],
)
def test_the_verdict_needs_every_number(values, verdict):
    names = ("distance_irrelevance", "gradient_symmetricity", "clock_fit", "pizza_fit")
    table = pd.DataFrame({"variant": names, "value": values, "q": 0.0})
    table = pd.concat([table, pd.DataFrame({"variant": ["circularity", "accuracy"], "value": 1.0, "q": 0.0})])
    table = table.assign(ci_low=table["value"] - 0.01, ci_high=table["value"] + 0.01)
    assert mechanism.algorithm(table)[0] == verdict
    assert mechanism.algorithm(table.assign(q=0.5))[0] == "neither"


def by_heart():
    """A HookedTransformer of prompts a b = that adds modulo 7: a neuron for every pair, read off counts of operands."""
    p, pairs = TABLE, [(a, b) for a in range(TABLE) for b in range(a, TABLE)]
    config = HookedConfig(
        vocab_size=p + 1, output_size=p + 1, hidden_size=2 * p, intermediate_size=len(pairs), num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=p, max_position_embeddings=3, norm=None, scales=[1.0],
        activation="relu", is_causal=True,
    )  # fmt: skip
    model = HookedDecoder._from_config(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    state = dict(model.named_parameters())
    eye = torch.eye(p)
    state["embed.weight"].data[:p, :p] = eye
    state["blocks.0.attn.v_proj.weight"].data[:, :p] = 3 * eye  # three keys: back to counts
    state["blocks.0.attn.o_proj.weight"].data[p:, :] = eye  # apart from the stream's own token
    for i, (a, b) in enumerate(pairs):
        state["blocks.0.mlp.in_proj.weight"].data[i, p + a] = 1
        state["blocks.0.mlp.in_proj.weight"].data[i, p + b] = 1
        state["blocks.0.mlp.in_proj.bias"].data[i] = -1 if a != b else -2 + 0.5
        state["blocks.0.mlp.out_proj.weight"].data[(a + b) % p, i] = 1 if a != b else 20
    state["unembed.weight"].data[:p, :p] = eye
    return model.eval()


def test_modulus_and_layout_are_found_without_a_tokenizer():
    model = interp.load(by_heart())
    layout = tasks.addition(model)
    assert (layout.modulus, layout.accuracy) == (TABLE, 1.0)
    own = tasks.addition(model, modulus=TABLE, template="{a} {b} 7")
    assert own.template == ("a", "b", 7) and own.accuracy == 1.0
    a, b = own.pairs()
    assert_close(own.table(model).argmax(2).flatten(), (a + b) % TABLE)
    task = tasks.task("modular_addition", model, n=20, corruption="second_operand")
    assert_close(task.clean.ids[:, 0], task.corrupt.ids[:, 0])
    assert (task.value(model.run(task.clean).logits) > 0).all()
    assert (task.value(model.run(task.corrupt).logits) < 0).all()


def test_templates_that_are_none_are_refused():
    model = interp.load(by_heart())
    with pytest.raises(TaskError, match="where the operands stand"):
        tasks.addition(model, template="{a} 7")
    for template in ("{a} {b} {a}", "{a} + {b} = {c}", "{a} {b} {}"):
        with pytest.raises(TaskError, match="once each"):
            tasks.addition(adder(), template=template)
    with pytest.raises(TaskError, match="ids below 8"):
        tasks.addition(model, template="{a} {b} a")
    with pytest.raises(TaskError, match="ids below 8"):
        tasks.addition(model, template="{a} {b} =")
    with pytest.raises(TaskError, match="from 3 to 600"):
        tasks.addition(model, modulus=2)
    with pytest.raises(NotApplicable, match="no numbers of one token"):
        tasks.addition(interp.load("zoo:planted-induction"))
    with pytest.raises(NotApplicable, match="does not add modulo a number"):
        tasks.addition(interp.load(HookedDecoder._from_config(by_heart().config).eval()))


def test_what_cannot_be_analysed_is_refused_with_a_way_out():
    silent = interp.load(HookedDecoder._from_config(by_heart().config).eval())
    for name, way_out in (
        ("helix", "give `task`"),
        ("arithmetic_mediation", "give `task`"),
        ("number_spectrum", "own"),
    ):
        with pytest.raises(NotApplicable, match=way_out):
            interp.analyze(silent, name)
    layout = tasks.addition(silent, modulus=TABLE, template="{a} {b} 7")
    with pytest.raises(NotApplicable, match="give `periods`"):
        interp.analyze(silent, "helix", task=tasks.modular_task(silent, layout, n=8))
    with pytest.raises(NotApplicable, match="1 prompts: 2 at least"):
        interp.analyze(adder(), "helix", n_prompts=1)
    with pytest.raises(SchemaError, match="nothing is left to fit"):
        interp.analyze(adder(), "helix", periods=[], linear=False)
    task = tasks.task("modular_addition", adder(), n=8)
    with adder().editing([Ablate("L0.resid_post")]):
        for name in ("key_frequencies", "addition_mechanism"):
            with pytest.raises(NotApplicable, match="same logit"):
                interp.analyze(adder(), name, modulus=37, template="{a} + {b} =")
        table = interp.analyze(adder(), "arithmetic_mediation", task=task, n_random=0).table
    assert (rows(table, "effect")["value"] == 0).all()


def test_a_helix_is_recovered_and_shuffled_numbers_are_not():
    rng = np.random.default_rng(0)
    values = np.arange(100)
    features = helix_features(values, (2.0, 5.0, 10.0, 100.0), linear=True)
    x = (features / features.std(0)) @ rng.standard_normal((8, 40)) + 0.1 * rng.standard_normal((100, 40))
    assert Fit.of(x, features, 100).r2(x, features) > 0.99
    shuffled = [Fit.of(x, f, 100).r2(x, f) for f in (features[rng.permutation(100)] for _ in range(50))]
    assert np.mean(shuffled) <= 9 / 100 + 2 * np.std(shuffled)


def test_the_fitted_waves_carry_the_answer_and_exchanged_numbers_no_more_than_by_chance():
    table = result("helix", n_shuffles=20, n_prompts=128).table
    restored = rows(table, "restored")
    assert (restored["value"] >= 0.9).all() and restored["label"].all()
    chance = 10 / 36
    assert_allclose(restored["chance"], chance)
    assert_allclose(restored["null"], chance, atol=0.12)
    assert (rows(table, "held_out")["value"] > 0.75).all()


def test_the_trained_adder_has_the_frequencies_of_its_card():
    found = result("key_frequencies")
    assert set(found.provenance["data"]["key_frequencies"]) == {1, 5, 8, 10, 12}
    assert set(arithmetic.key_list(found.table, "embedding")) == {1, 5, 8, 10, 12}
    assert float(rows(found.table, "total")["value"].iloc[0]) > 0.95


def test_the_verdict_of_the_trained_adder_and_the_gradients_behind_it():
    found = result("addition_mechanism", n_triples=50, n_shuffles=6)
    table = found.table.set_index("variant")
    assert found.provenance["data"]["algorithm"] == "neither" == table["algorithm"].iloc[0]
    assert set(found.provenance["data"]["circles"]) == {1, 5, 8, 10, 12}
    layout = tasks.addition(adder())
    right = layout.table(adder()).double().numpy()
    every = np.arange(37)
    right = right[every[:, None], every[None, :], (every[:, None] + every) % 37]
    by_distance = np.stack([np.diagonal(np.roll(right, -d, 1)) for d in every])
    assert_allclose(table["value"]["distance_irrelevance"], by_distance.std(1).mean() / right.std(), rtol=1e-5)
    a, b, c = mechanism._triples(37, 50, 0)
    ids, module = layout.prompts(a, b), adder().torch_module
    embeddings = module.get_input_embeddings()(ids).detach().requires_grad_()
    module(inputs_embeds=embeddings).logits[:, -1].gather(1, layout.answers[c][:, None]).sum().backward()
    cosines = torch.nn.functional.cosine_similarity(embeddings.grad[:, 1], embeddings.grad[:, 3], dim=-1)
    module.zero_grad()
    assert_allclose(table["value"]["gradient_symmetricity"], float(cosines.mean()), rtol=1e-4)
    assert table["value"]["gradient_symmetricity"] > table["null"]["gradient_symmetricity"] + 0.5
    assert table["value"]["clock_fit"] > table["value"]["pizza_fit"] > 0.7 > table["null"]["clock_fit"]


def test_spectra_over_numbers_of_a_vocabulary():
    task = tasks.task("modular_addition", adder(), n=32)
    table = interp.analyze(adder(), "number_spectrum", task=task, n_shuffles=30).table
    logits = table[table["site"].eq("logits") & table["label"].fillna(False) & table["variant"].eq("frequency")]
    assert set(logits["frequency"]) == {1, 5, 8, 10, 12}
    assert_allclose(logits["period"], 37 / logits["frequency"].astype(float))
    top = table[(table["variant"] == "top") & (table["site"] == "logits")].iloc[0]
    assert top["value"] > 0.98 and top["null"] < 0.5
    with pytest.raises(SchemaError, match="from 8 to 37"):
        interp.analyze(adder(), "number_spectrum", n_numbers=38)


def test_a_straight_line_is_taken_out():
    from probes.arithmetic._number_spectrum import _detrended

    line = torch.arange(10.0)[:, None] * torch.tensor([1.0, -2.0]) + 3
    assert_close(_detrended(line), torch.zeros(10, 2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_mediation_is_the_change_of_both_log_probabilities():
    task = tasks.task("modular_addition", adder(), n=12)
    table = interp.analyze(adder(), "arithmetic_mediation", task=task, n_random=0).table
    site = "L0.mlp_out"
    twin = adder().run(task.corrupt, capture=[site])[site]
    log_p = [
        adder().run(task.clean, edits=edits).logits[:, -1].log_softmax(-1)
        for edits in ((), [Replace(site, twin, positions=task.end)])
    ]
    right, other = (torch.stack([x.gather(1, ids)[:, 0] for x in log_p]) for ids in (task.answers, task.wrong))
    expected = 0.5 * (other[1] - other[0]) + 0.5 * (right[0] - right[1])
    row = rows(table, "effect").set_index("component").loc["M0 at END"]
    assert_allclose(row["value"], float(expected.mean()), rtol=1e-4)
    assert row["null"] < row["value"]
    relative = 0.5 * (torch.expm1(other[1] - other[0]) + torch.expm1(right[0] - right[1]))
    assert_allclose(
        rows(table, "relative").set_index("component").loc["M0 at END", "value"], float(relative.mean()), rtol=1e-3
    )
    pattern = adder().run(task.clean, capture=["L0.pattern"])["L0.pattern"]
    operands = rows(table, "operands")
    assert_allclose(operands["value"], pattern[:, :, -1, [1, 3]].sum(-1).mean(0), rtol=1e-5)
    assert_allclose(operands["null"], 2 / 5)
    share = rows(table, "share").set_index("component")["value"]
    assert_allclose(share.sum(), 1)
    assert share["attention at END"] + share["mlp at END"] > 0.99  # operands stay where they are: one layer
