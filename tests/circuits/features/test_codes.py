"""Scores by discrete codes: counts against loops over sets, planted heads, no effect at all, and what a table holds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from tiny_models import tiny
from torch.testing import assert_close

import circuits
import interp
from circuits.features._sae_codes import UNITS, Scoring, head_scores
from circuits.features.code_autoencoder import Training, active_features, codes, train_codes
from circuits.features.code_scores import CodeTable, edge_shares, node_scores, swapped_labels, unique_codes
from circuits.features.codes_board import best_thresholds, f1, f1_published, judge_codes, planted_board
from circuits.features.head_baselines import mean_difference, norm_difference, probe_auc, standardised
from circuits.features.head_outputs import head_outputs
from interp.dictionaries.activations import JumpReLU
from interp.errors import SchemaError, TaskError
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory

QUICK = Training(n_features=12, epochs=20)


@pytest.fixture(scope="module")
def random_codes():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(30) < 13)
    return rng.integers(0, 7, size=(30, 5)), rng.random((30, 5, 6)) < 0.2, labels


@pytest.fixture(scope="module")
def outputs():
    return torch.randn(40, 6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def subject():
    generator = torch.Generator().manual_seed(3)
    clean = torch.randint(3, 40, (4, 7), generator=generator)
    corrupt = torch.where(torch.arange(7) == 2, (clean + 5) % 40, clean)
    rows = [(c[:n].tolist(), d[:n].tolist()) for c, d, n in zip(clean, corrupt, (7, 5, 7, 6), strict=True)]
    task = collate(
        "random",
        rows,
        answers=[[4]] * 4,
        wrong=[[9]] * 4,
        roles=[{"changed": 2}, {"changed": 2}, {"changed": 2}, {}],
        templates=["random"] * 4,
        corruption="one token",
        metric="logit_diff",
    )
    return tiny("llama"), task


def sets_of(one, sets):
    """Codes of every prompt and head, as the published loops see them."""
    return {
        "one": [[{int(c)} for c in row] for row in one],
        "sets": [[set(np.flatnonzero(head)) for head in row] for row in sets],
    }


@pytest.mark.parametrize("kind", ["one", "sets"])
@pytest.mark.parametrize("normalise", [False, True])
def test_counts_are_those_of_loops_over_sets(random_codes, kind, normalise):
    one, sets, labels = random_codes
    table = CodeTable.of(one) if kind == "one" else CodeTable.of_sets(sets)
    used = sets_of(one, sets)[kind]
    positives, negatives = ([row for row, y in zip(used, labels, strict=True) if y == side] for side in (True, False))

    def score(of):
        seen, never = (set().union(*map(of, rows)) for rows in (positives, negatives))
        return len(seen - never) / (max(len(seen | never), 1) if normalise else 1)

    nodes = [score(lambda row, h=h: row[h]) for h in range(5)]
    pairs = np.zeros((5, 5))
    for a, b in itertools.combinations(range(5), 2):
        pairs[a, b] = pairs[b, a] = score(lambda row, a=a, b=b: set(itertools.product(row[a], row[b])))
    assert table.unique(labels, normalise=normalise).tolist() == pytest.approx(nodes)
    np.testing.assert_allclose(table.unique_pairs(labels, normalise=normalise), pairs)
    if kind == "one" and not normalise:
        assert unique_codes(one, labels).tolist() == nodes
    draws = np.stack([labels, ~labels])
    assert_close(table.unique(draws)[1], table.unique(~labels))


def test_information_is_that_of_the_contingency_table(random_codes):
    one, _, labels = random_codes
    expected = [mutual_info_score(one[:, h], labels) for h in range(5)]
    np.testing.assert_allclose(CodeTable.of(one).information(np.stack([labels, labels]))[1], expected, atol=1e-6)


def test_shares():
    counts = np.array([[1.0, 2.0], [0.0, 2.0]])
    assert_close(node_scores(counts), np.exp(counts) / np.exp(counts).sum())
    assert_close(node_scores(counts, softmax="layer").sum(1), np.ones(2))
    assert node_scores(counts, softmax="none") is counts
    pairs = np.array([[0, 3, 1, 1], [3, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=float)
    # two of six: the strongest, and a third of each of three that tie
    assert_close(edge_shares(pairs, top=2) * 3, np.array([1 + 2 / 3, 1 + 1 / 3, 2 / 3, 1 / 3]))
    assert_close(edge_shares(pairs, top=6), np.ones(4))
    labels, pair = np.arange(8) < 4, np.tile(np.arange(4), 2)
    swapped = swapped_labels(labels, pair, n=50, seed=0)
    assert (swapped[:, :4] != swapped[:, 4:]).all()
    assert 0.3 < swapped[:, :4].mean() < 0.7


def test_the_autoencoder_is_of_unit_features_and_its_own_seed(outputs):
    both = train_codes(outputs, QUICK, seeds=(4, 7))
    (alone,) = train_codes(outputs, QUICK, seeds=(7,))
    assert_close(both[1].w_enc, alone.w_enc)
    assert_close(alone.w_dec.norm(dim=1), torch.ones(12))
    assert_close(alone.w_enc.norm(dim=0), torch.ones(12))
    drawn = outputs[torch.randperm(40, generator=torch.Generator().manual_seed(7))[:10]].reshape(-1, 8)

    def loss(d, penalty=QUICK.penalty):
        f = torch.relu((drawn - d.b_dec) @ d.w_enc + d.b_enc)
        return float((drawn - f @ d.w_dec - d.b_dec).square().mean() + penalty * f.sum(-1).mean())

    assert loss(train_codes(outputs, Training(12, epochs=200), seeds=(7,))[0]) < 0.9 * loss(alone)
    free = train_codes(outputs, Training(12, epochs=200, penalty=0.0), seeds=(7,))[0]
    sparse = train_codes(outputs, Training(12, epochs=200, penalty=0.4), seeds=(7,))[0]  # of the sum, not the mean
    assert float(sparse.encode(outputs).mean()) < 0.7 * float(free.encode(outputs).mean())
    f = torch.relu((outputs - alone.b_dec) @ alone.w_enc + alone.b_enc)
    assert (codes(outputs, alone) == f.argmax(-1).numpy()).all()
    assert (active_features(outputs, alone) == (f > 0).numpy()).all()


@pytest.mark.parametrize("centred", [False, True])
def test_a_code_is_the_largest_feature_and_the_first_where_there_is_none(outputs, centred):
    (d,) = train_codes(outputs, QUICK)
    d = replace(d, centred=centred, b_enc=d.b_enc - 0.8, b_dec=d.b_dec + 0.3)
    f = d.encode(outputs)
    silent = ~(f > 0).any(-1)
    assert 0 < int(silent.sum()) < silent.numel()
    assert (codes(outputs, d) == f.argmax(-1).numpy()).all()
    assert (codes(outputs, d)[silent.numpy()] == 0).all()
    jump = replace(d, activation=JumpReLU(torch.linspace(0.0, 1.0, 12)))  # changes the order
    assert (codes(outputs, jump) == jump.encode(outputs).argmax(-1).numpy()).all()
    assert (codes(outputs, jump) != codes(outputs, d)).any()
    with pytest.raises(SchemaError, match="8"):
        codes(outputs[..., :5], d)


@pytest.mark.parametrize("n", [40, 3])
def test_codes_of_z_are_those_of_what_heads_write(outputs, n):
    """W_O folded into the encoder; standardised outputs are products too; no fold where the order is not the ReLU's."""
    z, w_o = outputs[:n, :, :5], torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2))
    x = torch.einsum("phd,hdm->phm", z, w_o)
    (d,) = train_codes(x, QUICK)
    d = replace(d, b_enc=d.b_enc - 0.5, b_dec=d.b_dec + 0.3)
    scaled, centred = standardised(x), z - z.mean(0)
    scale = torch.einsum("phd,hdm->phm", centred, w_o).square().mean((0, 2)).sqrt()
    jump = replace(d, activation=JumpReLU(torch.linspace(0.0, 1.0, 12)))
    for encoder in (d, replace(d, centred=False), jump):
        assert len(np.unique(codes(x, encoder))) > 3
        assert (codes(z, encoder, w_o=w_o) == codes(x, encoder)).all()
        assert (codes(centred, encoder, w_o=w_o / scale[:, None, None]) == codes(scaled, encoder)).all()
    with pytest.raises(SchemaError, match=r"w_o of shape \(5, 5, 8\)"):
        codes(z, d, w_o=w_o[1:])
    with pytest.raises(SchemaError, match="7"):
        codes(z, d, w_o=w_o[..., :7])


