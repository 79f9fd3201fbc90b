"""What judges circuits, from numbers written down: each quantity by its closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import binom
from tiny_models import tiny

import interp
from circuits.evaluation._curve import Curve
from circuits.evaluation._faithfulness import Verdict, evaluate
from circuits.evaluation._hypotheses import _equivalence, _independence, _minimality
from circuits.evaluation._minimality import completeness, minimality, without
from circuits.evaluation._removal import Removal, removal
from circuits.evaluation.reuse import cross_faithfulness, overlap
from circuits.evaluation.truth import planted as truth_of
from circuits.find import Found, circuit
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from circuits.wiring.case import Case
from interp.decompose.lens import read_out
from interp.measurement.ability import Ability, ability
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory

LAYOUT = Layout(2, 2, 2)


def verdict(values, full, empty):
    values = np.array(values, dtype=float)
    graphs = (Graph.full(LAYOUT),) * len(values)
    return Verdict(graphs, values, np.array(full, dtype=float), np.array(empty, dtype=float), "logit_diff", "resample")


@pytest.fixture(scope="module")
def made():
    planted = factory.plant([factory.Induction()], architecture="llama-gqa", seed=1)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    task = planted_task(planted, "induction", n=6)
    return planted, model, task, truth_of(planted.truth, Case.of(model, task).layout)


def test_faithfulness_is_a_ratio_of_means():
    found = verdict([[1, 3], [0, 1]], full=[2, 6], empty=[0, 1])
    assert_allclose(found.faithfulness, [1.5 / 3.5, 0])
    assert_allclose(found.per_prompt, [[1 / 2, 2 / 5], [0, 0]])
    assert_allclose(found.table()["mean_of_ratios"], [0.45, 0])


def test_its_interval_resamples_all_three_means_together():
    """A circuit that keeps the same share of every prompt's span does so in every resample."""
    rng = np.random.default_rng(0)
    full, empty = rng.normal(3, 1, 12), rng.normal(0, 1, 12)
    assert_allclose(verdict([empty + 0.7 * (full - empty)], full, empty).interval(), [[0.7, 0.7]])
    low, high = verdict([full + rng.normal(0, 1, 12)], full, empty).interval()[0]
    assert low < high


def test_areas_are_by_trapezoids_and_the_distance_has_no_sign():
    found = Curve((0.0, 0.5, 1.0), verdict([[0], [0.5], [2]], full=[1], empty=[0]))
    assert found.cpr() == pytest.approx(0.5 * 0.25 + 0.5 * 1.25)
    assert found.cmd() == pytest.approx(0.5 * 0.75 + 0.5 * 0.75)


def found_of(own, random, full, empty):
    """What `circuit` gives, made by hand."""
    graph, skill = Graph.full(LAYOUT), Ability(accuracy=0.9, chance=0.5, n=len(full), p=0.001, contrasted=True)
    verdicts = (verdict([own], full, empty), verdict(random, full, empty))
    data = {"task": "t", "sha256": "a", "judged_on": {"sha256": "b"}}
    return Found(graph, graph, *verdicts, None, skill, {"data": data, "method": "eap"})


def test_p_counts_random_circuits_that_come_as_near_and_the_circuit_itself():
    """Ninety-nine of them: 33 further away on either side each, 33 nearer."""
    random = [[0.2, 0.2]] * 33 + [[1.05, 1.05]] * 33 + [[1.5, 1.5]] * 33
    found = found_of([0.9, 0.9], random, full=[1, 1], empty=[0, 0])
    assert found.p == pytest.approx((1 + 33) / (1 + 99))
    assert "p = 0.340 (least possible 0.010)" in found.summary()
    few = found_of([0.9, 0.9], random[:20], full=[1, 1], empty=[0, 0])
    assert np.isnan(few.p)
    assert "p =" not in few.summary()
    assert "20 random circuits of the size: 0.200 +- 0.000, best 0.200" in few.summary()


def test_no_verdict_where_the_model_is_not_reliably_better_than_nothing():
    """Full and empty differ by noise: the ratio is printed as what it is, and no p is given."""
    rng = np.random.default_rng(0)
    full, empty = rng.normal(0, 1, 40), rng.normal(0, 1, 40)
    full += empty.mean() - full.mean() + 0.05  # above by less than chance moves it
    found = found_of(rng.normal(0, 1, 40), rng.normal(0, 1, (99, 40)), full, empty)
    assert not found.verdict.stands
    assert not found.table()["stands"].any()
    assert np.isnan(found.p)
    assert "no verdict: by logit_diff the whole model is not reliably better than nothing" in found.summary()
    assert verdict([full], full, full - 1).stands
    worse = verdict([full], full, full + 1)
    assert not worse.stands  # reliably different, and worse
    assert worse.advantage().mean == pytest.approx(-1)


