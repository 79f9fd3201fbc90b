"""Edits of attention that keep its form: columns, spans, windows, rotary base and planes, on every backend."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import SPANNING, build, encoder, questions, ragged, tiny
from torch.testing import assert_close

import interp
from interp.attention import Entropy, KeyMass, Offset, Received
from interp.batch import Batch
from interp.edits import (
    AttentionBias,
    CalibrateSpans,
    KnockOut,
    RotaryBase,
    RotaryPlane,
    ScaleColumns,
    SinkWindow,
    Uniform,
    plain_edit,
)
from interp.edits.columns import calibrated, received, scale_columns, windowed
from interp.edits.rotary import read_planes
from interp.edits.scope import of_prompts
from interp.errors import BackendError, SiteError

BATCH = ragged(14, "left", lengths=(14, 11))
FIRST, SECOND = (torch.zeros_like(BATCH.mask) for _ in range(2))
for _row, _start in enumerate(BATCH.first.tolist()):
    FIRST[_row, _start + 1 : _start + 4], SECOND[_row, _start + 5 : _start + 8] = True, True
PATTERN_EDITS = {
    "columns": [ScaleColumns("pattern", 0.3, keys=[1, 2])],
    "threshold": [ScaleColumns("pattern", 0.3, threshold=0.15, least=2)],
    "threshold of a head": [ScaleColumns("L1H2.pattern", 0.3, threshold=0.1, least=2)],
    "spans": [CalibrateSpans("L1.pattern", [FIRST, SECOND], torch.tensor([0.1, 0.2]), 0.1)],
    "window": [SinkWindow("pattern", 1, 4)],
    "window with a mean": [SinkWindow("L0.pattern", 1, 4, compensate=True)],
    "several": [
        SinkWindow("pattern", 1, 4),
        ScaleColumns("L0.pattern", 0.2, threshold=0.2, least=2),
        AttentionBias("L1H1.pattern", 1.0),
        KnockOut("L1H3.pattern", keys=1),
        Uniform("L0H2.pattern", rows=1),
    ],
}
ROTARY_EDITS = {
    "base": [RotaryBase("pattern", 500.0)],
    "base of a head": [RotaryBase("L1H1.pattern", 500.0)],
    "factor": [RotaryBase("pattern", factor=2.0)],
    "planes": [RotaryPlane("L1H1.pattern", 0)],
    "a plane turned": [RotaryPlane("pattern", -1, scale=1.5, angle=0.4, rows=0)],
}


def random_pattern(pairs=3, n=9, seed=0):
    visible = torch.ones(n, n).tril().bool().expand(pairs, n, n)
    scores = 2 * torch.randn(pairs, n, n, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~visible, -torch.inf).softmax(-1), visible


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.7, 50.0])
def test_scaled_columns_by_hand(factor):
    pattern, _ = random_pattern()
    chosen = torch.zeros(3, 1, 9, dtype=torch.bool)
    chosen[:, :, [2, 5]] = True
    result = scale_columns(pattern, chosen, factor)
    assert_close(result.sum(-1), torch.ones(3, 9), rtol=0, atol=1e-6)
    for pair in range(3):
        for i in range(9):
            row = pattern[pair, i]
            mass, others = row[[2, 5]].sum(), row.sum() - row[[2, 5]].sum()
            want = row * (row.sum() - min(factor * mass, row.sum())) / others
            want[[2, 5]] = row[[2, 5]] * min(factor, float(row.sum() / mass)) if mass > 0 else 0.0
            assert_close(result[pair, i], want, rtol=1e-4, atol=1e-6)
    alone = torch.eye(9)[None]  # all mass on the one key: nowhere to go
    assert torch.equal(scale_columns(alone, chosen[:1], 0.4), alone)


def test_what_a_key_receives_is_over_the_queries_that_see_it():
    pattern, visible = random_pattern()
    rows = torch.ones(3, 9, dtype=torch.bool)
    rows[1, :4] = False
    want = torch.stack(
        [
            torch.stack([pattern[p, [i for i in range(j, 9) if rows[p, i]], j].mean() for j in range(9)])
            for p in range(3)
        ]
    )
    assert_close(received(pattern, visible, rows), want)
    few = torch.tensor([9 - max(j, 4 * (p == 1)) < 3 for p in range(3) for j in range(9)]).view(3, 9)
    assert_close(received(pattern, visible, rows, least=3), want.masked_fill(few, 0.0))


def test_shares_of_spans_by_hand():
    pattern, _ = random_pattern()
    spans = torch.zeros(3, 2, 9, dtype=torch.bool)
    spans[:, 0, 1:3], spans[:, 1, 4:7] = True, True
    baseline = torch.tensor([[0.1, 0.3]]).expand(3, 2)
    result = calibrated(pattern, spans, baseline, 0.2)
    row = pattern[2, 8]
    mass = torch.stack([row[1:3].sum(), row[4:7].sum()])
    share = ((mass - baseline[0]) / 0.2).softmax(0) * mass.sum()
    assert_close(result[2, 8, 1:3], row[1:3] * share[0] / mass[0])
    assert_close(result[2, 8, 4:7], row[4:7] * share[1] / mass[1])
    assert_close(result[2, 8, [0, 3, 7, 8]], row[[0, 3, 7, 8]], rtol=0, atol=0)
    assert_close(result.sum(-1), torch.ones(3, 9), rtol=0, atol=1e-6)
    assert_close(result[:, 3], pattern[:, 3], rtol=1e-5, atol=1e-7)  # a row that sees one span keeps what it has


def test_scores_of_a_window():
    scores = torch.tensor([[[1.0, 2.0, 4.0, 0.0, -torch.inf]]])
    keep = torch.tensor([[[True, False, False, True, False]]])
    assert windowed(scores, keep, compensate=False).tolist() == [[[1.0, -torch.inf, -torch.inf, 0.0, -torch.inf]]]
    assert windowed(scores, keep, compensate=True).tolist() == [[[1.0, 3.0, 3.0, 0.0, -torch.inf]]]


def backends(name):
    return [interp.load(build(name), backend=backend) for backend in ("lens", "nnsight")]


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in SPANNING if n != "llama")]
)
def test_every_edit_on_every_backend(name):
    """Rows keep their sums; statistics are of the edited pattern; a cache, a context and a backend change nothing."""
    model, others, real = tiny(name), backends(name), BATCH.mask
    plain = model.run(BATCH, capture=["pattern"])
    turns = name not in ("gpt2",)
    for what, edits in {**PATTERN_EDITS, **(ROTARY_EDITS if turns else {})}.items():
        run = model.run(BATCH, edits=edits, capture=["pattern"])
        pattern = run.stack("pattern")
        assert (run.logits - plain.logits)[real].abs().max() > 1e-4 or name == "gpt_neox", what
        if what not in ("several",):
            change = (pattern.sum(-1) - plain.stack("pattern").sum(-1)).permute(1, 3, 0, 2)[real]
            assert change.abs().max() < (2 if model.info.sink_logits and "window" in what or turns else 1e-6), what
        assert_close(model.run(BATCH, edits=edits).logits[real], run.logits[real], rtol=0, atol=2e-5, msg=what)
        asked = {"entropy": Entropy(), "offset": Offset(1), "received": Received(), "mass": KeyMass(FIRST)}
        answers = model.attention(BATCH, asked, edits=edits)
        got = (pattern * real[None, :, None, :, None]).sum(-2)
        assert_close(
            answers["received"], got.where(~answers["received"].isnan(), torch.nan), rtol=0, atol=2e-5, equal_nan=True
        )
        with model.editing(edits):
            assert_close(model.run(BATCH).logits[real], run.logits[real], rtol=0, atol=2e-5, msg=what)
        generated = model.generate(BATCH, edits=edits, max_new_tokens=3)
        assert torch.equal(generated, model.generate(BATCH, edits=edits, max_new_tokens=3, use_cache=False)), what
        for other in others:
            if other.backend == "lens" and what == "base of a head" and model.info.n_heads > model.info.n_kv_heads:
                with pytest.raises(SiteError, match="several heads share"):
                    other.run(BATCH, edits=edits)
                continue
            assert_close(other.run(BATCH, edits=edits).logits[real], run.logits[real], rtol=0, atol=5e-5, msg=what)
            theirs = other.attention(BATCH, asked, edits=edits)
            for statistic in asked:
                assert_close(theirs[statistic], answers[statistic], rtol=1e-3, atol=5e-5, equal_nan=True, msg=what)
            if what in ("threshold", "base", "window with a mean"):
                assert torch.equal(other.generate(BATCH, edits=edits, max_new_tokens=3), generated), what


def test_padding_changes_nothing():
    model = tiny("llama")
    rows = [ids[mask].tolist() for ids, mask in zip(BATCH.ids, BATCH.mask, strict=True)]
    right = Batch.of(rows, side="right")
    for edits in ([SinkWindow("pattern", 2, 4)], PATTERN_EDITS["threshold"], ROTARY_EDITS["base"]):
        left = model.run(BATCH, edits=edits).logits
        other = model.run(right, edits=edits).logits
        for row, ids in enumerate(rows):
            alone = model.run([ids], edits=edits).logits[0]
            assert_close(left[row, BATCH.mask[row]], alone, rtol=0, atol=2e-5)
            assert_close(other[row, right.mask[row]], alone, rtol=0, atol=2e-5)


def test_queries_among_the_documents_are_left_alone():
    """Those of tokens before the last document's end; a query behind it is changed."""
    site, edit = "L1.pattern", PATTERN_EDITS["spans"]
    plain, run = (tiny("llama").run(BATCH, edits=edits, capture=[site])[site] for edits in ([], edit))
    for row in range(2):
        end = int(SECOND[row].nonzero().max()) + 1
        assert torch.equal(run[row, :, :end], plain[row, :, :end])
        assert ((run - plain)[row, :, end:].abs().amax((0, 2)) > 1e-4).all()


