"""Training: what is exported is what was trained, losses are their formulas, planted features come back."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny
from torch.testing import assert_close

import interp
from interp.dictionaries import Dictionaries, hygiene, stability, train
from interp.dictionaries.fit import quality
from interp.dictionaries.training import losses
from interp.dictionaries.training.coder import Coders
from interp.dictionaries.training.files import check_writable, write
from interp.dictionaries.training.settings import KINDS, Settings
from interp.dictionaries.training.streams import Activations, ModelPieces, Stream, passages
from interp.errors import ModelLoadError, SchemaError
from interp.sites import Site
from interp.storage import capture_to
from interp.zoo.planted.dictionary import PlantedDictionary

IDS = [torch.randint(1, 60, (1, 24), generator=torch.Generator().manual_seed(i)).tolist()[0] for i in range(12)]
SMALL = dict(n_features=24, k=3, steps=8, batch_size=32)
TRANSCODERS = (["L0.mlp_in", "L1.mlp_in"], ["L0.mlp_out", "L1.mlp_out"])


def drawn(widths_in, widths_out, *, tokens=40, tied=False, seed=0):
    """Activations of unlike scales and means far from 0."""
    random = torch.Generator().manual_seed(seed)
    x = tuple(3.0 * torch.randn(tokens, w, generator=random) + 1.0 for w in widths_in)
    y = x if tied else tuple((i + 0.2) * torch.randn(tokens, w, generator=random) for i, w in enumerate(widths_out))
    return Activations(x, y, progress=1.0)


def coders_of(kind, batch, outs, **settings):
    """Parameters away from where they start, after one batch."""
    torch.manual_seed(0)
    coders = Coders(batch, outs, Settings(kind=kind, **{**SMALL, **settings}))
    with torch.no_grad():
        for coder in coders.coders:
            for p in (coder.b_enc, coder.gate, coder.scale, coder.log_threshold, coder.skip):
                if p is not None:
                    p.add_(torch.randn_like(p) / 5)
    coders.train()(batch)
    return coders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["autoencoder", "transcoder", "across"])
def test_the_exported_value_reads_and_writes_activations_as_they_are(kind, shape):
    widths = {"autoencoder": ((6,), (6,)), "transcoder": ((6,), (5,)), "across": ((6, 6), (6, 6))}[shape]
    outs = ((0, 1), (1,)) if shape == "across" else ((0,),)
    batch = drawn(*widths, tied=shape == "autoencoder")
    coders = coders_of(kind, batch, outs, skip=shape == "transcoder").eval()
    for coder in coders.coders:
        coder.threshold.mul_(0.97)  # off the least feature of this batch
    passage = coders(batch)
    sites = tuple(Site("resid_post", i) for i in range(len(widths[1])))
    members = [coders.dictionary(i, sites[i], tuple(sites[o] for o in outs[i])) for i in range(len(outs))]
    written = dict.fromkeys(sites, 0.0)
    for d, x, codes, outs_of in zip(members, batch.x, passage.codes, outs, strict=True):
        f = d.encode(x)
        assert_close(f * coders.scale_out[outs_of[0]], codes.f.detach(), atol=1e-4, rtol=1e-4)
        assert 0 < float((f > 0).float().mean()) < 1
        y = d.decode(f, x)
        for i, site in enumerate(d.sites_out):
            written[site] = written[site] + (y[..., i, :] if y.ndim == 3 else y)
        assert not any(t.requires_grad for t in d.tensors.values())
    for i, site in enumerate(sites):
        assert_close(written[site], (passage.y_hat[i] / coders.scale_out[i]).detach(), atol=1e-4, rtol=1e-4)
    if shape != "across":
        assert_close(members[0].w_dec.norm(dim=1), torch.ones(24))


def test_activations_are_scaled_to_the_root_of_their_width():
    batch = drawn((6,), (5,))
    passage = coders_of("topk", batch, ((0,),))(batch)
    assert_close(passage.x[0].norm(dim=1).mean(), torch.tensor(6**0.5))
    assert_close(passage.y[0].norm(dim=1).mean(), torch.tensor(5**0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_their_formulas(kind):
    batch = drawn((6,), (6,), tied=True)
    coders = coders_of(kind, batch, ((0,),), revival="aux", dead_after=1000)
    coder = coders.coders[0]
    coder.silent[5:9] = 10**6
    passage = coders(batch)
    coder.silent[5:9] = 10**6
    total, parts = losses.loss(coders, passage, batch)
    codes, left = passage.codes[0], (passage.y[0] - passage.y_hat[0]).detach()
    error = left.square().sum(1).mean() / 6
    f = codes.f.detach()
    gates = (codes.a + (coder.gate if coder.gate is not None else 0)).relu().detach()
    sparsity = {
        "standard": f.sum(1).mean() / 6**0.5,
        "gated": gates.sum(1).mean() / 6**0.5,
        "jumprelu": ((f > 0).sum(1).float().mean() / 3 - 1) ** 2,
    }.get(kind)
    expected = error
    assert_close(parts["error"], error)
    if sparsity is not None:
        assert_close(parts["sparsity"], sparsity)
        expected = expected + coder.settings.weight * sparsity
    if kind == "gated":
        through = gates @ coder.directions[:, 0].detach() + coder.b_dec.detach()
        expected = expected + (passage.y[0] - through).square().sum(1).mean() / 6
    top = codes.before[:, 5:9].relu().detach()
    top = top * (top >= top.topk(3, dim=1).values[:, -1:])
    missed = (left - top @ coder.directions[5:9, 0].detach()).square().sum() / left.square().sum()
    assert_close(parts["aux"], missed)
    assert_close(total.detach(), (expected + missed / 32).detach())


@pytest.mark.parametrize("k", [1, 4, 25])
def test_the_penalty_makes_features_smaller_by_a_quarter(k):
    """Of k orthogonal features of one size, whatever k is."""
    m, d = (32 / k) ** 0.5, 32
    f = torch.full((k,), 0.75 * m, requires_grad=True)
    ((m - f).square().sum() / d + Settings(kind="standard", k=k).weight * f.sum() / d**0.5).backward()
    assert_close(f.grad, torch.zeros(k), atol=1e-7, rtol=0)
    assert Settings(kind="gated", k=k).weight == Settings(kind="standard", k=k).weight
    assert Settings(kind="gated", k=k, sparsity=0.3).weight == 0.3
    assert (Settings(kind="topk", k=k).weight, Settings(kind="jumprelu", k=k).weight) == (0.0, 1.0)


@pytest.mark.parametrize("l0", [1.5, 3.0, 6.0, 24.0])
def test_the_weight_of_gates_follows_their_l0(l0):
    batch = drawn((6,), (6,), tied=True)
    coders = coders_of("gated", batch, ((0,),), revival="none")
    coder, optimizer = coders.coders[0], torch.optim.AdamW(coders.parameters())
    assert_close(coder.active, (coders(batch).codes[0].f > 0).sum(1).float().mean())
    coder.active.fill_(l0)
    before = float(coder.weight)
    losses.after(coders, optimizer, 5, batch)
    moved = torch.log(coder.weight / before) / (losses.STEER * coders.settings.rate(5))
    assert_close(moved, torch.tensor({1.5: -0.6931, 3.0: 0.0, 6.0: 0.6931, 24.0: 1.0}[l0]), atol=2e-3, rtol=0)
    for fixed in (coders_of("gated", batch, ((0,),), sparsity=0.1), coders_of("standard", batch, ((0,),))):
        before = fixed.coders[0].weight.clone()
        losses.after(fixed, torch.optim.AdamW(fixed.parameters()), 5, batch)
        assert torch.equal(fixed.coders[0].weight, before)


def test_gradients_of_thresholds_are_those_of_the_rectangle():
    batch = drawn((6,), (6,), tied=True)
    coders = coders_of("jumprelu", batch, ((0,),), revival="none", sparsity=2.0, bandwidth=0.8)
    coder = coders.coders[0]
    passage = coders(batch)
    losses.loss(coders, passage, batch)[0].backward()
    t, before = coder.log_threshold.detach().exp(), passage.codes[0].before.detach()
    near = ((before - t).abs() < 0.4).float() / 0.8
    l0 = (before.relu() > t).sum(1).float().mean()
    by_f = 2 * (passage.y_hat[0] - passage.y[0]).detach() @ coder.directions[:, 0].detach().mT / 6 / 40
    near_f = ((before.relu() - t).abs() < 0.4).float() / 0.8
    by_t = -(by_f * t * near_f).sum(0) - 2.0 * 2 * (l0 / 3 - 1) / 3 * near.sum(0) / 40
    assert_close(coder.log_threshold.grad, by_t * t, atol=1e-5, rtol=1e-4)


def test_the_threshold_of_batchtopk_and_the_count_of_silent_tokens():
    batch = drawn((6,), (6,), tied=True)
    coders = coders_of("batchtopk", batch, ((0,),))
    coder = coders.coders[0]
    f = coders(batch).codes[0].f
    assert int((f > 0).sum()) == 3 * 40
    assert_close(coder.threshold, f[f > 0].min().detach())
    assert_close(coder.silent, torch.where((f > 0).any(0), 0, 80))


@pytest.mark.parametrize("tied", [True, False])
def test_a_dead_feature_is_set_to_what_is_explained_worst(tied):
    batch = drawn((6,), (6,), tied=tied)
    if not tied:  # what one token has cannot be explained by the others
        batch.y[0][7] *= 1000.0
    coders = coders_of("standard", batch, ((0,),), dead_after=50)
    optimizer = torch.optim.AdamW(coders.parameters())
    losses.loss(coders, coders(batch), batch)[0].backward()
    optimizer.step()
    coder = coders.coders[0]
    coder.silent[:] = 0
    coder.silent[[2, 9]] = 60
    before = coder.w_dec.detach().clone()
    passage = coders.eval()(batch)
    left = (passage.y[0] - passage.y_hat[0]).detach()
    coders.train()
    assert losses.resample(coders, optimizer, batch, torch.Generator().manual_seed(1)) == 2
    moved = (coder.w_dec != before).any(2)[:, 0].nonzero()[:, 0].tolist()
    assert moved == [2, 9]
    cosines = coder.w_dec[[2, 9], 0] @ torch.nn.functional.normalize(left, dim=1).mT
    assert_close(cosines.max(1).values, torch.ones(2))
    assert tied or 7 in cosines.argmax(1).tolist()
    living = coder.w_enc.norm(dim=0)[[i for i in range(24) if i not in (2, 9)]]
    assert_close(coder.w_enc[:, [2, 9]].norm(dim=0), 0.2 * living.mean().expand(2))
    assert float(optimizer.state[coder.w_enc]["exp_avg"][:, [2, 9]].abs().sum()) == 0
    assert coder.silent[[2, 9]].tolist() == [0, 0]


def test_a_stream_gives_every_token_once_an_epoch_in_an_order_of_its_seed():
    model = tiny("llama")
    pieces = ModelPieces(model, IDS, passages("L0.resid_post", None), length=12)
    x = model.run(IDS, capture=["L0.resid_post"])["L0.resid_post"]
    firsts = torch.cat([model.run([ids[12:]], capture=["L0.resid_post"])["L0.resid_post"] for ids in IDS])
    expected = torch.cat([x[:, 1:12].flatten(0, 1), firsts[:, 1:].flatten(0, 1)])
    stream = Stream(pieces, batch_size=44, steps=6, buffer=10**6)
    whole = torch.cat([stream.batch(i).x[0] for i in range(6)])
    assert_close(whole.sum(1).sort().values, expected.sum(1).sort().values, atol=1e-4, rtol=1e-4)
    other = Stream(pieces, batch_size=44, steps=6, seed=1, buffer=10**6).batch(0).x[0]
    assert not torch.equal(other, whole[:44])
    ahead = Stream(pieces, batch_size=44, steps=6, buffer=10**6)
    ahead.load_state_dict({"start": 0, "offset": 88})
    assert torch.equal(ahead.batch(2).x[0], whole[88:132])


@pytest.mark.parametrize("source", ["model", "store"])
def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(source, tmp_path, monkeypatch):
    model = tiny("llama")
    options = dict(SMALL, kind="standard", dead_after=20, resample_every=2, buffer=100, steps=12)
    data = [model, TRANSCODERS[0], IDS]
    if source == "store":
        sites = [*TRANSCODERS[0], *TRANSCODERS[1]]
        data = [capture_to(model, [IDS[:5], IDS[5:9], IDS[9:]], sites, tmp_path / "store"), TRANSCODERS[0]]
    whole = train(*data, site_out=TRANSCODERS[1], **options)
    real, count = losses.loss, iter(range(100))

    def interrupted(*arguments):
        if next(count) in (4, 9):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(losses, "loss", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(*data, site_out=TRANSCODERS[1], folder=tmp_path / "run", save_every=0.0, **options)
    resumed = train(*data, site_out=TRANSCODERS[1], folder=tmp_path / "run", save_every=0.0, **options)
    assert next(count) < 16  # did not begin again
    assert isinstance(resumed, Dictionaries)
    assert [len(d.sites_out) for d in resumed] == [2, 1]
    for one, other in zip(whole, resumed, strict=True):
        assert all(torch.equal(t, other.tensors[name]) for name, t in one.tensors.items())
    with pytest.raises(SchemaError, match="another run"):
        train(*data, site_out=TRANSCODERS[1], folder=tmp_path / "run", **{**options, "seed": 1})


def test_hygiene_by_hand():
    model = tiny("llama")
    one = train(model, "L1.resid_post", IDS, **{**SMALL, "steps": 30})
    one = replace(one, b_enc=one.b_enc.index_fill(0, torch.arange(one.n_features // 2), -1e6))  # half of it is dead
    other = train(model, "L1.resid_post", IDS, **{**SMALL, "steps": 30, "seed": 1})
    result = hygiene(model, one, IDS, twins=[other, one])
    values = result.table.set_index("variant")["value"]
    f = one.encode(model.run(IDS, capture=["L1.resid_post"])["L1.resid_post"][:, 1:].flatten(0, 1))
    rate = (f > 0).double().mean(0)
    assert values["l0"] == pytest.approx(float(rate.sum()))
    assert (rate == 0).double().mean() >= 0.5
    assert values["dead"] == pytest.approx(float((rate == 0).double().mean()))
    assert values["dense"] == pytest.approx(float((rate > 0.1).double().mean()))
    assert values["density"] == pytest.approx(float(rate[rate > 0].median()))
    measured = quality(model, one, IDS, loss=True)
    assert values["fvu"] == pytest.approx(1 - measured.fve[Site("resid_post", 1)])
    assert values["loss_recovered"] == pytest.approx(measured.loss_recovered)
    a, b = (torch.nn.functional.normalize(d.w_dec, dim=1) for d in (one, other))
    assert values["mmcs"] == pytest.approx(((a @ b.mT).max(1).values.mean().item() + 1) / 2, abs=1e-5)
    assert stability(one, one) == pytest.approx((1.0, 1.0))
    assert result.provenance["data"]["prompts"] == len(IDS)


def test_a_matching_is_one_to_one():
    eye = torch.eye(4)
    one = interp.dictionaries.Dictionary(eye, eye, torch.zeros(4), torch.zeros(4))
    twice = eye[[0, 0, 2, 3]]
    other = interp.dictionaries.Dictionary(twice.mT.contiguous(), twice, torch.zeros(4), torch.zeros(4))
    assert stability(one, other) == (0.75, 0.75)
    assert stability(other, one) == (1.0, 0.75)


def test_trained_files_load_again(tmp_path):
    model = tiny("llama")
    across = train(model, TRANSCODERS[0], IDS, site_out=TRANSCODERS[1], **SMALL)
    write(across, tmp_path / "across")
    loaded = interp.dictionaries.load(tmp_path / "across", model, measure=False)
    x = [torch.randn(5, d.d_in, generator=torch.Generator().manual_seed(1)) for d in across]
    for site, y in across.forward(x).items():
        assert_close(loaded.forward(x)[site], y)
    one = train(model, "L0.z", IDS, **SMALL)
    write(one, tmp_path / "one")
    assert_close(
        interp.dictionaries.load(tmp_path / "one").encode(x[0][:, : one.d_in]), one.encode(x[0][:, : one.d_in])
    )


def test_what_cannot_be_trained_is_refused(tmp_path):
    model = tiny("llama")
    for options, message in (
        ({"kind": "topc"}, "topk"),
        ({"k": 99}, "24 features"),
        ({"stepz": 3}, "steps"),
        ({"batch_size": 10_000}, "fewer than a batch"),
        ({"learning_rate": 0.0}, "above 0"),
    ):
        with pytest.raises(SchemaError, match=message):
            train(model, "L0.resid_post", IDS, **{**SMALL, **options})
    for arguments, message in (
        ((model,), "no site"),
        ((model, "L0.resid_post"), "needs prompts"),
        ((model, ["L0.mlp_in", "L1.mlp_in"], IDS), "one at a time"),
        ((model, "resid_post", IDS), "one layer"),
        ((model, "L0.resid_post", "a text"), "list of texts"),
    ):
        with pytest.raises(SchemaError, match=message):
            train(*arguments, **SMALL)
    first, last = (tuple(map(Site.parse, sites)) for sites in TRANSCODERS)
    with pytest.raises(SchemaError, match="topk transcoder"):
        check_writable(Settings(kind="topk"), first[:1], last[:1])
    with pytest.raises(SchemaError, match="every layer"):
        check_writable(Settings(), first[::-1], last)
    with pytest.raises(SchemaError, match="uncorrelated"):
        PlantedDictionary.of("uncorelated")


def test_the_dictionaries_of_the_default_model():
    model = interp.load("zoo:default")
    d = interp.dictionaries.load("zoo:default/resid2", model, measure=False)
    assert str(d.site_in) == "L2.resid_post"
    with pytest.raises(ModelLoadError, match="zoo:default/resid2"):
        interp.dictionaries.load("zoo:default/resid3")
    with pytest.raises(ModelLoadError, match="it has none"):
        interp.dictionaries.load("zoo:sibling/resid2")


KILLED = """
import sys, torch, interp
from pathlib import Path
from interp.storage import capture_to
from interp.dictionaries import train
from interp.dictionaries.training.planted import generator
folder, source = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
model = interp.load("zoo:planted-induction")
def prompts(i):
    return torch.randint(1, model.info.d_vocab, (8, 40), generator=generator("kill", i)).tolist()
