"""Planted dictionaries: how frequent features are, that trained dictionaries recover them, and controls do not."""

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from interp.dictionaries import train
from interp.dictionaries.training.planted import PlantedPieces, failed, recovery, scoreboard, summary
from interp.errors import SchemaError
from interp.zoo.planted.dictionary import CASES, PlantedDictionary


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "standard", "gated"])
def test_planted_features_are_recovered(kind):
    planted = PlantedDictionary.of("uncorrelated", n_features=24, d=32, l0=2.0)
    options = dict(kind=kind, n_features=36, k=2, steps=150, batch_size=256, learning_rate=1e-2, dead_after=4000)
    d = train(PlantedPieces(planted), **options)
    assert recovery(planted, d.w_dec) >= 0.95
    assert recovery(PlantedDictionary.of("uncorrelated", n_features=24, d=32, l0=2.0, seed=1), d.w_dec) < 0.2
    l0 = float((d.encode(planted.draw(1000, seed=5)[0]) > 0).sum(1).float().mean())
    assert 1.4 < l0 < 6.0


def test_the_scoreboard_of_dictionaries_has_controls_that_recover_nothing():
    board = scoreboard(kinds=["random", "pca"], cases=["uncorrelated", "hierarchical"], seeds=2)
    assert board[["case", "kind", "seed"]].drop_duplicates().shape == (8, 3)
    assert (board["recovered"] == 0).all()
    assert board["mmcs"].between(0.3, 0.45).all()
    table = summary(board)
    assert table["seeds"].tolist() == [2] * 4
    assert not failed(board)
    for place, value in ((("uncorrelated", "topk"), 0.94), (("zipf", "pca"), 0.06)):
        row = {"case": place[0], "kind": place[1], "seed": 0, "recovered": value}
        assert failed(pd.concat([board, pd.DataFrame([row])]))
        assert not failed(pd.concat([board, pd.DataFrame([{**row, "case": "zipf", "kind": "topk"}])]))
    with pytest.raises(SchemaError, match="gated"):
        scoreboard(kinds=["gatd"])


def test_a_planted_direction_is_recovered_from_a_cosine_of_nine_tenths():
    planted = PlantedDictionary.of("uncorrelated", n_features=4, d=64, l0=1.0)
    across = torch.linalg.qr(planted.directions.mT, mode="complete").Q[:, 10]
    cosines = torch.tensor([[0.91], [0.89]])
    learned = cosines * planted.directions[:2] + (1 - cosines**2).sqrt() * across
    assert recovery(planted, learned) == 0.25
    assert recovery(planted, -planted.directions) == 0
    assert recovery(planted, 3 * planted.directions) == 1


@pytest.mark.parametrize("case", CASES)
def test_planted_frequencies(case):
    planted = PlantedDictionary.of(case, n_features=40, d=16, l0=4.0)
    x, f = planted.draw(20_000, seed=0)
    on = (f > 0).float()
    assert_close(on.sum(1).mean(), torch.tensor(4.0), atol=0.1, rtol=0)
    assert_close(x, f @ planted.directions, atol=0.15, rtol=0)
    correlation = torch.corrcoef(on.mT)
    pair = float(correlation[4, 5])
    assert pair > 0.2 if case in ("correlated", "hierarchical") else abs(pair) < 0.03
    assert abs(float(correlation[4, 8])) < 0.03
    children, parent = on[:, 5], on[:, 4]
    if case == "hierarchical":
        assert float((children * (1 - parent)).sum()) == 0
        assert_close(children.sum() / parent.sum(), torch.tensor(0.4), atol=0.03, rtol=0)
    if case == "zipf":
        assert_close(on[:, 9].mean() / on[:, 19].mean(), torch.tensor(2.0), atol=0.3, rtol=0)
