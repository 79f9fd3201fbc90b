"""`check_backend`: a way to run models, held against every law of `interp.model.Model`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig, PreTrainedModel

from interp.batch import Batch
from interp.errors import InterpError
from interp.measurement.checks.laws import attending, places, reading, running
from interp.measurement.checks.laws.subject import Subject, require
from interp.model import Model, ModelInfo

Law = Callable[[Subject], None]
Factory = Callable[[PreTrainedModel], Model]

VOCABULARY, LENGTHS = 61, (9, 9, 6)
_SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_NONE: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
CONFIGS: Mapping[str, PretrainedConfig] = {
    "learned positions": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=7, eos_token_id=8
    ),
    "rotary, grouped queries": LlamaConfig(
        **_SIZES, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=64, **_NONE
    ),
    "parallel residual": GPTNeoXConfig(**_SIZES, intermediate_size=48, max_position_embeddings=64, **_NONE),
}


def check_backend(
    factory: Factory, *, modules: Mapping[str, Callable[[], PreTrainedModel]] | None = None
) -> dict[str, str]:
    """Hold a backend against the laws of `Model`; what it refuses, with a reason, counts as fulfilled.

    Laws: the members of the protocol are there; logits are the module's own; captured sites have their declared shapes,
    and the residual stream is the sum of what is added to it; padding, batching and `rows=` change nothing; clean
    patched into clean changes nothing, an edit changes what it says, and nothing is left behind, after an exception
    either; `start` and `stop` give the full run's numbers; contexts of edits nest, and reach `generate`; attention
    statistics are those of captured patterns; weights, reads and writes reproduce a run; gradients are slopes; the
    fingerprint notices a changed parameter, and `frozen` restores.

    Args:
        factory: called with a causal decoder of transformers that nobody else holds (2 layers, in eval mode, float32,
            on the CPU, without a tokenizer); returns a `Model` of it. It may change or copy the module, its parameters
            must keep their values: `lambda module: interp.load(module, backend="toy")`.
        modules: what to make instead of the three tiny decoders, by name: functions that give the same module, with
            the same values, each time they are called.

    Returns:
        Why a law was not asked, by "module: law": what the backend refuses. Look at it: a backend that refuses
        everything but a run obeys every law.

    Raises:
        AssertionError: the first law that is broken, on which module, and by how much.

    >>> import interp
    >>> from interp.measurement.checks import check_backend
    >>> refused = check_backend(lambda module: interp.load(module, backend="hf"))
    >>> list(refused)
    []
    """
    refusals: dict[str, str] = {}
    for name, make in (modules or {n: _maker(c) for n, c in CONFIGS.items()}).items():
        module = make()
        model = factory(module)
        ids = torch.randint(
            3, model.info.d_vocab, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0)
        )
        whole = Subject(model, make(), Batch.of(ids))
        padded = replace(
            whole, batch=Batch.of([r[:n].tolist() for r, n in zip(ids, LENGTHS, strict=True)], side="left")
        )
        trace = _trace(module)
        for law, subject in (*((law, whole) for law in LAWS), *((law, padded) for law in PADDED)):
            try:
                law(subject)
            except InterpError as refusal:
                refusals[f"{name}: {_title(law)}"] = _reason(law, refusal, name)
            except AssertionError as broken:
                raise AssertionError(f"{model.backend}, {name}: {_title(law)}: {broken}") from broken
        require(_trace(module) == trace, f"{model.backend}, {name}: hooks, modes or gradients are left on the module")
    return refusals


def _title(law: Law) -> str:
    return law.__name__.replace("_", " ")


def _reason(law: Law, refusal: InterpError, name: str) -> str:
    """Why a law is not asked; a run itself cannot be refused, nor anything without a reason."""
    reason = str(refusal).strip()
    require(law not in REQUIRED, f"{name}: {_title(law)} cannot be refused: {reason}")
    require(bool(reason), f"{name}: {_title(law)} is refused without a reason")
    return reason


def _maker(config: PretrainedConfig) -> Callable[[], PreTrainedModel]:
    return lambda: random_module(config)


def random_module(config: PretrainedConfig, *, seed: int = 0, scale: float = 6.0) -> PreTrainedModel:
    """A decoder (or encoder-decoder) with random weights, eager attention, in eval mode.

    Matrices are scaled up, gains, biases and sink logits are away from one and zero: patterns are far from uniform, and
    no parameter is at a value that would hide what it does.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    both = config.is_encoder_decoder and not getattr(config, "is_decoder", False)
    kind = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = kind.from_config(config, attn_implementation="eager").eval()
        for path, parameter in module.named_parameters():
            if path.endswith("sinks"):
                parameter.copy_(torch.linspace(-1, 3, parameter.numel()))
            elif parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(scale)
    return module


