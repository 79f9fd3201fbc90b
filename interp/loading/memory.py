"""Models in memory: transformers models, those with adapters (peft), and what cannot be run as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from interp.backends.plan.checks import COMPILED, compiled
from interp.errors import ModelLoadError, UnknownModel, first_line


def module_of(source: Any) -> PreTrainedModel | None:
    """The transformers model that an object is or wraps; None for what is neither.

    Raises:
        ModelLoadError: a compiled model, one without numbers, adapters that are no weights.
    """
    if isinstance(source, nn.Module) and compiled(source) is not None:
        raise ModelLoadError(f"{type(getattr(source, '_orig_mod', source)).__name__} cannot be loaded: {COMPILED}")
    if hasattr(source, "get_base_model") and hasattr(source, "peft_config"):
        _check_adapters(source)
        inner: Any = source
        source = inner.get_base_model()
    if not isinstance(source, PreTrainedModel):
        return None
    family = type(source).__name__
    parameters = dict(source.named_parameters())
    if not parameters:
        raise ModelLoadError(f"{family} has no parameters")
    meta = next((name for name, p in parameters.items() if p.is_meta), None)
    if meta is not None and getattr(source, "hf_device_map", None) is None:
        raise ModelLoadError(f"{family} has no numbers in {meta}: it is on the meta device; load its weights first")
    return source


def _check_adapters(source: Any) -> None:
    """Adapters have to be changes of weights; those that add prompts are no part of the model's layers."""
    for name, config in source.peft_config.items():
        if getattr(config, "is_prompt_learning", False):
            raise ModelLoadError(
                f"adapter {name!r} adds tokens in front of every prompt ({type(config).__name__}), which cannot be "
                "measured as part of the model; load the base model, and give those tokens' effect as an edit"
            )


def adapted(folder: Any, base: PreTrainedModel) -> PreTrainedModel:
    """The base model with the adapters of a folder in it.

    Raises:
        ModelLoadError: peft is not installed, or the adapter does not fit.
    """
    try:
        import peft  # type: ignore[import-not-found]  # optional
    except ImportError as error:
        raise ModelLoadError(
            f"{str(folder)!r} is an adapter: reading it needs peft (pip install peft); or merge it with "
            "merge_and_unload() and save the whole model"
        ) from error
    try:
        model = peft.PeftModel.from_pretrained(base, folder).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelLoadError(f"cannot read the adapter in {str(folder)!r}: {error}") from error
    module = module_of(model)
    assert module is not None  # peft wraps what it is given
    return module


def check_device(model: PreTrainedModel, device: str | None) -> PreTrainedModel:
    """The model on a device.

    Raises:
        ModelLoadError: there is no such device.
    """
    if device is None:
        return model
    if not isinstance(device, str | torch.device | int) or isinstance(device, bool):
        raise ModelLoadError(f"device is {device!r:.40}; give a name such as cpu, cuda or cuda:1")
    try:
        return model.to(device)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadError(f"cannot put the model on device {device!r}: {first_line(error)}") from error


def dtype_of(dtype: str | torch.dtype) -> torch.dtype | None:
    """A floating-point dtype by name; None for "auto": that of the file.

    Raises:
        ModelLoadError: no such dtype.
    """
    if isinstance(dtype, str) and dtype == "auto":
        return None
    torch_dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point or torch_dtype.itemsize < 2:
        raise UnknownModel(f"unknown dtype {dtype!r}; use float32, bfloat16, float16, float64 or auto")
    return torch_dtype