options = dict(site="L1.resid_post", n_features=256, k=8, steps=150, batch_size=256, dead_after=2000)
options |= dict(kind="standard", resample_every=20, buffer=2000, save_every=0.0, folder=folder / "run")
if source == "store":
    store = capture_to(model, map(prompts, range(60)), ["L1.resid_post"], folder / "store", max_bytes=2**18)
    d = train(store, **options)
else:
    d = train(model, prompts=prompts, **options)
torch.save(d.tensors, folder / "weights.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["store", "model"])
def test_killed_ten_times_it_ends_with_the_same_weights(source, tmp_path):
    def start(folder):
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder), source])

    def progress(folder):
        """(files of activations, time at which the state last changed)."""
        state = folder / "run" / "training.pt"
        return len(list((folder / "store").glob("*.safetensors"))), state.stat().st_mtime_ns if state.exists() else 0

    assert start(tmp_path / "whole").wait() == 0
    folder, stages = tmp_path / "killed", []
    for number in range(10):
        process = start(folder)
        stage = "streaming" if source == "store" and number < 5 else "training"
        before = progress(folder)
        while progress(folder)[stage == "training"] == before[stage == "training"] and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.01 * number)  # at another place each time
        process.kill()
        assert process.wait() == -signal.SIGKILL
        stages.append("training" if progress(folder)[1] else "streaming")
    assert stages.count("training") == (5 if source == "store" else 10)
    assert start(folder).wait() == 0
    whole, resumed = (torch.load(f / "weights.pt") for f in (tmp_path / "whole", folder))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(x, resumed[name]) for name, x in whole.items())