def _trace(module: nn.Module) -> list[tuple[Any, ...]]:
    """What a run could leave on a module: hooks, a forward of its own, another mode, gradients."""
    return [
        (
            path,
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
            "forward" in part.__dict__,
            part.training,
            *(p.requires_grad for p in part.parameters(recurse=False)),
            *(p.grad is None for p in part.parameters(recurse=False)),
        )
        for path, part in module.named_modules()
    ]


def members_are_those_of_the_protocol(subject: Subject) -> None:
    """Everything that `Model` declares is there, of its declared type; sizes are those of the module."""
    model, config = subject.model, subject.module.config
    require(isinstance(model, Model), f"lacks {', '.join(n for n in _member_names() if not hasattr(model, n))}")
    types: dict[str, Any] = {
        "info": ModelInfo, "backend": str, "device": torch.device, "bos_id": int | None, "special_ids": tuple,
        "rank": int, "edits": tuple,
    }  # fmt: skip
    for name, kind in types.items():
        require(isinstance(getattr(model, name), kind), f"{name} is {getattr(model, name)!r}, no {kind}")
    require(isinstance(model.fingerprint(), Hashable), "the fingerprint cannot be hashed")
    contexts = {"frozen()": model.frozen(), "editing([])": model.editing([]), "resting()": model.resting()}
    for name, context in contexts.items():
        require(isinstance(context, AbstractContextManager), f"{name} is no context manager")
    model.agree((1,), "numbers of one process")
    text = config.get_text_config()
    sizes = {"d_vocab": text.vocab_size, "d_model": text.hidden_size, "n_heads": text.num_attention_heads}
    sizes["n_layers"] = text.num_hidden_layers
    for name, size in sizes.items():
        require(getattr(model.info, name) == size, f"info.{name} is {getattr(model.info, name)}, not {size}")
    bos = config.bos_token_id
    require(model.bos_id == bos and (bos is None or bos in model.special_ids), f"bos_id is {model.bos_id}, not {bos}")
    batch = model.batch(subject.batch.ids.tolist())
    require(batch.ids.device == model.device and torch.equal(batch.ids.cpu(), subject.batch.ids), "batch() changes ids")


def _member_names() -> list[str]:
    return sorted(n for n in (*vars(Model), *Model.__annotations__) if not n.startswith("_"))


REQUIRED = (
    members_are_those_of_the_protocol,
    running.logits_are_the_modules_own,
    running.what_is_not_there_is_refused,
    places.captures_have_the_declared_shapes,
)
LAWS: tuple[Law, ...] = (
    members_are_those_of_the_protocol,
    *running.LAWS[:1],
    *places.LAWS,
    *running.LAWS[1:],
    *attending.LAWS,
    *reading.LAWS,
)
PADDED: tuple[Law, ...] = (
    running.logits_are_the_modules_own,
    places.the_residual_is_the_sum_of_what_is_added,
    places.heads_and_positions_are_narrowed,
    running.what_is_replaced_by_itself_changes_nothing,
    running.a_run_from_a_layer_on_is_the_whole_run,
)
"""Laws that are asked of prompts with padding on the left as well."""
