"""`check_backend` passes the backends there are, and refuses broken ones by the law that they break."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from tiny_models import build, ragged, tiny

import interp
from interp.backends import Checkpoint
from interp.backends.hf.model import HFModel
from interp.edits import Add, Replace
from interp.errors import BackendError, SiteError
from interp.measurement.checks import check_backend
from interp.measurement.checks.backend import LAWS, PADDED, members_are_those_of_the_protocol
from interp.measurement.checks.laws import attending, places, reading, running
from interp.measurement.checks.laws.subject import Subject, apart, close
from interp.run import AttentionRun, Run
from interp.sites import Site


@pytest.mark.parametrize("backend", ["hf", "lens", "nnsight"])
def test_the_backends_obey_every_law(backend):
    assert check_backend(lambda module: interp.load(module, backend=backend)) == {}


def test_what_cannot_be_had_of_a_model_elsewhere_is_refused_with_the_reason():
    from nnsight import TransformersModel
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_words())
    refused = check_backend(
        lambda module: interp.load(TransformersModel(module, tokenizer=tokenizer), remote="local"),
        modules={"llama": lambda: build("llama")},
    )
    laws = {law.partition(": ")[2]: why for law, why in refused.items()}
    assert set(laws) == {
        "heads and a bias are attention",
        "generation is greedy decoding",
        "a pattern mixes values into z",
        "a key that is knocked out gets nothing",
        "statistics are those of the pattern",
        "weights reproduce a run",
        "writes reproduce a run",
        "a gradient is the slope of edits",
        "frozen parameters take no gradient",
    }
    assert "autograd graph, which stays where the model is" in laws["a gradient is the slope of edits"]


def _words():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))


class Changed(HFModel):
    """An `HFModel` one of whose answers a test spoils."""

    backend = "broken"

    def run(self, tokens, **options):
        return self.after(super().run(tokens, **self.before(dict(options))), options)

    def before(self, options):
        return options

    def after(self, run, options):
        return run


def acts_changed(change):
    """A model whose captures a function (site, activation) changes."""

    class Acts(Changed):
        def after(self, run, options):
            return Run(run.logits, {site: change(site, x) for site, x in run.acts.items()})

    return Acts


def edits_changed(change):
    """A model whose edits a function changes."""

    class Edits(Changed):
        def before(self, options):
            return {**options, "edits": [e for edit in options.get("edits", ()) if (e := change(edit)) is not None]}

    return Edits


class WithoutRank(Changed):
    rank = "first"


class Shifted(Changed):
    def after(self, run, options):
        return run if run.logits is None else Run(run.logits.roll(1, -1), run.acts)


class BlindToPadding(Changed):
    def batch(self, tokens):
        batch = super().batch(tokens)
        return replace(batch, mask=torch.ones_like(batch.mask))


class OwnStart(Changed):
    def before(self, options):
        return {**options, "start": None}


class NoStop(Changed):
    def before(self, options):
        return {**options, "stop": None}


class EditsStay(Changed):
    left = ()

    def run(self, tokens, **options):
        edits = options.pop("edits", ())
        try:
            run = super().run(tokens, edits=[*self.left, *edits], **options)
        except Exception:
            self.left = edits
            raise
        return run


class HooksStay(Changed):
    def after(self, run, options):
        self.torch_module.register_forward_hook(lambda *_: None)
        return run


class InnerContextAlone(Changed):
    inside = ()

    @contextlib.contextmanager
    def editing(self, edits):
        before, self.inside = self.inside, edits
        try:
            yield
        finally:
            self.inside = before

    def before(self, options):
        return {**options, "edits": [*self.inside, *options.get("edits", ())]}


class CountsColumns(Changed):
    """Positions of an edit are taken for columns of the padded batch."""

    def run(self, tokens, *, edits=(), **options):
        mask = torch.zeros_like(self.batch(tokens).mask)
        return super().run(tokens, edits=[self._columns(edit, mask.clone()) for edit in edits], **options)

    def _columns(self, edit, mask):
        if edit.positions is None:
            return edit
        mask[:, edit.positions] = True
        return replace(edit, positions=mask)


class GeneratesWithoutEdits(Changed):
    def generate(self, prompts, *, edits=(), **options):
        return super().generate(prompts, **options)


class TakesAnything(Changed):
    def run(self, tokens, **options):
        try:
            return super().run(tokens, **options)
        except SiteError:
            return super().run(tokens)


class OtherOffset(Changed):
    def attention(self, tokens, statistics, **options):
        found = super().attention(tokens, statistics, **options)
        return AttentionRun(found.layers, {k: x.roll(1, 2) if k == "offset" else x for k, x in found.values.items()})


class OtherWeights(Changed):
    def weights(self):
        weights = super().weights()
        weights._layer_cache[0] = replace(weights[0], w_k=weights[0].w_k.flip(0))
        return weights


class DoubledWrites(Changed):
    def writes(self, layer):
        writes = super().writes(layer)
        return replace(writes, attn=replace(writes.attn, scale=2.0))


class ParallelReads(Changed):
    def reads(self, layer):
        return replace(super().reads(layer), parallel=True)


class HalfGradients(Changed):
    def after(self, run, options):
        if not options.get("gradients"):
            return run
        return Run(run.logits.detach() / 2 + run.logits / 2, run.acts)


class SameFingerprint(Changed):
    def fingerprint(self):
        return 0


class NotFrozen(Changed):
    @contextlib.contextmanager
    def frozen(self):
        yield


class StaysFrozen(Changed):
    @contextlib.contextmanager
    def frozen(self):
        self.torch_module.requires_grad_(False)
        yield


def _late(edit):
    """A residual replaced at the second half of the tokens alone."""
    if not isinstance(edit, Replace) or edit.site.kind != "resid_post":
        return edit
    return replace(edit, positions=torch.arange(9)[None] >= 5)


BROKEN = {
    "a member of another type": (WithoutRank, members_are_those_of_the_protocol, "rank is 'first'"),
    "shifted logits": (Shifted, running.logits_are_the_modules_own, "logits, against the module's own"),
    "heads in one axis": (
        acts_changed(lambda site, x: x.flatten(2) if site.kind == "z" else x),
        places.captures_have_the_declared_shapes,
        r"L0.z: shape \(3, 9, 64\)",
    ),
    "half of what attention adds": (
        acts_changed(lambda site, x: x / 2 if site.kind == "attn_out" else x),
        places.the_residual_is_the_sum_of_what_is_added,
        r"L0.resid_post, against resid_pre \+ attn_out",
    ),
    "layers off by one": (
        acts_changed(lambda site, x: x + 1e-3 if site == Site("resid_pre", 1) else x),
        places.the_residual_is_the_sum_of_what_is_added,
        "apart",
    ),
    "a head left out": (
        acts_changed(lambda site, x: x[:, :, :-1] if site.kind == "head_out" else x),
        places.heads_and_a_bias_are_attention,
        "L0.attn_out less its heads",
    ),
    "the next head": (
        acts_changed(lambda site, x: x.roll(1, -1) if site.head is not None and site.position is None else x),
        places.heads_and_positions_are_narrowed,
        "one head of z",
    ),
    "blind to padding": (BlindToPadding, running.padding_and_batching_change_nothing, "padded on the left"),
    "a factor on what is replaced": (
        edits_changed(lambda e: replace(e, value=2 * e.value) if isinstance(e, Replace) else e),
        running.what_is_replaced_by_itself_changes_nothing,
        "replaced by itself",
    ),
    "sums ignored": (
        edits_changed(lambda e: None if isinstance(e, Add) else e),
        running.an_edit_is_seen_and_moves_the_logits,
        "nothing has changed",
    ),
    "half the stream": (edits_changed(_late), running.the_stream_of_another_prompt_is_that_prompt, "of another prompt"),
    "start ignored": (OwnStart, running.a_run_from_a_layer_on_is_the_whole_run, "starts at layer 0"),
    "stop ignored": (NoStop, running.a_run_from_a_layer_on_is_the_whole_run, "stops at layer 0 gives logits"),
    "rows ignored": (
        edits_changed(lambda e: replace(e, rows=None)),
        running.edits_of_rows_are_runs_of_their_own,
        "in row 0 of a batch",
    ),
    "positions as columns": (CountsColumns, running.positions_count_the_real_tokens, "positions=1"),
    "edits stay": (EditsStay, running.nothing_is_left_behind, "after runs that were interrupted"),
    "the inner context alone": (InnerContextAlone, running.contexts_of_edits_nest, "within another"),
    "generation without edits": (GeneratesWithoutEdits, running.generation_is_greedy_decoding, "generated"),
    "anything taken": (TakesAnything, running.what_is_not_there_is_refused, "is taken; expected SiteError"),
    "half a pattern": (
        acts_changed(lambda site, x: x / 2 if site.kind == "pattern" else x),
        attending.a_pattern_mixes_values_into_z,
        "L0: pattern v",
    ),
    "mass lost": (
        edits_changed(lambda e: replace(e, renormalise=False)),
        attending.a_key_that_is_knocked_out_gets_nothing,
        "of the other keys",
    ),
    "another offset": (OtherOffset, attending.statistics_are_those_of_the_pattern, "statistic offset"),
    "other weights": (OtherWeights, reading.weights_reproduce_a_run, "L0.k by the weights"),
    "doubled writes": (DoubledWrites, reading.writes_reproduce_a_run, r"L0.attn_out by writes\(0\)"),
    "parallel reads": (ParallelReads, reading.reads_reproduce_a_run, r"L0.mlp_in by reads\(0\)"),
    "half gradients": (HalfGradients, reading.a_gradient_is_the_slope_of_edits, "slope at L0.resid_pre"),
    "the same fingerprint": (
        SameFingerprint,
        reading.a_changed_parameter_changes_the_fingerprint,
        "the same after a parameter was changed",
    ),
    "not frozen": (NotFrozen, reading.frozen_parameters_take_no_gradient, "inside frozen"),
    "frozen for good": (StaysFrozen, reading.frozen_parameters_take_no_gradient, "leaves a parameter with"),
}


def broken(kind, module):
    return kind(Checkpoint("broken", module, None))


@pytest.mark.parametrize(("kind", "law", "message"), BROKEN.values(), ids=BROKEN)
def test_a_law_finds_who_breaks_it(kind, law, message):
    batch = ragged(9, "unpadded", lengths=(9, 9, 9))
    with pytest.raises(AssertionError, match=message):
        law(Subject(broken(kind, build("llama")), tiny("llama").torch_module, batch))


def test_every_law_is_asked_and_has_a_backend_that_breaks_it():
    assert {law for _, law, _ in BROKEN.values()} == set(LAWS)
    assert set(PADDED) < set(LAWS)
    for module in (places, running, attending, reading):
        own = {f for n, f in vars(module).items() if getattr(f, "__annotations__", {}).get("subject") == "Subject"}
        assert {law for law in own if law.__annotations__["return"] == "None"} == set(module.LAWS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (BROKEN["shifted logits"][0], "broken, llama: logits are the modules own: logits, against the module's own"),
        (BROKEN["rows ignored"][0], "broken, llama: edits of rows are runs of their own: logits under Ablate"),
        (HooksStay, "broken, llama: hooks, modes or gradients are left on the module"),
        (BlindToPadding, "broken, llama: padding and batching change nothing"),
    ],
)
def test_a_broken_backend_is_refused(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_backend(lambda module: broken(kind, module), modules={"llama": lambda: build("llama")})


class Refusing(Changed):
    what, why = "run", ""

    def run(self, tokens, **options):
        if self.what == "run":
            raise BackendError("not today")
        return super().run(tokens, **options)

    def attention(self, tokens, statistics, **options):
        raise BackendError(self.why)


def test_a_refusal_needs_a_reason_and_a_run_cannot_be_refused():
    modules = {"llama": lambda: build("llama")}
    with pytest.raises(AssertionError, match="logits are the modules own cannot be refused: not today"):
        check_backend(lambda module: broken(Refusing, module), modules=modules)
    silent = type("Silent", (Refusing,), {"what": "attention"})
    with pytest.raises(AssertionError, match="statistics are those of the pattern is refused without a reason"):
        check_backend(lambda module: broken(silent, module), modules=modules)
    frank = type("Frank", (silent,), {"why": "no attention function of ours"})
    refused = check_backend(lambda module: broken(frank, module), modules=modules)
    assert refused == {"llama: statistics are those of the pattern": "no attention function of ours"}


def test_what_counts_as_the_same():
    x = torch.linspace(-1, 1, 9)
    close(x * (1 + 1e-6), x, "x")
    apart(x + 1e-2, x, "x")
    with pytest.raises(AssertionError, match="x: 0.0001 apart, where 1e-05 would be rounding"):
        close(x + 1e-4, x, "x")
    with pytest.raises(AssertionError, match=r"x: shape \(1, 9\), not \(9,\)"):
        close(x[None], x, "x")
    with pytest.raises(AssertionError, match="x: nan apart"):
        close(x * torch.nan, x, "x")
    with pytest.raises(AssertionError, match="x: nothing has changed"):
        apart(x * (1 + 1e-6), x, "x")
