"""A small slice of the scoreboard: every analysis that claims a truth finds it, and nothing where there is none."""

import pytest
from numpy.testing import assert_allclose

from interp import scoreboard
from interp.errors import SchemaError, TaskError
from interp.registry import analyses


@pytest.fixture(scope="module")
def board():
    return scoreboard.scoreboard(seeds=1, architectures=("llama-gqa", "gpt2"))


DESCRIPTIVE = {
    # what a head looks at, whatever for: many mechanisms are focused, or keep an offset or a lag
    "entropy",
    "offset_profile",
    "lag_profile",
    # text, of which planted models know none
    "text_induction",
    "distraction",
    # what a head does for one task or one answer: the truth is the task's, see tests/probes
    "conflict",
    "copying",
    "direct_attribution",
    "movers",
    "temporal",
}


def test_every_head_analysis_claims_a_truth_or_is_known_to_describe():
    claimed = {a.name for a in scoreboard.measured()}
    rest = {a.name for a in analyses().values() if a.unit == "head"} - claimed
    assert {"induction", "previous_token", "duplicate_token", "sink", "retrieval"} <= claimed
    assert rest <= DESCRIPTIVE


def test_planted_heads_are_found_and_no_others(board):
    planted = board[board["setting"] != "inert"]
    assert_allclose(planted["auroc"], 1.0, atol=0)
    assert_allclose(planted["average_precision"], 1.0, atol=0)
    assert planted["lowest"].min() >= 0.95
    others = planted.groupby("analysis")["highest"].max()
    # The factory's one class has ten words: a random head that gets some of them right scores in tenths.
    assert others.pop("successor") <= 0.5
    assert others.max() <= 0.25
    assert planted["closed_form_error"].max() <= 0.01
    assert not planted["missed"].any()
    assert not board["false_labels"].any()
    assert not scoreboard.failed(board)


def test_nothing_is_significant_in_inert_models(board):
    inert = board[board["setting"] == "inert"]
    assert len(inert) > 0
    assert not inert["false_q"].any()
    assert inert[["auroc", "lowest", "closed_form_error"]].isna().all(axis=None)


def test_a_miss_a_misranking_and_a_false_label_each_fail(board):
    for column, value in (("missed", 1), ("auroc", 0.9), ("false_labels", 1)):
        worse = board.copy()
        worse.loc[0, column] = value
        assert scoreboard.failed(worse)


def test_the_summary_is_the_worst_case(board):
    table = scoreboard.summary(board)
    assert len(table) == board.groupby(["analysis", "setting"]).ngroups
    row = table[(table["analysis"] == "induction") & (table["setting"] == "alone")].iloc[0]
    own = board[(board["analysis"] == "induction") & (board["setting"] == "alone")]
    assert row["models"] == len(own)
    assert row["lowest"] == own["lowest"].min()
    assert scoreboard.markdown(table).count("\n") == len(table) + 1


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(SchemaError, match="did you mean 'induction'"):
        scoreboard.measured(["inducton"])
    with pytest.raises(TaskError, match="unknown architecture 'lama'; did you mean 'llama'"):
        scoreboard.scoreboard(architectures=["lama"])
