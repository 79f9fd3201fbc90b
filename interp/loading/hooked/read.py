"""`read_hooked`: a `HookedDecoder` from a folder or file in the HookedTransformer layout, or Tracr's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import ModelLoadError
from interp.loading.hooked.config import HookedConfig
from interp.loading.hooked.decoder import HookedDecoder
from interp.loading.hooked.files import PICKLES, read_config, read_files, state_files
from interp.loading.hooked.options import read_options
from interp.loading.hooked.tensors import parameters
from interp.loading.hooked.tracr import is_tracr, tracr_options, tracr_state, tracr_tokenizer, tracr_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = ("n_layers", "d_model")  # options that a HookedTransformer's config has and no checkpoint of transformers'


@dataclass(frozen=True, eq=False)
class Hooked:
    """A decoder that was read, the tokenizer that its layout states (Tracr's), and the files of its weights."""

    model: HookedDecoder
    tokenizer: PreTrainedTokenizerBase | None
    weights: tuple[Path, ...]


def is_hooked(path: Path) -> bool:
    """Whether a folder or file is a checkpoint in one of these layouts rather than in transformers' own.

    By its config; without one, a PyTorch file is, and so is a folder with nothing but one.
    """
    if not path.is_dir() and not state_files(path):
        return False
    try:
        config = read_config(path)
    except ModelLoadError:
        return False  # whoever reads it as a checkpoint of transformers says what is wrong with it
    if config is None:
        files = state_files(path)
        return len(files) == 1 and files[0].suffix in PICKLES
    return "model_type" not in config and (is_tracr(config) or all(name in config for name in OWN))


def read_hooked(path: Path, *, dtype: torch.dtype) -> Hooked:
    """The decoder in eval mode, on the CPU.

    Raises:
        ModelLoadError: files that cannot be read, options or tensors that do not fit; names them.
    """
    files = read_files(path)
    try:
        if is_tracr(files.config):
            options = tracr_options(files.config, files.state)
            config, state = read_options(options), tracr_state(files.state, options)
            for name, value in tracr_words(files.config).items():
                setattr(config, name, value)
            tokenizer = tracr_tokenizer(files.config)
        else:
            config, state, tokenizer = read_options(files.config), files.state, None
        model = decoder(config, parameters(state, config), dtype=dtype)
    except ModelLoadError as error:
        raise ModelLoadError(f"{str(path)!r}: {error}") from error
    return Hooked(model, tokenizer, files.weights)


def special_attention(config: HookedConfig) -> dict[str, Any]:
    """The attention function to ask transformers for where its usual one cannot do what the config says."""
    return {} if config.share == 1.0 and config.score_cap is None else {"attn_implementation": "eager"}


def decoder(config: HookedConfig, state: Mapping[str, Tensor], *, dtype: torch.dtype) -> HookedDecoder:
    """A decoder with these parameters; norms without gains keep theirs at 1 and 0."""
    model: Any = HookedDecoder._from_config(config, dtype=dtype, **special_attention(config))
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    free = [name for name in missing if "ln" not in name]
    if free or unexpected:
        raise ModelLoadError(f"parameter {[*free, *unexpected][0]!r} of the decoder was not read")
    return model.eval()
