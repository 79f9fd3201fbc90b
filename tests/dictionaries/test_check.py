"""What a dictionary is worth in a model, by hand; a dictionary of another site, normalisation or model is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dictionaries_made import principal, random_dictionary, save_learned, transcoders
from hub_server import Repository, serving
from tiny_models import ragged, tiny
from torch.nn.functional import cross_entropy

from interp.dictionaries import Dictionary, JumpReLU, Normalisation, check, load, quality, write_saelens
from interp.edits import Replace
from interp.errors import ModelLoadError, SchemaError
from interp.sites import Site

SAMPLES = Path(__file__).parent / "samples"
TOKENS = ragged(24, "right", lengths=(24, 20, 24, 17))
EVEN = ragged(24, "unpadded", lengths=(24,) * 6)
RANK = 20


def loss_of(model, edits=()):
    logits = model.run(TOKENS, edits=edits).logits
    nats = [
        cross_entropy(logits[b, : n - 1], TOKENS.ids[b, 1:n], reduction="sum") for b, n in enumerate(TOKENS.mask.sum(1))
    ]
    return float(sum(nats) / (TOKENS.mask.sum() - len(nats)))


def test_quality_by_hand():
    model, d = tiny("llama"), random_dictionary("L0.mlp_in", "L0.mlp_out")
    run = model.run(TOKENS, capture=["L0.mlp_in", "L0.mlp_out"])
    keep = TOKENS.mask.clone()
    keep[:, 0] = False  # attention sinks
    x, y = run["L0.mlp_in"][keep], run["L0.mlp_out"][keep]
    found = quality(model, d, TOKENS, loss=True)
    expected = 1 - (y - d(x)).square().sum() / (y - y.mean(0)).square().sum()
    assert found.fve == {Site("mlp_out", 0): pytest.approx(float(expected), abs=1e-5)}
    assert found.l0 == {Site("mlp_in", 0): pytest.approx(float((d.encode(x) != 0).sum(-1).float().mean()))}
    assert found.n_tokens == int(keep.sum())
    losses = [loss_of(model, e) for e in ((), [Replace("L0.mlp_out", d(run["L0.mlp_in"]))])]
    losses.append(loss_of(model, [Replace("L0.mlp_out", torch.zeros(64))]))
    assert found.loss == pytest.approx(losses, abs=1e-5)
    assert found.loss_recovered == pytest.approx((losses[2] - losses[1]) / (losses[2] - losses[0]), abs=1e-4)


def test_quality_of_a_cross_layer_transcoder_is_that_of_the_sum():
    model, d = tiny("llama"), transcoders()
    run = model.run(TOKENS, capture=["mlp_in", "mlp_out"])
    keep = TOKENS.mask.clone()
    keep[:, 0] = False
    x, y = [run[f"L{i}.mlp_in"][keep] for i in range(2)], run["L1.mlp_out"][keep]
    y_hat = d[0](x[0])[:, 1] + d[1](x[1])
    expected = 1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
    assert quality(model, d, TOKENS).fve[Site("mlp_out", 1)] == pytest.approx(float(expected), abs=1e-5)


def test_the_right_dictionary_is_loaded_and_the_stated_loss_recovered_is_measured(tmp_path):
    model = tiny("llama")
    parts = principal(model, "L0.resid_post", EVEN, RANK)
    folder = save_learned(tmp_path / "resid", *parts)
    d = load(folder)
    found = quality(model, d, EVEN, loss=True)
    assert found.fve[Site("resid_post", 0)] > 0.5
    stated = {"frac_variance_explained": found.fve[Site("resid_post", 0)], "l0": found.l0[Site("resid_post", 0)]}
    save_learned(folder, *parts, **stated, frac_recovered=found.loss_recovered)
    again = load(folder, model, prompts=EVEN)
    assert check(model, again, EVEN).loss_recovered == pytest.approx(again.claims["loss_recovered"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "claims", "message"),
    [
        (
            {"site": "resid_post_layer_1"},
            {"frac_variance_explained": 0.77},
            r"explains -?\d\.\d+ of the variance at L1",
        ),
        ({"site": "resid_post_layer_1"}, {}, r"less of the variance at L1.resid_post than the mean alone \(-"),
        ({}, {"frac_variance_explained": 0.99}, r"explains 0\.\d+ of the variance at L0.resid_post and claims 0.990"),
        ({}, {"l0": 4.0}, r"L0 is \d+\.\d at L0.resid_post and claimed to be 4.0"),
        ({}, {"frac_recovered": 1.5}, r"recovers -?\d\.\d+ of the loss and claims 1.500"),
        ({"site": "resid_post_layer_9"}, {}, "layer 9 is out of range"),
    ],
)
def test_what_is_not_as_claimed_is_refused_with_the_numbers(options, claims, message, tmp_path):
    model = tiny("llama")
    w_enc, w_dec, b_enc, b_dec = principal(model, "L0.resid_post", EVEN, RANK)
    if options and not claims and "9" not in options["site"]:
        b_dec = b_dec + 30.0
    folder = save_learned(tmp_path / "sae", w_enc, w_dec, b_enc, b_dec, **options, **claims)
    with pytest.raises(ModelLoadError, match=message) as refusal:
        load(folder, model, prompts=EVEN)
    if claims == {"frac_variance_explained": 0.77}:
        assert "at L0.resid_post it would explain 0." in str(refusal.value)
    if "9" not in options.get("site", ""):
        assert load(folder, model, prompts=EVEN, measure=False).n_features == 2 * RANK


def test_a_wrong_normalisation_is_refused_and_one_that_fits_named(tmp_path):
    """Embeddings are a tenth as long as what the dictionary was made on, and stay below its thresholds."""
    model, site = tiny("llama"), "embed"
    w_enc, w_dec, b_enc, b_dec = principal(model, site, EVEN, 40, normalised=True)
    parts = {"w_enc": w_enc, "w_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "centred": True}
    right = Dictionary(**parts, activation=JumpReLU(torch.full((80,), 1.0)), normalisation=Normalisation("layer_norm"))
    write_saelens(right.at(site), tmp_path)
    found = check(model, load(tmp_path, model, prompts=EVEN), EVEN)
    assert found.fve[Site("embed")] > 0.5
    for name in ("none", "expected_average_only_in"):
        config = json.loads((tmp_path / "cfg.json").read_text()) | {"normalize_activations": name}
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        with pytest.raises(
            ModelLoadError, match=r"than the mean alone \(-.* with normalisation \w+(, scale=8.*)? it"
        ) as refusal:
            load(tmp_path, model, prompts=EVEN)
        assert float(str(refusal.value).split("would explain ")[1][:5]) >= 0.99 * found.fve[Site("embed")]
    scale = 8 / float(model.run(EVEN, capture=[site])[site][:, 1:].norm(dim=-1).mean())
    assert load(tmp_path, model, prompts=EVEN, scale=scale).normalisation == Normalisation("scale", scale=scale)


def test_widths_and_prompts():
    model = tiny("llama")
    with pytest.raises(ModelLoadError, match="is of vectors of 6 at L1.resid_post, where those of .* have 64"):
        load(SAMPLES / "sparsify" / "layers.1", model, prompts=EVEN)
    with pytest.raises(ModelLoadError, match="does not say where it belongs"):
        d = random_dictionary("L0.resid_post")
        check(model, type(d)(d.w_enc, d.w_dec, d.b_enc, d.b_dec), EVEN)
    with pytest.raises(SchemaError, match="no tokenizer to read text with; give prompts="):
        quality(model, random_dictionary("L0.resid_post"))
    with pytest.raises(SchemaError, match="no prompt is longer than 1 tokens"):
        quality(model, random_dictionary("L0.resid_post"), [[1], [2]])


SCRIPT = """
import sys
from interp.dictionaries import load
from interp.errors import ModelLoadError
print(load("org/saes/saelens/topk"), load("org/saes", subfolder="circuit_tracer/cross-layer"), sep="\\n")
for name in ("org/nonesuch", "org/saes/nothing"):
    try:
        load(name)
    except ModelLoadError as error:
        print(error)
"""


@pytest.mark.slow
def test_from_the_hub(tmp_path):
    with serving({"org/saes": Repository({"main": ("a" * 40, SAMPLES), "a" * 40: ("a" * 40, SAMPLES)})}) as address:
        here = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", SCRIPT]
        run = subprocess.run(
            command, env={**os.environ, **here}, capture_output=True, text=True, check=False, timeout=120
        )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == repr(load(SAMPLES / "saelens" / "topk"))
    assert lines[1] == repr(load(SAMPLES / "circuit_tracer" / "cross-layer"))
    assert "org/nonesuch" in lines[2]
    assert "no dictionary of a known layout" in lines[3]
