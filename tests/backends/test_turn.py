"""One thread at a time on one model, and a model that is as it was whatever ended a run."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import on
from tiny_models import build, ragged

import interp
from interp.attention import Entropy, current_recorder
from interp.backends import turn
from interp.edits import KnockOut, Scale
from interp.errors import BackendError, ModelLoadError
from interp.gradients import gradients

BACKENDS = ("hf", "lens", "nnsight")
IDS = ragged(8, "unpadded", lengths=(8,))
WHERE = (str(Path(interp.__file__).parent), str(Path(torch.nn.modules.module.__file__)), "contextlib.py")
"""Files whose lines are interrupted: ours, where torch keeps its hooks, and what contexts are made of."""


def in_context(model: interp.Model) -> None:
    with model.editing([*interp.ablate_heads(["L0H1"]), KnockOut("L1.pattern", keys=1)]):
        model.run(IDS)


def frozen(model: interp.Model) -> None:
    with model.frozen():
        model.run(IDS, gradients=True)


WORK: dict[str, Callable[[Any], object]] = {
    "run": lambda m: m.run(IDS, capture=["z", "pattern", "head_out"], edits=interp.ablate_heads(["L0H1"])),
    "attention": lambda m: m.attention(IDS, {"entropy": Entropy()}),
    "start": lambda m: m.run(IDS, start=(1, torch.zeros(1, 8, m.info.d_model))),
    "editing": in_context,
    "gradients": lambda m: gradients(m, IDS, lambda logits: logits[:, -1, 3], ["L0.z"]),
    "frozen": frozen,
    "generate": lambda m: m.generate(IDS, edits=interp.ablate_heads(["L0H1"]), max_new_tokens=1),
}


def state(model: Any) -> tuple:
    """All that a run may leave changed."""
    module = model.torch_module
    parts = [*module.modules(), *getattr(model, "bridge", module).modules()]
    return (
        [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training, "forward" in m.__dict__) for m in parts],
        [len(m.__dict__.get("fwd_hooks", ())) for m in parts],
        module.config._attn_implementation,
        [p.requires_grad for p in module.parameters()],
        torch.is_grad_enabled(),
        current_recorder(),
        len(model._standing),
        turn.turn_of(module).owner,
    )


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line that runs in the files of `WHERE`; counts the lines."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: Any, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith("contextlib.py") and not frame.f_code.co_filename.startswith(
            WHERE[:2]
        ):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def over(self, work: Callable[[], object]) -> None:
        """Do the work under this trace."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except (KeyboardInterrupt, RuntimeError):
            pass  # torch's own modes may stumble over it on their way out; what counts is what is left
        finally:
            sys.settrace(before)


def changed_after_interrupts(backend: str, name: str, *, every: int, first: int) -> list[int]:
    """Lines after whose interrupt the model is another one."""
    model = on(backend, "llama")
    work = WORK[name]
    work(model)
    reference, whole = state(model), Interrupt()
    whole.over(lambda: work(model))
    assert whole.lines > 100
    changed = []
    for at in range(first, whole.lines, every):
        Interrupt(at).over(lambda: work(model))
        gc.collect(0)
        if state(model) != reference:
            changed.append(at)
            break
    return changed


@pytest.mark.parametrize("name", WORK)
def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(name):
    assert changed_after_interrupts("hf", name, every=83, first=7) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WORK)
def test_an_interrupt_at_every_line_leaves_the_model_as_it_was(backend, name):
    assert changed_after_interrupts(backend, name, every=23 if backend == "lens" else 5, first=1) == []


