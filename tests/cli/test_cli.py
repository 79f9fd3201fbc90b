"""The command line: what goes to which stream, exit codes, and one line for everything that can go wrong."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build

import interp
from interp import zoo
from interp.cli import main as cli
from interp.measurement import registry
from interp.results.results import Result

PLANTED = "zoo:planted-induction"


def refused(outcome, code, message):
    """The outcome is this exit code, nothing on stdout, one line on stderr without a traceback."""
    got, out, err = outcome
    assert (got, out) == (code, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory):
    """A checkpoint folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("bare")
    build("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """`detect` asks few prompts and compares with few random sets: how many an analysis takes has its own tests."""
    real = registry.analyze

    def few(model, name, **options):
        return real(model, name, n_prompts=8, **({"n_random": 3} if name == "induction" else {}), **options)

    monkeypatch.setattr(registry, "analyze", few)


def test_json_is_one_document_and_nothing_else(run):
    code, out, _ = run("detect", PLANTED, "-a", "previous_token", "--seed", 3, "--json")
    assert code == 0
    document = json.loads(out)
    assert set(document) == {"provenance", "rows", "interventions"}
    assert len(document["rows"]) == 16
    best = max(document["rows"], key=lambda row: row["value"])
    ((layer, head),) = zoo.truth("planted-induction").roles["previous_token"]
    assert best["component"] == f"L{layer}H{head}"
    assert best["label"] is True
    assert document["provenance"]["seed"] == 3
    assert document["provenance"]["command"].startswith("interp detect zoo:planted-induction")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_out_writes_the_table(run, quick, tmp_path, suffix):
    path = tmp_path / f"heads{suffix}"
    code, out, err = run("detect", PLANTED, "-a", "sink", "-a", "previous_token", "--out", path)
    assert code == 0
    assert "First-token sinks" in out
    assert f"wrote {path}" in err
    read = {
        ".parquet": lambda: Result.load(path).table,
        ".csv": lambda: pd.read_csv(path),
        ".json": lambda: pd.DataFrame(json.loads(path.read_text())["rows"]),
    }
    assert set(read[suffix]()["analysis"]) == {"sink", "previous_token"}


def test_the_table_names_the_labelled_heads_and_what_removing_them_does(run, quick):
    code, out, _ = run("detect", PLANTED, "-a", "induction", "--top", 2)
    ((layer, head),) = zoo.truth("planted-induction").roles["induction"]
    assert code == 0
    assert f"1 of 16 heads labelled: L{layer}H{head}" in out
    assert "mean-ablated: second_copy_accuracy 1.000 -> 0.0" in out
    assert "same layers: 1.000 +- 0.000)" in " ".join(out.split())


def test_a_checkpoint_without_a_tokenizer_is_detected(run, quick, bare_folder):
    code, out, _ = run("detect", bare_folder, "-a", "previous_token")
    assert code == 0
    assert "0 of 16 heads labelled" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["detect", "/nowhere/at/all"], 1, "no folder '/nowhere/at/all'"),
        (["detect", "zoo:defalt"], 2, "did you mean 'default'"),
        (["detect", PLANTED, "-a", "inductoin"], 2, "unknown analysis 'inductoin'; did you mean 'induction'?"),
        (["detect", PLANTED, "--out", "heads.xlsx"], 2, ".parquet, .csv, .json"),
        (["detect", PLANTED, "--out", "/nowhere/heads.csv"], 1, "no folder '/nowhere'"),
        (["detect", PLANTED, "--dtype", "float31"], 2, "unknown dtype 'float31'"),
        (["detect", PLANTED, "--device", "toaster"], 2, "device 'toaster'"),
        (["detect", PLANTED, "--top", "0"], 2, "--top"),
        (["detect"], 2, "MODEL"),
        (["detekt", PLANTED], 2, "detekt"),
        (["demo", PLANTED, "--out", "/nowhere/report.html"], 1, "no folder '/nowhere'"),
        (["demo", PLANTED, "--prompt", ""], 1, "empty prompt"),
        (["demo", PLANTED, "--prompt", "sun " * 600], 1, "601 tokens is longer than the model's context of 512"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else None,
)
def test_bad_input_is_one_line_and_an_exit_code(run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments), code, message)
    assert list(tmp_path.iterdir()) == []


def test_nan_weights(run, tmp_path, bare_folder):
    (tmp_path / "config.json").write_bytes((bare_folder / "config.json").read_bytes())
    weights = load_file(bare_folder / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "heads.parquet"
    refused(run("detect", tmp_path, "-a", "sink", "--out", out), 1, "layer 1: attention queries not finite")
    assert not out.exists()


def test_an_interruption_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.measurement.registry.detect", interrupt)
    refused(run("detect", PLANTED, "--out", tmp_path / "heads.csv"), 130, "interrupted")
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_expected_is_one_line_too_unless_debugging(run, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("interp.measurement.registry.detect", fail)
    refused(
        run("detect", PLANTED),
        1,
        "unexpected ZeroDivisionError: by nought (for the traceback add --debug to the command)",
    )
    monkeypatch.setattr(sys, "argv", ["interp", "--debug", "detect", PLANTED])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_env_and_zoo_list(run):
    code, out, _ = run("env", "--json")
    assert code == 0
    assert json.loads(out)["torch"] == torch.__version__
    code, out, _ = run("zoo", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == [f"zoo:{name}" for name in zoo.names()]


def test_zoo_build_writes_a_folder_that_loads(run, tmp_path):
    folder = tmp_path / "planted"
    code, out, _ = run("zoo", "build", "planted-induction", folder)
    assert (code, out) == (0, f"{folder}\n")
    code, out, _ = run("detect", folder, "-a", "previous_token", "--json")
    assert code == 0
    ((layer, head),) = zoo.truth("planted-induction").roles["previous_token"]
    best = max(json.loads(out)["rows"], key=lambda row: row["value"])
    assert best["component"] == f"L{layer}H{head}"
    refused(run("zoo", "build", "planted-induction", folder), 1, "is not an empty folder")


def test_zoo_card(run):
    code, out, _ = run("zoo", "card", "zoo:planted-induction")
    assert code == 0
    assert "- induction: L1H7, expected score 0.99" in out
    code, out, _ = run("zoo", "card", "default")
    assert code == 0
    assert "## Training" in out
    refused(run("zoo", "card", "defalt"), 2, "did you mean 'default'")


def test_zoo_verify(run, tmp_path):
    out_file = tmp_path / "board.csv"
    arguments = ("zoo", "verify", "-a", "previous_token", "--seeds", 1, "--architecture", "llama", "--markdown")
    code, out, _ = run(*arguments, "--out", out_file)
    assert code == 0
    assert "| previous_token | alone |" in out
    assert set(pd.read_csv(out_file)["setting"]) == {"alone", "together", "inert"}
    refused(run("zoo", "verify", "--architecture", "lama"), 2, "did you mean 'llama'")


def test_help_imports_nothing_heavy():
    code = """
import sys
from interp.cli.main import main
try:
    main(["--help"])
except SystemExit:
    heavy = {"torch", "transformers", "pandas", "plotly", "scipy"} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "detect" in done.stdout


@pytest.fixture
def told(tmp_path):
    """A text of one's own for the planted model, and what stands in it."""
    path = tmp_path / "prompt.txt"
    tokenizer = interp.load(PLANTED).tokenizer
    words = [w for w in tokenizer.get_vocab() if not w.startswith("<")][:20]
    path.write_text(" ".join([*words, *words]))
    return path, words


def test_detect_on_a_text_of_ones_own_with_spans(run, told):
    path, words = told
    length = len(" ".join(words))
    code, out, err = run(
        "detect",
        PLANTED,
        "--text",
        path,
        "--span",
        f"document=0:{length}",
        "--span",
        f"question={length + 1}:",
        "--json",
    )
    assert code == 0
    rows = pd.DataFrame(json.loads(out)["rows"])
    ran = set(rows["analysis"])
    assert {"sink", "previous_token", "offset_profile", "distance_profile", "span_attention"} <= ran
    spans = rows[(rows["analysis"] == "span_attention") & (rows["variant"] == "strongest")]
    assert set(spans["span"]) == {"document"}
    assert spans["n"].eq(1).all()
    assert "left out: movers: 'movers' takes no prompts" in err or "left out: movers: takes no prompts" in err
    assert "left out: conflict: takes no text as its prompts" in err
    assert "left out: echo_induction: takes no prompts of one's own" in err


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ("document", "spans are written NAME=START:END"),
        ("=3:5", "spans are written NAME=START:END"),
        ("document=0:99999", "the prompt has"),
        ("document=no such words", "stands 0 times"),
    ],
)
def test_spans_that_are_not_there_are_refused(run, told, span, message):
    code, _, err = run("detect", PLANTED, "--text", told[0], "--span", span)
    assert code in (1, 2)
    assert message in err


def test_a_span_without_a_text_is_refused(run):
    code, _, err = run("detect", PLANTED, "--span", "document=0:5")
    assert code == 2
    assert "give --prompt TEXT or --text FILE" in err


def test_an_analysis_that_makes_its_own_prompts_is_refused_by_name(run, told):
    code, _, err = run("detect", PLANTED, "--text", told[0], "-a", "echo_induction")
    assert code == 1
    assert "takes no prompts of one's own" in err