def test_tiles_of_queries_are_the_whole(monkeypatch):
    """Long patterns are edited some query rows at a time."""
    model, edits = tiny("llama"), [*PATTERN_EDITS["spans"], SinkWindow("L1.pattern", 9, 2)]
    whole = model.run(BATCH, edits=edits).logits
    monkeypatch.setattr("interp.attention.dense.TILE", 2 * 8 * 14 * 3)  # three rows
    assert_close(model.run(BATCH, edits=edits).logits[BATCH.mask], whole[BATCH.mask], rtol=0, atol=2e-5)


def test_spans_by_their_names():
    model, named = tiny("llama"), Batch(BATCH.ids, BATCH.mask, spans={"first": FIRST, "second": SECOND})
    for masks, names in (
        (CalibrateSpans("L1.pattern", [FIRST, SECOND], 0.1), CalibrateSpans("L1.pattern", ["first", "second"], 0.1)),
        (ScaleColumns("L1.pattern", keys=FIRST), ScaleColumns("L1.pattern", keys="first")),
    ):
        assert torch.equal(model.run(BATCH, edits=[masks]).logits, model.run(named, edits=[names]).logits)
        with pytest.raises(SiteError, match="is a span, and the batch that is run has none"):
            model.run(BATCH, edits=[names])


