"""`load`: a `Model` from a hub id, folder, zoo name or model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from interp.errors import BackendError, ModelLoadError
from interp.loading.choose import backend_for, other_backends
from interp.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
) -> Model:
    """Model from a hub id, a folder, `zoo:NAME`, a transformers model, a TransformerLens bridge or an nnsight model.

    `backend`: "hf" (the default), "lens" (dense attention, for architectures outside transformers' attention
    interface), "nnsight", or one of another package; a bridge or an nnsight model is run by its own.

    A checkpoint too large for one device: `device_map` ("auto", or layers to devices, CPU and disk among them) places
    layers, as accelerate does; `tensor_parallel`, under torchrun, splits every layer over the processes, for families
    that transformers has a plan for. Sites, edits and statistics are the same: all heads, in every process.

    `remote`, for an nnsight `TransformersModel` (weights here or not): True runs it on nnsight's server, an address on
    that one, "local" serialises each run as for a server and carries it out here.

    Offline rules and cache are Hugging Face's own (HF_HOME, HF_HUB_OFFLINE). Weights are read from safetensors only
    and no code from a repository is run. An in-memory model keeps its dtype and device.

    Raises:
        ModelLoadError: nothing there, unreadable files, or not a causal decoder; says what was looked for.

    >>> import interp
    >>> interp.load("zoo:planted-induction").info.n_layers
    2
    """
    from interp.loading.checkpoints import read  # transformers and torch: only once there is something to read

    runner = backend_for(source, backend, remote=remote)
    if runner.adopt is not None and runner.owns(source):
        try:
            model = runner.adopt(source, remote=remote)
        except BackendError as error:
            raise ModelLoadError(f"{type(source).__name__}: {error}") from error
        model.tokenizer = tokenizer or model.tokenizer
        return model
    checkpoint = read(
        source,
        tokenizer=tokenizer,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        tensor_parallel=tensor_parallel,
    )
    try:
        return runner.make(checkpoint, ours=checkpoint.model is not source)
    except BackendError as error:
        raise ModelLoadError(f"{checkpoint.name}: {error}{other_backends(checkpoint, runner)}") from error
