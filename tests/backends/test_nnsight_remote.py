"""A model that runs elsewhere: runs through nnsight's serialised local execution equal runs here.

No server is reached. nnsight's `remote="local"` reads the payload back with this package hidden, but runs the block on
the functions that are here; so one test also hands the payload to a process that cannot import the package.
"""

import subprocess
import sys

import pytest
import torch
from agreement import SITES, capture, on
from nnsight import NNsight, TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from nnsight.tracing.util import push
from tiny_models import CONFIGS, build, ragged

import interp
from interp.edits import Ablate, Add, KnockOut, Noise, Replace, Scale

REFUSED = ("q", "k", "v", "scores", "pattern", "head_out", "token_embed", "pos_embed", "unembed_in", "router_logits")
FAMILIES = (
    "gpt2",
    "gpt_neox",
    "gemma2",
    "gpt_oss",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama", "olmo2")),
)
"""Llama is edited below; that norms stand behind the sublayers, as in OLMo 2, gemma2 has as well."""


@pytest.fixture(scope="module")
def undispatched(tmp_path_factory, tokenizer):
    """Function that saves a tiny model and wraps it without its weights, which nnsight reads only to run a trace."""

    def wrap(name):
        folder = tmp_path_factory.mktemp(name)
        build(name).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TransformersModel(str(folder), task="text-generation", tokenizer=tokenizer)

    return wrap


@pytest.fixture(scope="module")
def remote(undispatched):
    """Function giving the shared remote model of one architecture."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = interp.load(undispatched(name), remote="local")
        return made[name]

    return of


@pytest.mark.parametrize("name", FAMILIES)
def test_sites_of_a_model_without_weights_equal_those_here(name, remote):
    model, here, tokens = remote(name), on("hf", name), ragged(12, "unpadded")
    assert all(p.is_meta for p in model.torch_module.parameters())
    kinds = [s for s in SITES if s.rpartition(".")[2] not in REFUSED]
    exist = [s for s in kinds if not isinstance(capture(here, s, tokens), str)]
    run, want = model.run(tokens, capture=exist), here.run(tokens, capture=exist)
    assert set(run.acts) == set(want.acts)
    for site, x in want.acts.items():
        torch.testing.assert_close(run.acts[site], x, rtol=1e-5, atol=2e-4, msg=lambda m, s=site: f"{s}: {m}")
    torch.testing.assert_close(run.logits, want.logits, rtol=1e-5, atol=2e-4)


EDITS = {
    "zero": [Ablate("L0H1.z"), Ablate("L1.mlp_out")],
    "rows": [Ablate(f"L0H{h}.z", rows=[h]) for h in range(3)],
    "one position": [Replace("L1.resid_pre@-2", torch.ones(64)), Scale("L0.attn_out", 0.5, positions=[1, 3])],
    "between": [Add("L1.resid_mid", torch.full((64,), 0.3)), Noise("L0.resid_post", 0.2, seed=3)],
    "neurons": [Scale("L0.mlp_post", 2.0, rows=[0]), Scale("L1.mlp_in", 0.5)],
    "ends": [Add("embed", torch.full((64,), 0.1), rows=[1]), Scale("logits", 2.0)],
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("side", ["unpadded", "left"])
def test_edits_equal_those_here(edits, side, remote):
    model, here, tokens = remote("llama"), on("hf", "llama"), ragged(12 if side == "unpadded" else 18, side)
    asked = ["L1H2.z@-1", "resid_post", "resid_mid", "L1.mlp_in"]
    run, want = model.run(tokens, capture=asked, edits=edits), here.run(tokens, capture=asked, edits=edits)
    real = tokens.mask
    torch.testing.assert_close(run.logits[real], want.logits[real], rtol=1e-5, atol=2e-4)
    for site, x in want.acts.items():
        got = run.acts[site]
        same = (got, x) if site.position is not None else (got[real], x[real])
        torch.testing.assert_close(*same, rtol=1e-5, atol=2e-4)
    assert not torch.allclose(want.logits, here.run(tokens).logits, atol=1e-2)


def test_start_stop_reducers_and_a_context(remote):
    model, here, tokens = remote("gpt2"), on("hf", "gpt2"), ragged(10, "unpadded")
    stopped = model.run(tokens, capture={"L0.resid_post": lambda x: x.mean(1)}, stop=0)
    want = here.run(tokens, capture=["L0.resid_post"], edits=[Ablate("L1H3.z")])
    assert stopped.logits is None
    torch.testing.assert_close(stopped["L0.resid_post"], want["L0.resid_post"].mean(1), rtol=1e-5, atol=1e-4)
    with interp.model.editing(model, [Ablate("L1H3.z")]):
        started = model.run(tokens, start=(1, want["L0.resid_post"]))
    torch.testing.assert_close(started.logits, want.logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.mean(tokens), here.mean(tokens), rtol=1e-5, atol=1e-4)


def test_a_model_with_weights_may_run_remotely_too(tokenizer):
    model = interp.load(TransformersModel(build("qwen3"), tokenizer=tokenizer), remote="local")
    tokens = ragged(10, "unpadded")
    run, want = model.run(tokens, capture=["z"]), on("hf", "qwen3").run(tokens, capture=["z"])
    torch.testing.assert_close(run.stack("z"), want.stack("z"), rtol=1e-5, atol=1e-4)
    assert "remote='local'" in repr(model)
    assert model.weights() is not None


SERVER = """
import sys
for name in ("interp", "beartype", "jaxtyping"):
    sys.modules[name] = None
