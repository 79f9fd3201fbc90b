"""Each statistic on patterns small enough to work out by hand; both methods must give the worked answer."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import make_call, padding, window
from tolerance import assert_equal_to_rounding

from interp.attention import (
    ByDistance,
    Call,
    CausalMask,
    Distance,
    Entropy,
    KeyMass,
    Mean,
    Offset,
    Pairs,
    Received,
    Rows,
    Statistic,
    SumSquares,
    TopKeys,
    measure,
)
from interp.errors import TaskError

NAN = math.nan
# p_ij times the row's sum: 1 | 1 3 | 2 1 1 | 1 2 3 4
WEIGHTS = torch.tensor([[1.0, 9, 9, 9], [1, 3, 9, 9], [2, 1, 1, 9], [1, 2, 3, 4]])
PATTERN = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.75, 0, 0], [0.5, 0.25, 0.25, 0], [0.1, 0.2, 0.3, 0.4]])

pytestmark = pytest.mark.parametrize("method", ["fused", "naive"])


def call_of(weights, *, width=None, real=None, softcap=None, sinks=None):
    """One prompt and head whose capped scores are the logs of `weights`: keys are the unit vectors."""
    n = len(weights)
    score = weights.log()
    score = score if softcap is None else softcap * torch.atanh(score / softcap)
    mask = CausalMask(1, n, n, padding=real, **({} if width is None else {"predicate": window(width)}))
    eye = torch.eye(n)[None, None]
    return Call(score[None, None], eye, eye, 1.0, mask, softcap, sinks)


def ask(question, method, call=None):
    output, answers = measure(call_of(WEIGHTS) if call is None else call, {"it": question}, method=method)
    assert output.isfinite().all()
    return answers["it"][0, 0]


def expect(got, *values):
    assert_equal_to_rounding(got, torch.tensor(values, dtype=got.dtype), equal_nan=True)


def test_the_output_is_the_pattern_when_values_are_unit_vectors(method):
    output, answers = measure(call_of(WEIGHTS), {}, method=method)
    assert_equal_to_rounding(output[0, 0], PATTERN)
    assert answers == {}


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (0, [1, 0.75, 0.25, 0.4]),
        (1, [NAN, 0.25, 0.25, 0.3]),
        (3, [NAN, NAN, NAN, 0.1]),
        (4, [NAN] * 4),
    ],
)
def test_offset(distance, expected, method):
    expect(ask(Offset(distance), method), *expected)


def pairs(*listed):
    b, i, j = torch.tensor(listed).T
    return Pairs(b, i, j)


def test_pairs_sum_over_a_row_in_any_order(method):
    listed = [(0, 3, 0), (0, 1, 1), (0, 3, 2)]
    expected = [NAN, 0.75, NAN, 0.4]
    expect(ask(pairs(*listed), method), *expected)
    expect(ask(pairs(*reversed(listed)), method), *expected)


def test_pairs_no_query_may_see_are_left_out(method):
    expect(ask(pairs((0, 0, 2), (0, 2, 3), (0, 2, 1)), method), NAN, NAN, 0.25, NAN)


def test_a_pair_listed_twice_counts_the_same_in_both_methods(method):
    question = pairs((0, 3, 3), (0, 2, 0), (0, 3, 3))
    other = {"fused": "naive", "naive": "fused"}[method]
    assert_equal_to_rounding(ask(question, method), ask(question, other), equal_nan=True)


def test_no_pairs(method):
    none = torch.zeros(0, dtype=torch.long)
    expect(ask(Pairs(none, none, none), method), NAN, NAN, NAN, NAN)


def test_key_mass_is_nan_before_the_set_begins(method):
    expect(ask(KeyMass(torch.tensor([[False, True, False, True]])), method), NAN, 0.75, 0.25, 0.6)


def test_key_mass_of_a_readout(method):
    expect(ask(KeyMass(torch.tensor([[2.0, 0, -1, 10]])), method), 2, 0.5, 0.75, 3.9)


def test_key_mass_of_nothing(method):
    expect(ask(KeyMass(torch.zeros(1, 4)), method), NAN, NAN, NAN, NAN)


def test_key_mass_of_a_large_set(method):
    """Sets of more keys than d_head take another way through the fused method."""
    call = make_call(40, d_head=8)
    whole = measure(call, {"rows": Rows(torch.arange(40).expand(2, -1))}, method=method)[1]["rows"]
    inside = torch.rand(2, 40) < 0.6
    for readout in (inside, inside.float(), torch.randn(2, 40) * inside):
        got = measure(call, {"it": KeyMass(readout)}, method=method)[1]["it"]
        want = (whole * readout[:, None, None]).sum(-1)
        empty = inside.long().cumsum(-1) == 0
        assert_equal_to_rounding(got, want.masked_fill(empty[:, None], NAN), equal_nan=True)


def test_distance(method):
    expect(ask(Distance(), method), 0, 0.25, 1.25, 1.0)


def test_by_distance(method):
    """p(i, i-d) averaged over the rows that have a key d back; then over the last two rows, the last counted twice."""
    expect(ask(ByDistance(), method), 2.4 / 4, 0.8 / 3, 0.7 / 2, 0.1)
    weight = torch.tensor([[0.0, 0, 1, 2]])
    expect(ask(ByDistance(weight), method), 1.05 / 3, 0.85 / 3, 0.9 / 3, 0.1)
    expect(ask(ByDistance(torch.tensor([[1.0, 1, 0, 0]])), method), 1.75 / 2, 0.25, NAN, NAN)


def test_by_distance_within_a_window(method):
    expect(ask(ByDistance(), method, call_of(WEIGHTS, width=2))[2:], NAN, NAN)


def test_entropy(method):
    two, four = math.log(2), math.log(4)
    quarter = 0.25 * four + 0.75 * math.log(4 / 3)
    tenth = -sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4))
    expect(ask(Entropy(), method), 0, quarter, 0.5 * two + 0.5 * four, tenth)


def test_sum_of_squares(method):
    expect(ask(SumSquares(), method), 1, 0.625, 0.375, 0.3)


def test_received(method):
    expect(ask(Received(), method), 1.85, 1.2, 0.55, 0.4)
    expect(ask(Received(torch.tensor([[0.0, 2, 0, 1]])), method), 0.6, 1.7, 0.3, 0.4)
    expect(ask(Received(torch.zeros(1, 4)), method), 0, 0, 0, 0)


def test_rows(method):
    got = ask(Rows(torch.tensor([[2, -1, 0]])), method)
    assert_equal_to_rounding(got, torch.stack([PATTERN[2], torch.full((4,), NAN), PATTERN[0]]), equal_nan=True)


def test_top_keys(method):
    got = ask(TopKeys(torch.tensor([[3, 1, -1]]), k=2), method)
    expect(got, [[0.4, 3], [0.3, 2]], [[0.75, 1], [0.25, 0]], [[NAN, -1], [NAN, -1]])


def test_top_keys_without_the_excluded(method):
    got = ask(TopKeys(torch.tensor([[3, 2]]), k=2, exclude=torch.tensor([[True, False, False, True]])), method)
    assert_equal_to_rounding(got[0], torch.tensor([[0.3, 2], [0.2, 1]]))
    assert_equal_to_rounding(got[1, :, 0], torch.tensor([0.25, 0.25]))
    assert set(got[1, :, 1].tolist()) == {1, 2}


def test_top_keys_where_fewer_are_left(method):
    got = ask(TopKeys(torch.tensor([[0, 1]]), k=3, exclude=torch.tensor([[True, False, False, False]])), method)
    expect(got, [[NAN, -1]] * 3, [[0.75, 1], [NAN, -1], [NAN, -1]])


def test_top_keys_always_gives_k(method):
    expect(ask(TopKeys(torch.tensor([[1]]), k=6), method)[0], [0.75, 1], [0.25, 0], *[[NAN, -1]] * 4)


def test_mean_over_rows_that_have_an_answer(method):
    assert_equal_to_rounding(ask(Mean(Offset(1)), method).item(), 0.8 / 3)
    chosen = torch.tensor([[True, True, False, True]])
    assert_equal_to_rounding(ask(Mean(Offset(1), chosen), method).item(), 0.55 / 2)
    assert ask(Mean(Offset(1), torch.tensor([[True, False, False, False]])), method).isnan()


@pytest.mark.parametrize(
    "question", [Received(), Rows(torch.zeros(1, 1).long()), TopKeys(torch.zeros(1, 1).long()), Mean(Entropy())]
)
def test_mean_refuses_what_has_no_rows(question, method):
    with pytest.raises(TypeError, match=f"Mean averages query rows; {type(question).__name__} is not"):
        ask(Mean(question), method)


def test_an_unknown_statistic_is_refused(method):
    class Other(Statistic):
        pass

    with pytest.raises(TypeError, match=f"no {method} answer for Other"):
        ask(Other(), method)


def test_a_window_answers_nan_not_zero_beyond_its_reach(method):
    call = call_of(WEIGHTS, width=2)  # rows: 1 | 1 3 | 1 1 | 3 4
    expect(ask(Offset(1), method, call), NAN, 0.25, 0.5, 3 / 7)
    expect(ask(Offset(2), method, call), NAN, NAN, NAN, NAN)
    first = torch.tensor([[True, False, False, False]])
    expect(ask(KeyMass(first), method, call), 1, 0.25, NAN, NAN)
    expect(ask(pairs((0, 3, 0), (0, 3, 3), (0, 2, 0)), method, call), NAN, NAN, NAN, 4 / 7)
    expect(ask(Received(), method, call), 1.25, 1.25, 0.5 + 3 / 7, 4 / 7)
    expect(ask(TopKeys(torch.tensor([[3]]), k=3), method, call)[0], [4 / 7, 3], [3 / 7, 2], [NAN, -1])
    expect(ask(Rows(torch.tensor([[3]])), method, call)[0], 0, 0, 3 / 7, 4 / 7)
    expect(ask(Distance(), method, call), 0, 0.25, 0.5, 3 / 7)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_answers_nan(side, method):
    real = padding(4, (3,), side)
    call = call_of(WEIGHTS, real=real)
    if side == "right":
        expect(ask(Offset(0), method, call), 1, 0.75, 0.25, NAN)
        expect(ask(Received(), method, call), 1.75, 1, 0.25, NAN)
        expect(ask(KeyMass(torch.ones(1, 4)), method, call), 1, 1, 1, NAN)
        assert ask(Rows(torch.tensor([[3]])), method, call).isnan().all()
    else:  # key 0 is padding: rows  - | 3 | 1 1 | 2 3 4
        expect(ask(Offset(0), method, call), NAN, 1, 0.5, 4 / 9)
        expect(ask(Offset(1), method, call), NAN, NAN, 0.5, 3 / 9)
        expect(ask(Received(), method, call), NAN, 1.5 + 2 / 9, 0.5 + 3 / 9, 4 / 9)
        expect(ask(Distance(), method, call), NAN, 0, 0.5, 7 / 9)
        expect(ask(TopKeys(torch.tensor([[1]]), k=2), method, call)[0], [1, 1], [NAN, -1])
        assert ask(pairs((0, 3, 0), (0, 0, 0)), method, call).isnan().all()


def test_a_sink_slot_takes_its_share(method):
    call = call_of(WEIGHTS, sinks=torch.tensor([10.0]).log())  # every row's sum grows by 10
    expect(ask(Offset(0), method, call), 1 / 11, 3 / 14, 1 / 14, 4 / 20)
    expect(ask(KeyMass(torch.ones(1, 4)), method, call), 1 / 11, 4 / 14, 4 / 14, 0.5)
    expect(ask(Distance(), method, call), 0, 1 / 14, 5 / 14, 0.5)
    entropies = [
        -sum(w / total * math.log(w / total) for w in (*row, 10.0))
        for row, total in (((1,), 11), ((1, 3), 14), ((2, 1, 1), 14), ((1, 2, 3, 4), 20))
    ]
    expect(ask(Entropy(), method, call), *entropies)


def test_a_soft_cap_bends_the_scores(method):
    call = call_of(WEIGHTS, softcap=5.0)
    expect(ask(Offset(0), method, call), 1, 0.75, 0.25, 0.4)
    expect(ask(SumSquares(), method, call), 1, 0.625, 0.375, 0.3)
    expect(ask(Distance(), method, call), 0, 0.25, 1.25, 1.0)
    expect(ask(Received(), method, call), 1.85, 1.2, 0.55, 0.4)


def test_consecutive_heads_share_a_key_group(method):
    weights = torch.stack([WEIGHTS, WEIGHTS.flip(1)])  # key groups 0 and 1
    n, eye = 4, torch.eye(4)
    key = torch.stack([eye, eye.flip(0)])[None]  # group 1 reads a score's columns from the last to the first
    query = WEIGHTS.log().expand(1, 6, n, n)
    call = Call(query, key, key, 1.0, CausalMask(1, n, n))
    asked = {"own": Offset(0), "rows": Rows(torch.tensor([[3]])), "received": Received()}
    answers = measure(call, asked, method=method)[1]
    patterns = torch.stack([w.tril() / w.tril().sum(-1, keepdim=True) for w in weights])
    for head in range(6):
        pattern = patterns[head // 3]
        assert_equal_to_rounding(answers["own"][0, head], pattern.diagonal())
        assert_equal_to_rounding(answers["rows"][0, head, 0], pattern[3])
        assert_equal_to_rounding(answers["received"][0, head], pattern.sum(0))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Offset(-1), "later key"),
        (KeyMass(torch.ones(1, 5)), r"KeyMass.readout has shape \(1, 5\)"),
        (Received(torch.tensor([[1.0, -1, 1, 1]])), "negative"),
        (Rows(torch.tensor([[4]])), "position 4; positions go from 0 to 3"),
        (TopKeys(torch.tensor([[1]]), k=0), "k is 0"),
        (Mean(Offset(1), torch.ones(1, 3, dtype=torch.bool)), "Mean.rows"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_a_question_that_does_not_fit_says_so(question, message, method):
    with pytest.raises(TaskError, match=message):
        ask(question, method)
