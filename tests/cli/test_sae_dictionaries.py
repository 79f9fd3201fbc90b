"""`interp sae load` and `interp sae features`: numbers are those of the library, what does not fit is refused first."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from dictionaries_made import principal, save_learned
from torch.testing import assert_close

import interp
from interp.dictionaries import features, load, quality, top_examples
from interp.sites import Site

MODEL, RESID, PROMPT = "zoo:default", "zoo:default/resid2", "The code of goose is day . The code of goose is"


def test_a_dictionary_is_measured_beside_its_claims_and_converted(run, tmp_path):
    model = interp.load(MODEL)
    site = Site("resid_post", 2)
    parts = principal(model, "L2.resid_post", model.batch(PROMPT), 5)
    folder = save_learned(tmp_path / "resid", *parts, site="resid_post_layer_2")
    found = quality(model, load(folder), PROMPT, loss=True)
    l0 = found.l0[site]
    save_learned(folder, *parts, site="resid_post_layer_2", frac_variance_explained=found.fve[site] + 0.05, l0=l0 + 1)

    command = ("sae", "load", folder, "--model", MODEL, "-p", PROMPT)
    code, out, err = run(*command, "--loss", "--json", "--save", "saelens", tmp_path / "converted")
    assert code == 0, err
    document = json.loads(out)
    rows = {row["quantity"]: (row["measured"], row["claimed"]) for row in document["measured"]}
    assert rows["FVU"] == pytest.approx((1 - found.fve[site], 0.95 - found.fve[site]))
    assert rows["L0"] == pytest.approx((l0, l0 + 1))
    assert rows["loss recovered"] == (pytest.approx(found.loss_recovered), None)
    own = document["members"][0]
    assert (own["reads"], own["features"], own["d_in"], own["normalisation"]) == ("L2.resid_post", 10, 192, "none")
    assert (document["format"], document["n_tokens"]) == ("dictionary_learning", found.n_tokens)
    again, before = load(tmp_path / "converted"), load(folder)
    x = torch.randn(5, 192)
    assert (again.format, again.site_in) == ("saelens", site)
    assert_close(again(x), before(x))

    save_learned(folder, *parts, site="resid_post_layer_2", frac_variance_explained=found.fve[site] + 0.3)
    code, out, err = run(*command, "--save", "saelens", tmp_path / "none")
    assert (code, out) == (1, "")
    assert f"it explains {found.fve[site]:.3f} of the variance at L2.resid_post and claims" in err
    assert not (tmp_path / "none").exists()


def test_active_features_of_a_prompt_and_the_view_of_one(run, tmp_path):
    model, d = interp.load(MODEL), load(RESID)
    table = features(model, d, PROMPT).table()
    code, out, err = run(
        "sae", "features", RESID, "--model", MODEL, "-p", PROMPT, "--json", "--out", tmp_path / "f.csv"
    )
    assert code == 0, err
    document, own = json.loads(out), pd.read_csv(tmp_path / "f.csv")
    assert len(document["activations"]) == len(own) == len(table)
    at = own[own.position == 5]
    assert set(at.token) == {"is"} and list(at.activation) == sorted(at.activation, reverse=True)
    assert dict(zip(at.feature, at.activation, strict=True)) == pytest.approx(
        dict(zip(*table[table.position == 5][["feature", "value"]].to_numpy().T, strict=True))
    )
    best = document["features"][0]
    rows = table[table.feature == best["feature"]]
    assert best["value"] == pytest.approx(table.value.max(), rel=1e-6)
    assert (best["tokens"], best["mean"]) == (len(rows), pytest.approx(rows.value.mean(), rel=1e-6))

    number = best["feature"]
    command = ("sae", "features", RESID, "--model", MODEL, "--no-check", "-p", PROMPT, "--feature", number)
    code, out, err = run(*command, "--out", tmp_path / "f.html")
    record = top_examples(model, d, number, [PROMPT])[number]
    assert code == 0 and f"active at {record.n_active} of {record.n_tokens} tokens" in out
    assert "[goose]" in out and "of 100 push any token as far" in out
    assert f"Feature {number}" in (tmp_path / "f.html").read_text(encoding="utf-8")
    document = json.loads(run(*command, "--json")[1])
    assert document["examples"][0]["value"] == pytest.approx(record.examples[0].value)
    assert document["logits"]["up"]["random"]["n"] == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("load", RESID, "--format", "sealens"), "did you mean 'saelens'"),
        (("load", RESID, "--save", "sparsify", "there"), "no dictionary is written as 'sparsify'"),
        (("load", RESID, "--site", "L2.resid_past"), "resid_past"),
        (("load", RESID, "--loss"), "give --model"),
        (("features", RESID), "give --prompt or --text"),
        (("features", RESID, "--feature", 768), "feature 768 is out of range; the dictionary has 768"),
        (("features", RESID, "--feature", 1, "--member", 1), "member 1 is out of range"),
        (("features", RESID, "--feature", 1, "--out", "f.csv"), "end 'f.csv' in .html"),
        (("features", RESID, "-p", "a", "--out", "f.html"), ".parquet, .csv, .json"),
        (("features", RESID, "--text", "no-such-file"), "cannot read 'no-such-file'"),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_is_loaded(run, arguments, message):
    model = () if arguments[0] == "load" else ("--model", "no/such-model")
    code, out, err = run("sae", *arguments, *model)
    assert (code, out) == (2, "")
    assert message in err