@pytest.mark.parametrize("backend", ["hf", "lens"])
def test_threads_take_turns(backend):
    model = on(backend, "llama")
    edits = interp.ablate_heads(["L0H1", "L1H3"])
    plain, edited = model.run(IDS).logits, model.run(IDS, edits=edits).logits
    wrong: list[str] = []

    def work(own: list, expected: torch.Tensor) -> None:
        for _ in range(15):
            with model.editing(own):
                found = model.run(IDS).logits
            if not torch.equal(found, expected):
                wrong.append("run")

    threads = [threading.Thread(target=work, args=case) for case in ((edits, edited), ([], plain))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_another_threads_own_forward_is_refused_meanwhile():
    model = interp.load(build("llama"))
    messages: list[str] = []

    def forward() -> None:
        try:
            model.torch_module(IDS.ids)
        except BackendError as error:
            messages.append(str(error))

    with model.editing(interp.ablate_heads(["L0H1"])):
        thread = threading.Thread(target=forward)
        thread.start()
        thread.join()
        model.torch_module(IDS.ids)  # this thread's own is edited, as it should be
    assert len(messages) == 1
    assert "another thread is running this model" in messages[0]
    model.torch_module(IDS.ids)


def test_a_thread_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(turn, "WAIT", 0.02)
    model = interp.load(build("llama"))
    messages: list[str] = []

    def run() -> None:
        try:
            interp.load(model.torch_module).run(IDS)  # another `Model` of the same module waits as well
        except (BackendError, ModelLoadError) as error:
            messages.append(str(error))

    with model.editing([]):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert "another thread" in messages[0]


@pytest.mark.parametrize("backend", ["hf", "lens"])
def test_contexts_closed_out_of_order_are_an_error_and_all_end(backend):
    model = on(backend, "llama")
    plain, reference = model.run(IDS).logits, state(model)
    outer, inner = (model.editing(interp.ablate_heads([name])) for name in ("L0H1", "L1H2"))
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(BackendError, match="closed in the reverse of the order"):
        outer.__exit__(None, None, None)
    assert torch.equal(model.run(IDS).logits, plain)
    inner.__exit__(None, None, None)
    assert state(model) == reference
    assert torch.equal(model.run(IDS).logits, plain)


def compiled_layer(module: Any) -> Any:
    """A layer that is called past its hooks, as `layer.compile()` makes it."""
    layer = module.model.layers[1]
    layer._compiled_call_impl = layer.forward
    return layer


def test_a_place_that_was_not_passed_is_an_error_that_names_compiling():
    model = interp.load(build("llama"))
    compiled_layer(model.torch_module)
    with pytest.raises(BackendError, match="L1.resid_post: the pass did not come by here: the model is compiled"):
        model.run(IDS, capture=["resid_post"])
    with pytest.raises(BackendError, match="did not come by here"):
        model.run(IDS, edits=[interp.Ablate("L1.resid_post")])
    with pytest.raises(BackendError, match="did not come by here"):
        model.generate(IDS, edits=[interp.Ablate("L1.resid_post")], max_new_tokens=1)
    model.run(IDS, capture=["L0.resid_pre"])


def test_a_compiled_model_is_not_loaded():
    module = build("llama")
    compiled_layer(module)
    with pytest.raises(ModelLoadError, match="LlamaForCausalLM cannot be loaded: the model is compiled"):
        interp.load(module)


@pytest.mark.slow
def test_models_that_torch_compiled():
    with pytest.raises(ModelLoadError, match="compiled"):
        interp.load(torch.compile(build("llama"), backend="eager"))
    module = build("llama")
    for layer in module.model.layers:
        layer.forward = torch.compile(layer.forward, backend="eager")
    with pytest.raises(ModelLoadError, match="compiled"):
        interp.load(module)
    module = build("llama")
    model = interp.load(module)
    for layer in module.model.layers:
        layer.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about its own tensors
        module(IDS.ids)
    expected = interp.load(build("llama")).run(IDS, capture=["z", "mlp_out"])
    try:
        run = model.run(IDS, capture=["z", "mlp_out"])
    except BackendError as error:
        assert "the model is compiled" in str(error)
    else:  # compiled anew, with our hooks in it
        assert set(run.acts) == set(expected.acts)
        for site, value in expected.acts.items():
            torch.testing.assert_close(run[site], value)


READINGS: dict[str, Callable[[Any], torch.Tensor]] = {
    "writes": lambda m: m.writes(0).attn.matrix(m.info.d_model),
    "weights": lambda m: m.weights()[0].w_q,
    "rotations": lambda m: m.weights().rotation(0, 3),
    "mlp": lambda m: m.weights().mlp(1).w_in,
    "embedding": lambda m: m.weights().w_e,
    "unembedding": lambda m: m.weights().unembed(torch.eye(m.info.d_model)[:2]),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_read_when_no_other_thread_runs_the_model(backend):
    """Its hooks would take what is fed to a part for an activation of the run, and change it."""
    model = on(backend, "llama")
    expected = {name: read(on("hf", "llama")) for name, read in READINGS.items()}
    inside, go_on, answers = threading.Event(), threading.Event(), {}

    def wait(x: torch.Tensor) -> torch.Tensor:
        inside.set()
        assert go_on.wait(60)
        return x.mean()

    def reading(name: str) -> None:
        answers[name] = READINGS[name](model)

    edits = [Scale("z", 0.0), Scale("mlp_post", 0.0)]
    runner = threading.Thread(target=lambda: model.run(IDS, capture={"L0.resid_pre": wait}, edits=edits))
    runner.start()
    assert inside.wait(60)
    readers = [threading.Thread(target=reading, args=(name,)) for name in READINGS]
    for thread in readers:
        thread.start()
    threading.Event().wait(0.05)
    assert not answers
    go_on.set()
    for thread in [runner, *readers]:
        thread.join(60)
    for name, value in expected.items():
        torch.testing.assert_close(answers[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_edits_in_force_are_those_of_the_thread_that_asks(backend):
    model = on(backend, "llama")
    with model.editing([Scale("z", 0.5)]), ThreadPoolExecutor(1) as others:
        assert len(model.edits) == 1
        assert others.submit(lambda: model.edits).result() == ()
    assert model.edits == ()