def test_judged_on_the_prompts_it_was_found_on_is_said():
    found = found_of([0.9, 0.9], [[0.1, 0.1]], full=[1, 1], empty=[0, 0])
    assert "on 2 held-out prompts" in found.summary()
    same = {**found.provenance["data"], "judged_on": {"sha256": "a"}}
    again = found.with_provenance({**found.provenance, "data": same})
    assert "on 2 prompts, those it was found on" in again.summary()


def test_a_circuit_is_judged_on_other_prompts_than_it_was_found_on(made):
    planted, model, *_ = made
    finding, judging = (planted_task(planted, "induction", n=n, seed=n) for n in (4, 7))
    found = circuit(model, finding, held_out=judging, method="eap", edges=12, n_random=2)
    assert_allclose(found.verdict.full, Case.of(model, judging).clean, atol=1e-5)
    assert found.random.values.shape == (2, 7)


def test_means_are_of_the_corrupted_prompts_of_a_template_position_by_position():
    """With every edge removed the stream at END is the mean of the streams there: no bias is added in this model."""
    model, generator = tiny("llama"), torch.Generator().manual_seed(0)
    rows, other = (torch.randint(3, 60, (6, 7), generator=generator).tolist() for _ in range(2))
    names = ["one", "two", "one", "two", "two", "one"]
    options = {"answers": [[5 + i] for i in range(6)], "wrong": [[20 + i] for i in range(6)], "roles": [{}] * 6}
    task = collate(
        "drawn",
        list(zip(rows, other, strict=True)),
        templates=names,
        corruption="random",
        metric="logit_diff",
        **options,
    )
    case = Case.of(model, task)
    end = model.run(task.corrupt, capture=["L1.resid_post"])["L1.resid_post"][:, -1]
    means = torch.stack([end[[i for i, n in enumerate(names) if n == name]].mean(0) for name in names])
    expected = case.value(read_out(model, means))
    assert_allclose(evaluate(case, [], ablation="mean")[0], expected, atol=2e-4)


def test_minimality_is_what_is_lost_and_its_share(made):
    planted, model, task, truth = made
    rows = minimality(model, task, truth).set_index("component")
    (head,) = [f"L{layer}H{h}" for layer, h in planted.truth.roles["induction"]]
    whole, lacking, nothing = evaluate(Case.of(model, task), [truth, without(truth, head)]).mean(1)
    span = float(Case.of(model, task).clean.mean()) - nothing
    assert rows.loc[head, "change"] == pytest.approx(whole - lacking, rel=1e-4)
    assert rows.loc[head, "share"] == pytest.approx((whole - lacking) / span, rel=1e-4)
    assert rows.loc[head, "change"] > 1


def test_an_incomplete_circuit_falls_where_the_model_does_not():
    """Of two induction heads it has one: without that it has nothing left, and the model has the other."""
    planted = factory.plant([factory.Induction(), factory.Induction()], architecture="llama-gqa", seed=1)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    task = planted_task(planted, "induction", n=6)
    case = Case.of(model, task)
    head, second = (f"L{layer}H{h}" for layer, h in planted.truth.roles["induction"])
    part = without(truth_of(planted.truth, case.layout), second)
    row = completeness(model, task, part, n_sets=1).set_index("without").loc[head]
    lacking = Graph.full(case.layout)
    lacking.mask[case.layout.sender_index[head]] = False
    value, nothing = evaluate(case, [lacking]).mean(1)
    assert row["model"] == pytest.approx(value, abs=1e-4)
    assert row["gap"] == pytest.approx(abs(value - row["circuit"]), abs=1e-4)
    assert row["share"] == pytest.approx(row["gap"] / (float(case.clean.mean()) - nothing), rel=1e-4)
    assert row["share"] > 0.3


def test_equivalence_is_refused_on_either_side():
    full = np.zeros(20)
    for shift in (-1.0, 1.0):
        found = _equivalence(full + shift, full)
        assert found["statistic"] == (shift > 0)
        assert found["p"] == pytest.approx(1.0)
    half = np.where(np.arange(20) < 10, -1.0, 1.0)
    expected = max(binom.sf(9, 20, 0.4), binom.cdf(10, 20, 0.6))
    assert _equivalence(half, full)["p"] == pytest.approx(expected)