def test_the_statistics_of_edited_heads_are_dense_answers_for_all_questions():
    model, batch = tiny("gpt2"), ragged(40, "right")
    asked = questions(batch)
    edits = [KnockOut("L0H1.pattern", keys=2), ScaleColumns("L1.pattern", 0.5, keys=[0, 3], rows=1)]
    fused, naive = (model.attention(batch, asked, edits=edits, method=method) for method in ("fused", "naive"))
    plain = model.attention(batch, asked)
    for name in asked:
        assert_close(fused[name], naive[name], rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)
    assert torch.equal(fused["entropy"][0, :, 0].nan_to_num(), plain["entropy"][0, :, 0].nan_to_num())
    assert (fused["entropy"][0, :, 1] - plain["entropy"][0, :, 1]).nan_to_num().abs().max() > 1e-3


def test_a_threshold_finds_a_sink_in_the_middle_and_nothing_else():
    """One column planted at 6 and one at the first token: 6 alone is scaled, in the head that has it."""
    model, batch = tiny("gpt2"), ragged(20, "unpadded", lengths=(20, 20))
    bias = torch.zeros(20)
    bias[6], bias[0] = 9.0, 9.0
    planted = AttentionBias("L1H3.pattern", bias)
    edit = ScaleColumns("L1.pattern", 0.5, threshold=0.4, least=8)
    plain, run = (
        model.run(batch, edits=edits, capture=["L1.pattern"])["L1.pattern"] for edits in ([planted], [planted, edit])
    )
    assert edit._found[1].nonzero().tolist() == [[0, 3, 6], [1, 3, 6]]
    assert_close(run[:, 3, 10:, 6], 0.5 * plain[:, 3, 10:, 6])
    assert (run[:, 3, 10:, 0] > plain[:, 3, 10:, 0]).all()
    assert torch.equal(run[:, :3], plain[:, :3])


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_another_base_is_another_configuration(name):
    model, module = tiny(name), build(name)
    config = copy.deepcopy(module.config)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 700.0}
    other = type(module)(config).eval()
    other.load_state_dict(module.state_dict())
    batch = ragged(40, "left")
    want = interp.load(other).run(batch).logits[batch.mask]
    got = model.run(batch, edits=[RotaryBase("pattern", 700.0)]).logits[batch.mask]
    assert_close(got, want, rtol=0, atol=2e-5)
    assert (want - model.run(batch).logits[batch.mask]).abs().max() > 0.1


