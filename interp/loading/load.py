"""`load`: a `Model` from a hub id, folder, zoo name or model in memory."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from interp.batch import Prompts
from interp.errors import BackendError, ModelLoadError, PromptWarning
from interp.loading.choose import backend_for, other_backends
from interp.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp.backends.backend import Adopt


def load(
    source: Any,
    *,
    backend: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    tensor_parallel: bool = False,
    remote: bool | str = False,
    strip_prefix: str | None = None,
    stack: str | None = None,
    source_text: Prompts = None,
) -> Model:
    """Model from a hub id, a folder, `zoo:NAME`, a transformers model, a TransformerLens bridge or an nnsight model.

    A folder may hold an adapter (`adapter_config.json`, read with peft), and a model in memory may have adapters:
    edits, weights and sites are of the model with them. A compiled model is refused: load it before `torch.compile`.
    A folder or file in TransformerLens's HookedTransformer layout (a config, `blocks.0.attn.W_Q`), or of a program that
    Tracr compiled, comes in too, and so does `TransformerBridge.boot_native`: both are run by "hf".

    `backend`: "hf" (the default), "lens" (dense attention, for architectures outside transformers' attention
    interface), "nnsight", or one of another package; a bridge or an nnsight model is run by its own.

    A checkpoint too large for one device: `device_map` ("auto", or layers to devices, CPU and disk among them) places
    layers, as accelerate does; `tensor_parallel`, under torchrun, splits every layer over the processes, for families
    that transformers has a plan for. Sites, edits and statistics are the same: all heads, in every process.

    `remote`, for an nnsight `TransformersModel` (weights here or not): True runs it on nnsight's server, an address on
    that one, "local" serialises each run as for a server and carries it out here.

    `dtype`: float32 unless given, "auto" for that of the file. `strip_prefix`: what stands in front of every key of the
    weights and is to be left out (`module.` of DataParallel, `_orig_mod.` of torch.compile, `base_model.model.` of
    peft).

    `stack`, of an encoder-decoder (T5, BART, Marian): "encoder" (taken, with a warning, where nothing is said),
    "decoder" or "cross", the decoder seen through its attention to the source. A decoder reads `source_text`, one text
    or its ids; `model.with_source(text)` is the same decoder on another one. Run by "hf" alone.

    Offline rules and cache are Hugging Face's own (HF_HOME, HF_HUB_OFFLINE). Weights are read from safetensors only
    and no code from a repository is run. An in-memory model keeps its dtype and device.

    Raises:
        ModelLoadError: nothing there, unreadable files, or no layers that can be run; says what was looked for.
        TaskError: a source text that cannot be run.

    >>> import interp
    >>> interp.load("zoo:planted-induction").info.n_layers
    2
    """
    from interp.backends.lens.own_tokenizer import own_tokenizer
    from interp.loading.checkpoints import read  # transformers and torch: only once there is something to read
    from interp.loading.hooked.native import is_native, native_decoder
    from interp.loading.stacks import one_stack

    _check_options(remote, strip_prefix, tokenizer)
    if is_native(source):
        tokenizer, source = tokenizer or own_tokenizer(source), native_decoder(source)
    runner = backend_for(source, backend, remote=remote)
    if runner.adopt is not None and runner.owns(source):
        return _adopted(runner.adopt, source, remote, tokenizer)
    checkpoint = read(
        source,
        tokenizer=tokenizer,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        tensor_parallel=tensor_parallel,
        strip_prefix=strip_prefix,
    )
    ours = checkpoint.model is not source
    checkpoint = one_stack(checkpoint, stack, source_text, runner.name)
    try:
        return runner.make(checkpoint, ours=ours)
    except BackendError as error:
        raise ModelLoadError(f"{checkpoint.name}: {error}{other_backends(checkpoint, runner)}") from error


def _adopted(adopt: Adopt, source: Any, remote: bool | str, tokenizer: PreTrainedTokenizerBase | None) -> Model:
    """The model of an object that is a backend's own."""
    try:
        with warnings.catch_warnings():
            if tokenizer is not None:
                warnings.simplefilter("ignore", PromptWarning)  # about its own tokenizer, which is not taken
            model = adopt(source, remote=remote)
    except BackendError as error:
        raise ModelLoadError(f"{type(source).__name__}: {error}") from error
    model.tokenizer = tokenizer or model.tokenizer
    return model


def _check_options(remote: object, strip_prefix: object, tokenizer: object) -> None:
    """Refuse options of another type.

    Raises:
        ModelLoadError: names the option.
    """
    if not isinstance(remote, bool | str):
        raise ModelLoadError(f"remote is True, an address or 'local'; got {type(remote).__name__}")
    if strip_prefix is not None and not isinstance(strip_prefix, str):
        raise ModelLoadError(
            f"strip_prefix is what stands in front of keys, as text; got {type(strip_prefix).__name__}"
        )
    if tokenizer is not None and not (callable(tokenizer) and callable(getattr(tokenizer, "decode", None))):
        raise ModelLoadError(
            f"tokenizer is one of transformers; got {type(tokenizer).__name__}. From a name or folder: "
            "transformers.AutoTokenizer.from_pretrained(...); from a tokenizers.Tokenizer: "
            "transformers.PreTrainedTokenizerFast(tokenizer_object=...)"
        )