def test_baselines(outputs):
    labels, pair = np.arange(40) < 20, np.tile(np.arange(20), 2)
    x = outputs.clone()
    x[:20, 2] *= 3  # longer, and nowhere in particular
    x[:20, 4, 0] += 4.0
    assert_close(
        mean_difference(x, labels)[4], float((x[:20, 4].mean(0) - x[20:, 4].mean(0)).norm()), rtol=1e-5, atol=0
    )
    assert norm_difference(x, labels).argmax() == 2
    auc = probe_auc(x, labels, pair, seed=0)
    assert auc.argmax() == 4
    assert auc[4] > 0.9
    nothing = probe_auc(torch.randn(40, 100, 8, generator=torch.Generator().manual_seed(0)), labels, pair, seed=0)
    assert nothing.mean() == pytest.approx(0.5, abs=0.04)
    assert np.isnan(probe_auc(x[[0, 20]], labels[[0, 20]], pair[[0, 20]], seed=0)).all()
    scaled = standardised(x * torch.arange(1, 7)[:, None])
    assert_close(scaled, standardised(x))
    assert_close(scaled.square().mean((0, 2)), torch.ones(6))


def test_planted_heads_and_no_effect():
    """The mean difference finds a shift without fail; where nothing was planted no score finds anything."""
    sizes = {"n_pairs": 30, "n_heads": 64, "n_planted": 32, "d": 4}
    scoring = Scoring(Training(n_features=8, epochs=5), n_seeds=1, n_permutations=2)
    board = planted_board(differences=["shift"], effects=[0.0, 4.0], seeds=8, scoring=scoring, **sizes)
    mean = board.groupby(["effect", "score"])["auroc"].mean()
    assert set(board["score"]) == set(UNITS)
    assert (mean[0.0] - 0.5).abs().max() <= 0.06
    assert (board[(board["effect"] == 4.0) & (board["score"] == "mean_difference")]["auroc"] == 1.0).all()
    assert mean[4.0, "code_mi"] > 0.9
    assert mean[4.0, "probe_auc"] > 0.99