def rotations(angles, *, interleaved=False, noise=0.0, width=None):
    """T(o) of planes with these angles."""
    n = len(angles)
    places = [(2 * i, 2 * i + 1) if interleaved else (i, i + n) for i in range(n)]
    width = 2 * n if width is None else width

    def turn(offset):
        t = torch.eye(width)
        for angle, (a, b) in zip(angles, places, strict=True):
            phase = torch.tensor(angle * offset, dtype=torch.float64)
            t[a, a], t[b, b], t[a, b], t[b, a] = phase.cos(), phase.cos(), phase.sin(), -phase.sin()
        return t + noise * torch.randn(width, width, generator=torch.Generator().manual_seed(offset))

    return turn


def test_planes_are_read_off_what_positions_do():
    angles = [1.0, 0.1, 0.01, 1e-3]
    for interleaved in (False, True):
        for width in (8, 12):
            turn = rotations(angles, interleaved=interleaved, noise=1e-6, width=width)
            planes = read_planes(turn, limit=None, where="L0")
            assert_close(planes.angle, torch.tensor(angles).double(), rtol=1e-4, atol=1e-7)
            assert planes.first.tolist() == ([0, 2, 4, 6] if interleaved else [0, 1, 2, 3])
    slow = read_planes(rotations([1.0, 1e-3, 1e-6], interleaved=True), limit=12, where="L0")
    assert not slow.complete
    with pytest.raises(BackendError, match="turn too little"):
        slow.angles(RotaryBase("pattern", 10.0))
    assert read_planes(rotations([1.0, 1e-2, 1e-7]), limit=12, where="L0").first.tolist() == [0, 1, 2]
    with pytest.raises(SiteError, match="turn no queries"):
        read_planes(lambda _: torch.eye(4), limit=12, where="L0")
    with pytest.raises(BackendError, match="no turn of separate planes"):
        read_planes(lambda o: torch.linalg.matrix_exp(o * torch.tensor(MIXED)), limit=12, where="L0")


MIXED = [[0.0, 0.5, 0.4], [-0.5, 0.0, 0.3], [-0.4, -0.3, 0.0]]


