"""`interp sae train`: files that load again, what they are worth on stdout, refusals before any work."""

import interp


def test_a_trained_dictionary_loads_again(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the first day of the week is Monday and the second is Tuesday\n" * 60)
    options = ["--features", "32", "--k", "4", "--steps", "5", "--batch-size", "64", "--text", str(text)]
    code, out, err = run("sae", "train", "zoo:sibling", "L0.resid_post", *options, "--out", str(tmp_path / "sae"))
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()][:2] == ["l0", "dead"]
    d = interp.dictionaries.load(tmp_path / "sae")
    assert (d.n_features, str(d.site_in)) == (32, "L0.resid_post")
    assert not (tmp_path / "sae" / "training.pt").exists()


def test_what_cannot_be_written_is_refused_first(run, tmp_path):
    options = ["L0.mlp_in", "--site-out", "L0.mlp_out", "--kind", "topk", "--out", str(tmp_path / "sae")]
    code, out, err = run("sae", "train", "no/such-model", *options)
    assert (code, out) == (2, "")
    assert "topk transcoder" in err
