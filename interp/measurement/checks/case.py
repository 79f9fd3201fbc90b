"""The models that an analysis is held to its promises on, and its runs there, each made once."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from interp.loading.load import load
from interp.measurement.declaration import Analysis
from interp.measurement.planted import cheap, mechanisms, questions
from interp.measurement.registry import analyze
from interp.model import Model
from interp.parallel import cached_property
from interp.results.results import Result
from interp.tasks import Conflict, PromptTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interp.zoo.planted.factory import Planted

ARCHITECTURE = "llama"
DEFAULT = "zoo:default"
"""Where an analysis of text is run that planted models cannot judge."""
MANY = 16
"""Prompts of which a half is enough to be asked for again; several analyses refuse fewer than eight."""
TINY = 8  # tokens of context and words of a model that hardly anything can be asked


@cache
def planted_model(names: tuple[str, ...], n_words: int | None = None) -> Planted:
    """The model of these mechanisms and no others; shared by all checks, which leave it as it is."""
    from interp.zoo.planted.factory import ALL, plant

    return plant([m for m in ALL if m.name in names], architecture=ARCHITECTURE, seed=0, n_words=n_words)


@cache
def default_model() -> Model:
    """The shipped trained model."""
    return load(DEFAULT)


@cache
def declared_model(name: str) -> Model:
    """A model that a declaration names, shared by all checks, which leave it as it is."""
    return load(name)


@cache
def tiny_model() -> Model:
    """A random model with a context and a vocabulary of eight tokens and no tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TINY,
        max_position_embeddings=TINY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return load(LlamaForCausalLM(config).eval())


@dataclass(eq=False)
class Case:
    """An analysis on the model that judges it. Runs are of the same seed unless they say otherwise, and kept.

    Attributes:
        spec: the analysis.
        options: further options for every run: what makes it cheap.
    """

    spec: Analysis
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def planted(self) -> Planted | None:
        """The model with what it should recover, where planted models can judge it."""
        return None if self.spec.planted is None else planted_model(tuple(m.name for m in mechanisms(self.spec)))

    @cached_property
    def model(self) -> Model:
        """That model, loaded; else the declared one, the shipped one where text is needed, a planted one where not."""
        if self.planted is None and self.spec.subject is not None:
            return declared_model(self.spec.subject)
        if self.planted is None and self.spec.needs == "text":
            return default_model()
        planted = self.planted or planted_model(_usual())
        return load(planted.model, tokenizer=planted.tokenizer)

    def run_options(self, planted: Planted | None, *, seed: int = 0) -> dict[str, Any]:
        """Options of a run: the cheap ones, what the declaration asks of this model, and those of the caller."""
        own = {} if planted is None else questions(self.spec, planted, seed=seed)
        return cheap(self.spec) | dict(self.spec.quick) | own | dict(self.options) | {"seed": seed}

    def run(self, *, seed: int = 0, **options: Any) -> Result:
        """One more run on the model."""
        return analyze(self.model, self.spec.name, **self.run_options(self.planted, seed=seed) | options)

    @cached_property
    def result(self) -> Result:
        """The run with seed 0."""
        return self.run()

    @cached_property
    def n_prompts(self) -> int | None:
        """How many prompts it is asked for; None where it is asked for no number of them, or given the prompts."""
        options = self.run_options(self.planted)
        given = any(isinstance(value, PromptTask | Conflict) for value in options.values())
        taken = inspect.signature(self.spec.run).parameters
        return options["n_prompts"] if "n_prompts" in taken and not given else None

    @property
    def fewer(self) -> dict[str, int]:
        """Options of a run on half as many prompts; none where they are few, or it is asked for no number of them."""
        return {} if self.n_prompts is None or self.n_prompts < MANY else {"n_prompts": self.n_prompts // 2}

    @cached_property
    def shorter(self) -> Result:
        """The run with seed 0 on half as many prompts, or the whole one where they are few."""
        return self.run(**self.fewer) if self.fewer else self.result

    @cached_property
    def inert(self) -> Result:
        """The same asked of a model in the same words of which nothing is planted."""
        assert self.planted is not None
        model = planted_model((), self.planted.vocab.n_words)
        return analyze(load(model.model, tokenizer=model.tokenizer), self.spec.name, **self.run_options(model))


def _usual() -> tuple[str, ...]:
    """Mechanisms that most questions about random tokens find something of."""
    from interp.zoo.planted.mechanisms import Induction, Retrieval

    return Induction().name, Retrieval().name


def state(model: Model) -> str:
    """Hash of everything a run could leave changed: parameters, buffers, modes, gradients wanted, hooks."""
    module: Any = getattr(model, "torch_module", None)
    if module is None:
        return ""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().float().numpy().tobytes())
    for name, part in module.named_modules():
        digest.update(f"{name} {part.training} {len(part._forward_hooks)} {len(part._forward_pre_hooks)}".encode())
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {parameter.requires_grad} {parameter.grad is None}".encode())
    return digest.hexdigest()


@contextmanager
def unshown() -> Iterator[None]:
    """Warnings are errors in here, and so is a figure that shows itself."""
    import plotly.basedatatypes as figures

    def show(*_: object, **__: object) -> None:
        raise RuntimeError("the figure shows itself; return it")

    original = figures.BaseFigure.show
    figures.BaseFigure.show = show
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        figures.BaseFigure.show = original