def test_a_plane_is_a_cosine_of_the_distance_that_can_be_taken_out_and_turned():
    """A head with one token everywhere scores by distance alone; without its planes the curve is flat."""
    model, batch = tiny("llama"), torch.full((1, 30), 7)
    whole = model.run(batch, capture=["L0.scores", "L0.q", "L0.k"])
    plane, scale, (d, n) = 0, model.weights()[0].scale, (model.info.d_head, 30)
    q, k = whole["L0.q"][0, :, 2], whole["L0.k"][0, :, 2 // (model.info.n_heads // model.info.n_kv_heads)]
    pair = [plane, plane + d // 2]
    part = scale * q[:, pair] @ k[:, pair].mT
    without = model.run(batch, edits=[RotaryPlane("L0H2.pattern", plane)], capture=["L0.scores"])["L0.scores"][0, 2]
    seen = torch.ones(n, n).tril().bool()
    assert_close((whole["L0.scores"][0, 2] - part)[seen], without[seen], rtol=0, atol=1e-4)
    flat = model.run(batch, edits=[RotaryPlane("L0H2.pattern", [0, 1, 2, 3])], capture=["L0.scores"])["L0.scores"]
    assert flat[0, 2, -1].var() < 1e-6
    assert whole["L0.scores"][0, 2, -1].var() > 0.01
    angle = 3.0  # plane 0 turns by one radian a token: three of them are three tokens further
    edits = [RotaryPlane("L0H2.pattern", [1, 2, 3]), RotaryPlane("L0H2.pattern", 0, scale=2.0, angle=angle)]
    turned = model.run(batch, edits=edits, capture=["L0.scores"])["L0.scores"][0, 2, -1]
    assert_close(turned[4:], 2 * part[-1, 1:-3], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleColumns("pattern"), "takes `keys`, or a `threshold`"),
        (lambda: ScaleColumns("pattern", keys=0, threshold=0.1), "takes `keys`, or a `threshold`"),
        (lambda: ScaleColumns("pattern", -0.1, keys=0), "factor of ScaleColumns is a number of at least 0"),
        (lambda: ScaleColumns("L0.z", keys=0), "ScaleColumns edits attention"),
        (lambda: CalibrateSpans("pattern"), "takes `spans`"),
        (lambda: CalibrateSpans("pattern", [FIRST], temperature=0.0), "temperature .* above 0"),
        (lambda: SinkWindow("pattern", window=0), "window of SinkWindow is a whole number of at least 1"),
        (lambda: SinkWindow("pattern", sinks=1.5), "sinks of SinkWindow is a whole number"),
        (lambda: RotaryBase("pattern"), "takes a `base`, or a `factor`"),
        (lambda: RotaryBase("pattern", -3.0), "base of RotaryBase is a number above 0"),
        (lambda: RotaryBase("pattern", 9.0, positions=2), "one for all tokens"),
        (lambda: RotaryPlane("pattern"), "takes the numbers of planes"),
    ],
)
def test_what_is_no_edit(make, message):
    with pytest.raises(SiteError, match=message):
        make()


def test_what_cannot_be_carried_out():
    wide = torch.zeros(2, 5, dtype=torch.bool)
    for name, edit, message in (
        ("gpt2", RotaryBase("pattern", 500.0), "no rotary planes to edit"),
        ("llama", RotaryPlane("L0.pattern", 4), "plane 4 is out of range; the layer has 4 rotary planes"),
        ("llama", CalibrateSpans("L0.pattern", [wide]), "a mask of positions has shape"),
        ("llama", CalibrateSpans("L0.pattern", [FIRST], torch.zeros(3)), "does not broadcast"),
    ):
        with pytest.raises(SiteError, match=message):
            tiny(name).run(BATCH, edits=[edit])
    with pytest.raises(SiteError, match="attention that sees no later ones"):
        interp.load(encoder()).run([[3, 4, 5, 6]], edits=[SinkWindow("pattern", 1, 2)])


def test_what_an_edit_is_as_data_and_whose_it_is():
    edit = ScaleColumns("L1.pattern", 0.5, threshold=0.4)
    tiny("llama").run(BATCH, edits=[edit])
    assert plain_edit(edit) == {
        "edit": "ScaleColumns",
        "site": "L1.pattern",
        "factor": 0.5,
        "threshold": 0.4,
        "least": 16,
    }
    assert plain_edit(RotaryPlane("pattern", 2))["planes"] == [2]
    assert of_prompts(CalibrateSpans("pattern", [FIRST])) and of_prompts(ScaleColumns("pattern", keys=FIRST))
    assert not any(map(of_prompts, (edit, SinkWindow("pattern"), RotaryBase("pattern", 9.0))))