def test_permutations_know_what_chance_gives(outputs):
    labels, pair = np.arange(40) < 20, np.tile(np.arange(20), 2)
    x = outputs.clone()
    x[:20, 3] += 12.0 * torch.nn.functional.one_hot(torch.arange(20) % 8, 8)
    scoring = Scoring(Training(n_features=16, n_examples=40, epochs=100), n_seeds=2, n_permutations=99)
    scores = head_scores(x, labels, pair, shape=(2, 3), scoring=scoring)
    for name, smallest in (("code_mi", 0.01), ("node_count", 0.05)):
        assert scores.p[name][1, 0] <= smallest
        assert np.delete(scores.p[name], 3).mean() > 0.3
        assert scores.null[name][1, 0] < scores.values[name][1, 0]


@pytest.mark.parametrize("position", ["mean", "END", "changed"])
def test_outputs_are_those_of_whole_runs(subject, position):
    model, task = subject
    x, labels, pair = head_outputs(model, task, position=position, batch_size=3)
    n = 3 if position == "changed" else 4
    assert labels.tolist() == [True] * n + [False] * n
    assert pair.tolist() == [*range(n), *range(n)]
    for side, batch in enumerate((task.clean, task.corrupt)):
        acts = model.run(batch, capture=["head_out"]).stack("head_out")  # layer prompt pos head d
        for i in range(n):
            at = {"mean": slice(0, int(task.lengths[i])), "END": [int(task.end[i])], "changed": [2]}[position]
            expected = acts[:, i, at].mean(1).flatten(0, 1)
            assert_close(x[side * n + i], expected, rtol=1e-4, atol=1e-5)


def test_the_method_by_its_name():
    planted = factory.plant([factory.Induction()], seed=0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    task = planted_task(planted, "induction", n=12, seed=0)
    how = {"n_features": 8, "epochs": 10, "n_seeds": 1, "n_permutations": 9, "pair_rows": 3}
    table = circuits.circuit(model, task, method="sae-codes", positions=["mean", "END"], standardise="head", **how)
    heads = model.info.n_layers * model.info.n_heads
    sizes = table.table.groupby(["variant", "pooling"], sort=False).size()
    assert sizes.to_dict() == {(v, p): 3 if v == "pair" else heads for v in (*UNITS, "pair") for p in ("mean", "END")}
    nodes = table.table[(table.table["variant"] == "node") & (table.table["pooling"] == "END")]
    assert nodes["value"].sum() == pytest.approx(1.0)
    assert (nodes["label"] == (nodes["value"] > 1 / heads)).all()
    mi = table.table[table.table["variant"] == "code_mi"]
    assert mi[["p", "q", "null"]].notna().all(axis=None)
    assert table.provenance["method"] == "sae-codes"
    assert "pooling mean, scaling head; 1 more" in table.plot().layout.title.text
    assert len(table.plot(variant="pair").data)
    judged = judge_codes(table, ["L0H0", "L1H1"])
    assert len(judged) == 2 * len(UNITS)
    assert judged["auroc"].between(0, 1).all()
    with pytest.raises(SchemaError, match="no head 'L9H9'"):
        judge_codes(table, ["L9H9"])


def test_thresholds():
    true = np.array([True, True, False, False, False, False])
    kept = np.array([True, False, True, False, False, False])
    assert f1(kept, true) == pytest.approx(0.5)
    assert f1_published(kept, true) == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    best = best_thresholds(np.array([3.0, 1.0, 2.0, 0.0, 0.0, 0.0]), true)
    assert best == pytest.approx(
        {"f1": 0.8, "f1_at": 1.0, "f1_n": 3, "f1_published": 6 / 7, "f1_published_at": 1.0, "f1_published_n": 3}
    )


def test_refusals(subject):
    model, task = subject
    run = circuits.sae_codes
    for options, error, said in (
        ({"code": "largest"}, SchemaError, "unknown code 'largest'"),
        ({"standardise": "heads"}, SchemaError, "did you mean 'head'"),
        ({"outputs": "q"}, SchemaError, "unknown outputs 'q'"),
        ({"softmax": "heads", "epochs": 1, "n_features": 4, "n_seeds": 1}, SchemaError, "unknown softmax"),
        ({"positions": "changd"}, TaskError, "did you mean 'changed'"),
        ({"epochs": 0}, SchemaError, "epochs=0: expected 1 or more"),
        ({"n_seeds": 0}, SchemaError, "of 1 or more"),
    ):
        with pytest.raises(error, match=said):
            run(model, task, **options)
    with pytest.raises(TaskError, match="1 pairs with 'mean'; at least 2"):
        run(model, task.select([0]))
