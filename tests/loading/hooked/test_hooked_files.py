"""HookedTransformer checkpoints as they lie about: folders, files, buffers, and what is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hooked_checkpoints import logits, options_of, random_state, save
from safetensors.torch import save_file
from tolerance import assert_equal_to_rounding

import interp
from interp.errors import ModelLoadError

IDS = torch.arange(9)[None]


def refused(source, message, **options):
    with pytest.raises(ModelLoadError, match=message) as caught:
        interp.load(source, **options)
    assert len(str(caught.value).splitlines()) == 1


def expected(options, state):
    return logits(options, state, IDS).float()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_file_with_its_config_beside_it(checkpoint, tmp_path, suffix):
    folder, options, state = checkpoint("RMS")
    (folder / "model.safetensors").unlink()
    file = folder / f"final{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    for source in (file, folder):
        model = interp.load(source)
        assert_equal_to_rounding(model.run(IDS).logits, expected(options, state), depth=64)
        assert len(model.info.weights_sha256) == 64
    (folder / "config.json").rename(folder / "final.json")
    assert interp.load(file).info.n_layers == 2


@pytest.mark.parametrize(("config", "weights"), [("config", "state_dict"), ("cfg", "model")])
def test_a_file_that_holds_config_and_state(tmp_path, config, weights):
    options = options_of("LN")
    state = random_state(options)
    file = tmp_path / "run.pth"
    torch.save({config: options | {"dtype": torch.float32}, weights: state, "step": 3}, file)
    assert_equal_to_rounding(interp.load(file).run(IDS).logits, expected(options, state), depth=64)
    assert interp.load(tmp_path).info.n_heads == 4


def test_buffers_that_agree_are_passed_over(checkpoint):
    folder, options, state = checkpoint("rotary")
    angles = torch.arange(12)[:, None] / 100 ** (torch.arange(2) / 2).repeat(2)
    buffers = {}
    for at in ("blocks.0.attn.", "blocks.1.attn."):
        buffers |= {f"{at}mask": torch.ones(12, 12, dtype=torch.bool).tril(), f"{at}IGNORE": torch.tensor(-1e5)}
        buffers |= {f"{at}rotary_sin": angles.sin(), f"{at}rotary_cos": angles.cos()}
    save(folder, options, state | buffers)
    assert_equal_to_rounding(interp.load(folder).run(IDS).logits, expected(options, state), depth=64)
    save(folder, options, state | buffers | {"blocks.1.attn.mask": torch.ones(12, 12, dtype=torch.bool)})
    refused(folder, "blocks.1.attn.mask.* lets other keys be seen")
    save(folder, options, state | buffers | {"blocks.0.attn.rotary_sin": (angles / 4).sin()})
    refused(folder, "blocks.0.attn.rotary_sin.* holds other angles")


def test_what_is_saved_again_by_transformers_comes_in_again(checkpoint, tmp_path):
    folder, options, state = checkpoint("LNPre")
    interp.load(folder).torch_module.save_pretrained(tmp_path / "again")
    again = interp.load(tmp_path / "again")
    assert again.info.family == "HookedDecoder"
    assert_equal_to_rounding(again.run(IDS).logits, expected(options, state), depth=64)


def test_dtype_and_tokenizer(checkpoint):
    folder, _, _ = checkpoint("LN")
    model = interp.load(folder, dtype="float64")
    assert model.run(IDS).logits.dtype == torch.float64
    assert model.tokenizer is None
    assert model.bos_id is None


def test_old_names_of_options(checkpoint):
    folder, options, state = checkpoint("shortformer")
    del options["positional_embedding_type"]
    options["normalization"] = options.pop("normalization_type")
    options |= {"shortformer_pos": True, "tokenizer_name": "gpt2", "seed": 3, "attn_scale": "sqrt(d_head) = 2.449"}
    save(folder, options, state)
    want = expected({**options_of("shortformer")}, state)
    assert_equal_to_rounding(interp.load(folder).run(IDS).logits, want, depth=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization_type": "Batch"}, "option 'normalization_type' = 'Batch'"),
        ({"act_fn": "swoosh"}, "option 'act_fn' = 'swoosh'.*solu_ln"),
        ({"positional_embedding_type": "alibi"}, "option 'positional_embedding_type' = 'alibi'"),
        ({"attention_dir": "sideways"}, "option 'attention_dir' = 'sideways'.*bidirectional"),
        ({"num_experts": 4}, "option 'num_experts' = 4 .* cannot be carried out"),
        ({"use_qk_norm": True}, "option 'use_qk_norm' = True .* cannot be carried out"),
        ({"window_siz": 4}, "unknown option 'window_siz' = 4.*did you mean 'window_size'"),
        ({"attn_scale": "root"}, "option 'attn_scale' = 'root'"),
        ({"n_ctx": 0}, "option 'n_ctx' = 0"),
        ({"d_vocab": None}, "option 'd_vocab' = None"),
        ({"attn_only": "no"}, "option 'attn_only' = 'no'.*true or false"),
        ({"n_key_value_heads": 3}, "n_heads 4 is no multiple of n_key_value_heads 3"),
        ({"use_local_attn": True, "window_size": 3, "attn_types": ["global"]}, "option 'attn_types'"),
        ({"use_local_attn": True, "attn_types": ["global", "local"]}, "option 'window_size' = None"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 5}, "option 'rotary_dim' = 5"),
        (
            {"use_local_attn": True, "window_size": 3, "attn_types": ["local"] * 2, "attention_dir": "bidirectional"},
            "together cannot be carried out",
        ),
    ],
)
def test_options_that_cannot_be_carried_out_are_named(checkpoint, changes, message):
    folder, options, state = checkpoint("LN")
    save(folder, {**options, **changes}, state)
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.W_Q"), "1 tensor of the layout missing: blocks.1.attn.W_Q"),
        (lambda s: s.update({"blocks.2.attn.W_Q": torch.zeros(4, 16, 6)}), "without a place.*blocks.2.attn.W_Q"),
        (lambda s: s.update({"embed.W_E": torch.zeros(18, 16)}), r"'embed.W_E' has shape \[18, 16\].*\[19, 16\]"),
        (lambda s: s.update({"embed.W_E": torch.zeros(19, 16, dtype=torch.int8)}), "'embed.W_E' is of torch.int8"),
        (lambda s: [s.pop(n) for n in list(s) if ".ln" in f".{n}"], "missing: ln_final.w.*normalization_type null"),
        (lambda s: [s.pop(n) for n in list(s) if ".mlp." in n], "missing: blocks.0.mlp.W_in.*attn_only true"),
    ],
)
def test_tensors_that_do_not_fit_are_named(checkpoint, change, message):
    folder, options, state = checkpoint("LN")
    change(state)
    save(folder, options, state)
    refused(folder, message)


class Payload:
    """Something that a pickle would build by running code."""

    def __reduce__(self):
        return (print, ("opened",))


def test_files_that_cannot_be_read(checkpoint, tmp_path, capsys):
    folder, options, state = checkpoint("LN")
    bad = tmp_path / "bad"
    bad.mkdir()
    torch.save({"state_dict": state, "model": Payload()}, bad / "run.pt")
    refused(bad / "run.pt", "holds Python objects, which can run code")
    assert "opened" not in capsys.readouterr().out
    torch.save([1, 2], bad / "run.pt")
    refused(bad / "run.pt", "holds no state dict")
    torch.save(state, bad / "run.pt")
    refused(bad / "run.pt", "has no config: put config.json")
    (bad / "run.pt").write_bytes(b"nothing")
    refused(bad / "run.pt", "holds Python objects|corrupt weights")
    (bad / "config.json").write_text(json.dumps(options))
    (bad / "run.pt").unlink()
    refused(bad, "has no weights")
    for name in ("a.pth", "b.pth"):
        torch.save(state, bad / name)
    refused(bad, "2 files of weights; give one")
    assert interp.load(bad / "b.pth").info.n_layers == 2
    shutil.copy(folder / "model.safetensors", bad / "one.safetensors")
    shutil.copy(folder / "model.safetensors", bad / "two.safetensors")
    refused(bad, "several sets of weights")
    (bad / "one.safetensors").write_bytes(b"nothing")
    refused(bad, "corrupt weights")
    refused(folder, "stay on one device", device_map="auto")