import pathlib, torch
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.tracer import inc
model = TransformersModel(sys.argv[1], task="text-generation", dispatch=True)
blob = pathlib.Path(sys.argv[2]).read_bytes()
tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects())
inc()  # as Tracer.__exit__ does before it calls a backend
tracer.execute(tracer.info.code)
torch.save(tracer.info.frame.f_locals["results"], sys.argv[3])
"""


class Elsewhere(Backend):
    """Runs a trace in a process that has the weights and cannot import this package."""

    def __init__(self, weights, folder):
        self.weights, self.folder, self.sent = weights, folder, 0

    def __call__(self, tracer):
        payload, saved = self.folder / "payload", self.folder / "saved"
        payload.write_bytes(RequestModel.serialize(tracer))
        self.sent = payload.stat().st_size
        arguments = [self.weights, str(payload), str(saved)]
        subprocess.run([sys.executable, "-c", SERVER, *arguments], check=True, cwd=self.folder)
        push(tracer.info.frame, {"results": torch.load(saved)})


@pytest.mark.parametrize("stop", [None, 1])
def test_the_payload_runs_where_the_package_is_not_installed(stop, undispatched, tmp_path, monkeypatch):
    wrapped, here, tokens = undispatched("llama"), on("hf", "llama"), ragged(12, "right")
    backend = Elsewhere(wrapped.repo_id, tmp_path)
    model = interp.load(wrapped, remote=True)
    monkeypatch.setattr(TransformersModel, "_remote_backend", lambda *_: backend)  # an instance travels
    edits = [Ablate("L0H1.z", rows=[0]), Add("L1.resid_mid", torch.full((64,), 0.3)), Scale("L0.mlp_out", 0.5)]
    asked = ["L1H2.z", "resid_post", "L1.norm_scale", "L1.mlp_post"]
    run = model.run(tokens, capture=asked, edits=edits, stop=stop)
    want = here.run(tokens, capture=asked, edits=edits)
    for site, x in want.acts.items():
        torch.testing.assert_close(run.acts[site][tokens.mask], x[tokens.mask], rtol=1e-5, atol=2e-4)
    if stop is None:
        torch.testing.assert_close(run.logits[tokens.mask], want.logits[tokens.mask], rtol=1e-5, atol=2e-4)
    assert not wrapped.dispatched
    assert backend.sent < 200_000


def test_what_cannot_be_had_remotely_is_refused(remote):
    model, tokens = remote("llama"), ragged(8, "unpadded")
    for site in ("L0.pattern", "L1.q"):
        with pytest.raises(interp.InterpError, match="runs its own attention function"):
            model.run(tokens, capture=[site])
    with pytest.raises(interp.InterpError, match="runs its own attention function"):
        model.run(tokens, edits=[KnockOut("L1H2.pattern", keys=0)])
    with pytest.raises(interp.InterpError, match="output matrix, which is not here"):
        model.run(tokens, capture=["head_out"])
    with pytest.raises(interp.InterpError, match="autograd graph, which stays where the model is"):
        model.run(tokens, gradients=True)
    with pytest.raises(interp.InterpError, match="runs its own attention function"):
        model.attention(tokens, {})
    with pytest.raises(interp.InterpError, match="hooks on the wrapped module"):
        model.generate(tokens)
    with pytest.raises(interp.InterpError, match="weights are not here"):
        model.weights()
    with pytest.raises(interp.InterpError, match=r"not finite after layer 1 at 3 of 24 tokens"):
        model.run(tokens, edits=[Replace("L1.resid_post@-1", torch.full((64,), float("nan")))])


def test_remote_is_for_nnsight_models():
    with pytest.raises(interp.InterpError, match="not for 'zoo:planted-induction'; pass nnsight.TransformersModel"):
        interp.load("zoo:planted-induction", remote=True)
    with pytest.raises(interp.InterpError, match="plain NNsight wrapper has no name a server could know"):
        interp.load(NNsight(build("gpt2")), remote=True)


def test_layers_unlike_those_of_the_replica_are_refused(undispatched):
    wrapped = undispatched("llama")
    wrapped._module.model.layers[1].mlp.act_fn = torch.nn.ReLU()
    with pytest.raises(interp.InterpError, match=r"layer 1 of a replica .* not made of the same modules.*ReLU"):
        interp.load(wrapped, remote="local")


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_layers_beyond_the_replica_have_its_parts(name, undispatched, monkeypatch):
    config, options = CONFIGS[name]
    monkeypatch.setitem(CONFIGS, name, (config, {**options, "num_hidden_layers": 5}))
    model, here, tokens = interp.load(undispatched(name), remote="local"), interp.load(build(name)), ragged(8, "right")
    assert model.info.n_layers == 5
    asked = ["L3-4.z", "attn_out", "L4.resid_mid", "mlp_post", "L3.norm_scale", "L4.resid_post"]
    edits = [Ablate("L3H2.z"), Add("L4.resid_mid", torch.full((64,), 0.3)), Scale("L2.mlp_out", 0.5)]
    run, want = (m.run(tokens, capture=asked, edits=edits) for m in (model, here))
    for site, x in want.acts.items():
        torch.testing.assert_close(run.acts[site][tokens.mask], x[tokens.mask], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(run.logits[tokens.mask], want.logits[tokens.mask], rtol=1e-4, atol=1e-3)
