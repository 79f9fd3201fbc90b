"""Files that other packages wrote give their numbers here; files that are not what they should be are refused."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dictionaries_made import random_dictionary, transcoders
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from interp.dictionaries import (
    BatchTopK,
    Dictionaries,
    Gated,
    GroupMax,
    JumpReLU,
    Normalisation,
    TopK,
    load,
    write_circuit_tracer,
    write_saelens,
)
from interp.errors import InterpError, ModelLoadError, SchemaError
from interp.sites import Site

SAMPLES = Path(__file__).parent / "samples"
CASES = sorted(p.parent.relative_to(SAMPLES).as_posix() for p in SAMPLES.rglob("answers.safetensors"))
SITES = {
    "saelens/gated-z": "L1.z",
    "saelens/skip-transcoder": "L0.resid_mid L0.mlp_out",
    "saelens/flat": "L1.resid_pre",
    "sparsify/layers.1": "L1.resid_post",
    "sparsify/layers.0.mlp": "L0.mlp_in L0.mlp_out",
    "dictionary_learning/gated": "L1.attn_out",
    "circuit_tracer/cross-layer": "L0.resid_mid L0.mlp_out L1.mlp_out L2.mlp_out",
    "gemma_scope/gemma-scope-tiny-pt-res/layer_1/width_16/average_l0_4": "L1.resid_post",
    "gemma_scope/gemma-scope-2-tiny-pt/transcoder/layer_1_width_16_l0_small_affine": "L1.mlp_in L1.mlp_out",
}
FEATURES = 10


def outcome(dictionary, x):
    """(features, output) as one tensor each."""
    f, y = dictionary.encode(x), dictionary.forward(x)
    return (torch.stack(f), torch.stack(list(y.values()))) if isinstance(dictionary, Dictionaries) else (f, y)


def vary(**options):
    return random_dictionary("L1.resid_post", d_in=6, d_out=6, n=FEATURES, **options)


def vector(seed):
    return torch.randn(FEATURES, generator=torch.Generator().manual_seed(seed)).abs()


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_package_that_wrote_the_files(case):
    answers = load_file(SAMPLES / case / "answers.safetensors")
    features, output = outcome(load(SAMPLES / case), answers["x"])
    assert (features != 0).any()
    assert_close(features, answers["features"], atol=1e-6, rtol=1e-6)
    assert_close(output, answers["output"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", SITES)
def test_sites_are_those_that_files_or_names_say(case):
    d = load(SAMPLES / case).members[0]
    first, *rest = map(Site.parse, SITES[case].split())
    assert (d.site_in, d.sites_out) == (first, tuple(rest) or (first,))
    assert case.startswith(d.format.removesuffix("_2"))


def test_claims_are_read(tmp_path):
    assert load(SAMPLES / "gemma_scope/gemma-scope-tiny-pt-res/layer_1/width_16/average_l0_4").claims == {"l0": 4.0}
    folder = shutil.copytree(SAMPLES / "saelens" / "standard", tmp_path / "sae")
    save_file({"sparsity": torch.full((FEATURES,), -1.0)}, folder / "sparsity.safetensors")
    assert load(folder).claims["l0"] == pytest.approx(1.0)
    learned = shutil.copytree(SAMPLES / "dictionary_learning" / "topk", tmp_path / "learned")
    (learned / "eval_results.json").write_text('{"l0": 3.0, "frac_variance_explained": 0.8, "frac_recovered": 0.9}')
    assert load(learned).claims == {"l0": 3.0, "fve": 0.8, "loss_recovered": 0.9}


@pytest.mark.parametrize(
    "dictionary",
    [
        vary(centred=True),
        vary(activation=TopK(3), scaled=True, normalisation=Normalisation("constant_norm")),
        vary(
            activation=JumpReLU(vector(1)), normalisation=Normalisation("layer_norm"), metadata={"model_name": "tiny"}
        ),
        vary(activation=Gated(vector(1), vector(2))),
        vary(skip=torch.randn(6, 6)).at("L0.mlp_in", "L0.mlp_out"),
    ],
    ids=lambda d: d.activation.name + (" skip" if d.skip is not None else ""),
)
def test_saelens_round_trip_is_exact(dictionary, tmp_path):
    write_saelens(dictionary, tmp_path / "one")
    again = load(tmp_path / "one")
    assert {n: x.tolist() for n, x in again.tensors.items()} == {n: x.tolist() for n, x in dictionary.tensors.items()}
    for name in ("site_in", "sites_out", "centred", "scaled"):
        assert getattr(again, name) == getattr(dictionary, name), name
    assert again.normalisation.kind == dictionary.normalisation.kind
    assert type(again.activation) is type(dictionary.activation)
    write_saelens(again, tmp_path / "two")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_batch_top_k_is_written_as_its_threshold(tmp_path):
    d, x = vary(activation=BatchTopK(3, torch.tensor(0.4))), torch.randn(7, 6)
    write_saelens(d, tmp_path)
    assert torch.equal(load(tmp_path).encode(x), d.encode(x))


@pytest.mark.parametrize("case", ["cross-layer", "cross-layer-jumprelu", "transcoders", "skip-transcoders"])
def test_circuit_tracer_round_trip_is_exact(case, tmp_path):
    d = load(SAMPLES / "circuit_tracer" / case)
    write_circuit_tracer(d, tmp_path)
    for file in sorted((SAMPLES / "circuit_tracer" / case).glob("[Wl]*.safetensors")):
        theirs, ours = load_file(file), load_file(tmp_path / file.name)
        assert {n: x.tolist() for n, x in ours.items()} == {n: x.tolist() for n, x in theirs.items()}
    again = load(tmp_path)
    assert again.sites_out == d.sites_out
    assert again.metadata == d.metadata


@pytest.mark.parametrize(
    ("write", "dictionary", "message"),
    [
        (write_saelens, transcoders().members[0], "several sites"),
        (write_saelens, vary(activation=GroupMax(2)), "no autoencoder with groupmax"),
        (write_saelens, vary(normalisation=Normalisation("scale", scale=2.0)), "folded"),
        (write_saelens, vary(activation=BatchTopK(3)), "no threshold"),
        (write_circuit_tracer, Dictionaries((vary(activation=TopK(3)).at("L0.mlp_in", "L0.mlp_out"),)), "topk"),
        (write_circuit_tracer, Dictionaries((vary().at("L1.mlp_in", "L1.mlp_out"),)), "from 0 on"),
    ],
)
def test_what_a_layout_has_no_place_for_is_not_written(write, dictionary, message, tmp_path):
    with pytest.raises(SchemaError, match=message):
        write(dictionary, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scale_folded_into_the_weights_changes_nothing():
    d, x = vary(centred=True, normalisation=Normalisation("scale", scale=3.0)), torch.randn(5, 6)
    assert d.folded().normalisation.kind == "none"
    assert_close(d.folded().encode(x), d.encode(x))
    assert_close(d.folded()(x), d(x))


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def with_objects(folder):
    torch.save({"encoder.weight": Evil()}, folder / "ae.pt")


def object_array(folder):
    np.savez(folder / "params.npz", W_enc=np.array([Evil()], dtype=object), allow_pickle=True)


def only_pickle(folder):
    (folder / "sae_weights.safetensors").unlink()
    (folder / "sae.pkl").write_bytes(pickle.dumps(Evil()))


def changed(name, change):
    """Change a tensor, or add or leave out one, of a safetensors file."""

    def carry_out(folder):
        file = next(p for p in folder.glob("*.safetensors") if p.name != "answers.safetensors")
        state = load_file(file)
        state = {n: x.contiguous() for n, x in change(state, name).items()}
        save_file(state, file)

    return carry_out


def configured(**entries):
    def carry_out(folder):
        file = folder / "cfg.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return carry_out


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


HOSTILE = {
    "pickle with objects": ("dictionary_learning/topk", with_objects, "holds Python objects, which can run code"),
    "npz with objects": ("gemma_scope/*/layer_1/width_16/average_l0_4", object_array, "holds Python objects"),
    "only a pickle": ("saelens/standard", only_pickle, "only sae.pkl; a pickle can run code"),
    "yaml with objects": (
        "circuit_tracer/transcoders",
        text("config.yaml", "a: !!python/name:os.system"),
        "cannot read",
    ),
    "nothing known": ("saelens/standard", lambda f: (f / "cfg.json").unlink(), "no dictionary of a known layout"),
    "cut short": ("saelens/standard", lambda f: (f / "sae_weights.safetensors").write_bytes(b"\0" * 30), "corrupt"),
    "not json": ("saelens/standard", text("cfg.json", "{"), "cannot read cfg.json"),
    "a list": ("saelens/standard", text("cfg.json", "[]"), "holds a list"),
    "nan": ("saelens/standard", changed("W_dec", lambda s, n: s | {n: s[n] * torch.nan}), "w_dec has 60 of 60 .* NaN"),
    "another width": ("saelens/standard", configured(d_in=7), "says d_in 7, and W_enc has shape"),
    "sizes apart": ("sparsify/layers.1", changed("W_dec", lambda s, n: s | {n: s[n][1:]}), "w_dec has 11 features"),
    "latents": ("sparsify/layers.1", configured(num_latents=11), "says 11 latents of 6"),
    "k too large": ("sparsify/layers.1", configured(k=13), "k is 13; expected 1 to 12"),
    "k a word": ("saelens/topk", configured(k="3"), "k in the configuration .* is '3'; expected int"),
    "bias of another size": ("saelens/standard", changed("b_enc", lambda s, n: s | {n: s[n][1:]}), "b_enc has shape"),
    "lacking": (
        "saelens/standard",
        changed("b_enc", lambda s, n: {k: x for k, x in s.items() if k != n}),
        "lacks 'b_enc'",
    ),
    "too many": ("saelens/standard", changed("more", lambda s, n: s | {n: s["b_enc"].clone()}), "no place"),
    "whole numbers": ("saelens/standard", changed("b_enc", lambda s, n: s | {n: s[n].long()}), "is of torch.int64"),
    "unknown architecture": ("saelens/standard", configured(architecture="standart"), "did you mean 'standard'"),
    "unknown normalisation": (
        "saelens/standard",
        configured(normalize_activations="covariance_whitening"),
        "covariance",
    ),
    "old scaling": ("saelens/flat", configured(finetuning_scaling_factor=True), "finetuning_scaling_factor"),
    "no site": ("saelens/standard", configured(metadata={"hook_name": "blocks.0.nowhere"}), "names the site"),
    "elsewhere": (
        "circuit_tracer/transcoders",
        text(
            "config.yaml",
            "model_kind: transcoder_set\nfeature_input_hook: "
            "mlp.hook_in\nfeature_output_hook: hook_mlp_out\ntranscoders: [../layer_0.safetensors]",
        ),
        "not inside the folder",
    ),
    "a layer gone": (
        "circuit_tracer/cross-layer",
        lambda f: (f / "W_enc_2.safetensors").unlink(),
        "expected .feature, 2",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(name, tmp_path, capsys):
    case, change, message = HOSTILE[name]
    folder = shutil.copytree(next(SAMPLES.glob(case)), tmp_path / next(SAMPLES.glob(case)).name)
    change(folder)
    with pytest.raises(ModelLoadError, match=message) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""  # nothing was run


def test_arguments_are_checked(tmp_path):
    standard, transcoder = SAMPLES / "saelens" / "standard", SAMPLES / "circuit_tracer" / "transcoders"
    for arguments, options, message in (
        ((tmp_path / "none",), {}, "no folder"),
        ((standard,), {"format": "saelense"}, "did you mean 'saelens'"),
        ((standard,), {"site": "L0.resid_pre"}, "the files say L1.resid_pre, and L0.resid_pre was given"),
        ((standard,), {"site": "L0.nowhere"}, "unknown site kind"),
        ((transcoder,), {"scale": 2.0}, "leave site and scale out"),
    ):
        with pytest.raises(InterpError, match=message):
            load(*arguments, **options)
    folder = shutil.copytree(SAMPLES / "sparsify" / "layers.1", tmp_path / "somewhere")
    assert load(folder).site_in is None
    assert load(folder, site="L0.attn_out").sites_out == (Site("attn_out", 0),)
    assert load(folder / "sae.safetensors", scale=2.0).normalisation.scale == 2.0