def test_independence_keeps_its_level_and_sees_dependence():
    rng = np.random.default_rng(0)
    p = [_independence(*rng.normal(size=(2, 16)), n=99, seed=i)["p"] for i in range(120)]
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) < 0.1) < 0.2
    x = rng.normal(size=16)
    assert _independence(x**2, x, n=199, seed=0)["p"] < 0.05


def test_minimality_among_hypotheses_is_corrected_over_components():
    lost, null = np.array([[3.0], [-2.0]]), np.array([[0.5], [2.5], [-0.1]])
    found = _minimality(lost, null, ["a", "b"])
    assert found["statistic"] == 2.0
    assert found["p"] == pytest.approx(min(1, 2 * (1 + 1) / (1 + 3)))
    assert "least needed: b" in found["note"]


def test_overlap_beyond_chance_has_a_small_p(made):
    *_, truth = made
    rows = overlap({"one": truth, "other": truth}, n_random=10)
    assert (rows["jaccard"] == 1).all()
    assert_allclose(rows["p"], 1 / 11)
    assert (rows["random_jaccard"] < 1).all()


def test_cross_faithfulness_has_circuits_in_rows_and_tasks_in_columns():
    planted = factory.plant([factory.Induction(), factory.DuplicateToken()], seed=0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    tasks = {name: planted_task(planted, name, n=8) for name in ("induction", "duplicate_token")}
    whole = truth_of(planted.truth, Case.of(model, tasks["induction"]).layout)
    strangers = {f"L{i}H{h}" for i, h in planted.heads("duplicate_token")}
    own = Graph.of(whole.layout, [e for e in whole.edges if not {e.sender, e.receiver} & strangers])
    found = cross_faithfulness(model, tasks, {"induction": own, "duplicate_token": whole})
    assert found.loc["duplicate_token", "induction"] > 0.8  # the whole circuit does the other task as well,
    assert found.loc["induction", "duplicate_token"] < 0.3  # and the part does not


def test_a_reference_gives_the_means_of_its_own_prompts(made):
    _, model, task, truth = made
    case, other = Case.of(model, task), replace(task, corrupt=task.clean)
    same, given = (evaluate(case, [truth], ablation="mean", reference=r) for r in (None, other))
    assert np.abs(same[-1] - given[-1]).max() > 1e-3


def test_accuracy_alone_and_without_are_of_the_circuit_and_of_its_complement(made):
    planted, model, *_ = made
    task = planted_task(planted, "induction", n=6, seed=1)
    whole = Graph.full(Case.of(model, task).layout)
    nothing = Graph.of(whole.layout, [])
    found = removal(model, task, whole)
    assert found.alone == ability(model, task)
    assert found.alone.accuracy == 1
    assert removal(model, task, nothing) == Removal(found.without, found.alone)
    assert found.without.accuracy < 1


def test_the_finding_is_a_sentence():
    random = [[0.02, 0.02], [0.11, 0.11]]
    found = found_of([0.9, 0.9], random, full=[1, 1], empty=[0, 0])
    n = found.graph.n_edges
    start = f"{n} of {n} edges do 0.90 of the task (2 random circuits of as many: 0.02 to 0.11)"
    assert found.finding() == f"{start}."
    gone = Removal(found.ability, replace(found.ability, accuracy=0.05))
    assert replace(found, removal=gone).finding() == f"{start}; without them accuracy 0.90 -> 0.05 (chance 0.5)."
    assert found.summary().split("\n")[0] == found.finding()
    unable = replace(found, ability=replace(found.ability, p=0.5))
    assert unable.finding() == f"{unable.ability.caution} {start}."
    assert unable.ability.caution
    same = {**found.provenance["data"], "judged_on": {"sha256": "a"}}
    assert "of the task on the prompts they were found on (" in found.with_provenance({"data": same}).finding()
    noise = found_of([0, 1, 0, 1], [[0, 0, 0, 0]], full=[1, 0, 1, 0], empty=[0, 1, 0, 0.9])
    assert noise.finding().startswith(f"How much of the task {n} of {n} edges do cannot be said")


def test_sizes_of_the_page_are_those_of_the_curve():
    found = found_of([0.9, 0.9], [[0.1, 0.1]], full=[1, 1], empty=[0, 0])
    small = Graph.of(LAYOUT, [found.graph.edges[0]])
    curve = Curve((0.1,), replace(found.verdict, graphs=(small,), values=np.array([[0.3, 0.3]])))
    page = replace(found, curve=curve).page(roles={"L0H0": "copy"})
    assert [(s.graph.n_edges, s.faithfulness) for s in page.steps] == [(1, 0.3), (found.graph.n_edges, 0.9)]
    assert page.roles == {"L0H0": ("copy",)}
    assert page.title == "Circuit of t, found by eap"
