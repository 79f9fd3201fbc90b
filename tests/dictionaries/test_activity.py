"""Features of prompts, the places of a stream where one is most active, and the logits it pushes, by hand."""

import pytest
import torch
from dictionaries_made import random_dictionary, transcoders
from tiny_models import D_VOCAB, ragged, tiny
from torch.testing import assert_close

import interp
from interp.dictionaries import TopK, features, pushed_logits, random_pushes, top_examples
from interp.edits import Ablate, Apply
from interp.errors import NotApplicable, SchemaError
from interp.sites import Site


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_table_holds_every_active_feature_of_real_tokens(side):
    model, d, batch = tiny("llama"), transcoders(), ragged(9, side, lengths=(9, 5))
    table = features(model, d, batch).table()
    run = model.run(batch, capture=["mlp_in"])
    total = 0
    for member, site in enumerate(("L0.mlp_in", "L1.mlp_in")):
        f = d[member].encode(run[site])
        own = table[table.site == site]
        for row in range(2):
            dense = torch.zeros_like(f[row])
            mine = own[own.prompt == row]
            columns = batch.first[row] + torch.tensor(mine.position.to_numpy())
            dense[columns, torch.tensor(mine.feature.to_numpy())] = torch.tensor(mine.value.to_numpy()).float()
            assert_close(dense, f[row] * batch.mask[row, :, None])
            assert mine.token.tolist() == batch.ids[row, columns].tolist()
        total += len(own)
    assert total == len(table) > 0


def test_features_are_those_that_edits_leave():
    model, d = tiny("llama"), random_dictionary("L1.resid_post", activation=TopK(3))
    with model.editing([Ablate("L1.resid_post")]):
        f = features(model, d, [[1, 2, 3]])
    assert sorted(f.value[:3].tolist()) == pytest.approx(sorted(d.b_enc.topk(3).values.tolist()))
    assert f.sites == (Site("resid_post", 1),)


def test_examples_of_a_stream_are_the_largest_of_each_stretch():
    model, d = tiny("llama"), random_dictionary("L0.resid_post")
    texts = [
        torch.randint(3, D_VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (23, 9, 16, 1)
    ]
    records = top_examples(model, d, [2, 5], iter(texts), k=3, length=8, around=(2, 1), batch_size=2)
    for number, record in records.items():
        best, active = [], []
        for prompt, ids in enumerate(texts):
            for start in range(0, len(ids), 8):
                stretch = ids[start : start + 8]
                f = d.encode(model.run([stretch], capture=["L0.resid_post"])["L0.resid_post"])[0, :, number]
                f[0] = 0.0  # the first token of a stretch is an attention sink
                active += f[f > 0].tolist()
                at = int(f.argmax())
                if f[at] > 0:
                    best.append((float(f[at]), prompt, start + at, tuple(stretch[max(0, at - 2) : at + 2])))
        best = sorted(best, reverse=True)[:3]
        assert [(e.prompt, e.position, e.ids) for e in record.examples] == [b[1:] for b in best]
        assert [e.value for e in record.examples] == pytest.approx([b[0] for b in best], rel=1e-4)
        assert all(e.values[e.at] == e.value == max(e.values) for e in record.examples)
        assert record.n_active == len(active) == sum(record.histogram.values())
        assert record.n_tokens == sum(map(len, texts)) - sum(-(-len(t) // 8) for t in texts)
        lows = sorted(record.histogram)
        assert lows[0] <= min(active) and max(active) < lows[-1] * 2**0.25
        assert sum(x < lows[-1] for x in active) == record.n_active - record.histogram[lows[-1]]


@pytest.mark.parametrize("site", ["L1.resid_post", "L1.z", "L1.mlp_post"])
def test_logits_pushed_are_those_of_a_small_step(site):
    """But for the divisor of the final norm: the step that it makes of the stream where it is written, unembedded."""
    model = tiny("gpt2")
    width = {"z": 64, "mlp_post": 256}.get(site.split(".")[1], 64)
    d = random_dictionary(site, d_in=width, d_out=width)
    pushed = pushed_logits(model, d, 3)
    direction, last = d.w_dec[3], Site("resid_mid" if site == "L1.z" else "resid_post", 1)
    resid = model.run([[5, 6, 7]], capture=[last])[last]

    moved = model.run([[5, 6, 7]], capture=[last], edits=[Apply(site, lambda x: x + direction.view(x.shape[2:]))])[last]
    added = (moved - resid)[0, -1]
    norm, w_u = model.weights().final_norm, model.weights().w_u
    logits = norm.linear(added) @ w_u
    assert_close(pushed, logits - logits.mean(), atol=1e-4, rtol=1e-3)


def test_random_directions_are_as_long_as_the_feature():
    """Their pushes grow with its length alone, and a feature that points at a token's logit goes beyond them."""
    model, d = tiny("llama"), random_dictionary("L1.resid_post")
    pushes = random_pushes(model, d, 3, n=40)
    assert pushes.shape == (40, 2)
    assert (pushes[:, 0] < 0).all() and (pushes[:, 1] > 0).all()
    assert len(pushes.unique(dim=0)) == 40
    aimed = d.w_dec.clone()
    token = model.weights().w_u[:, 7]
    aimed[3] = token * 3 * d.w_dec[3].norm() / token.norm()
    other = type(d)(d.w_enc, aimed, d.b_enc, d.b_dec).at("L1.resid_post")
    assert_close(random_pushes(model, other, 3, n=40), 3 * pushes, rtol=1e-4, atol=1e-5)
    own = pushed_logits(model, other, 3)
    assert own.argmax() == 7 and own.max() > 3 * pushes[:, 1].max()
    assert pushed_logits(model, d, 3).max() < 1.5 * pushes[:, 1].max()  # one that points nowhere does not


def test_refusals():
    model, d = tiny("llama"), random_dictionary("L0.mlp_in")
    for call, error, message in (
        (lambda: pushed_logits(model, d, 3), NotApplicable, "by no matrix"),
        (lambda: top_examples(model, d, 99, []), SchemaError, "feature 99 is out of range"),
        (lambda: top_examples(model, d, 1, [], member=2), SchemaError, "member 2 is out of range"),
        (lambda: features(model, type(d)(d.w_enc, d.w_dec, d.b_enc, d.b_dec), [[1]]), SchemaError, "where it reads"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert top_examples(model, d, 1, [])[1].density == 0.0
    assert issubclass(NotApplicable, interp.InterpError)
