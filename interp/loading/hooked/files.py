"""Files of a checkpoint in a layout of interpretability research, and the config and tensors that they hold.

Safetensors, and PyTorch's own files as far as `torch.load(weights_only=True)` opens them: no code is run.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp.errors import ModelLoadError, first_line
from interp.files import read_json

PICKLES = (".pt", ".pth")
SUFFIXES = (".safetensors", *PICKLES)
CONFIGS, STATES = ("config", "cfg"), ("state_dict", "model_state_dict", "model", "weights")
"""Names under which a PyTorch file holds config and state dict beside each other."""


@dataclass(frozen=True, eq=False)
class Files:
    """Config and tensors of a checkpoint, and the files that they were read from."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    weights: tuple[Path, ...]


def state_files(path: Path) -> list[Path]:
    """Files of weights that a path means: itself, or those in the folder, safetensors before others."""
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    safe = sorted(path.glob("*.safetensors"))
    return safe or sorted(p for suffix in PICKLES for p in path.glob(f"*{suffix}"))


def read_config(path: Path) -> Mapping[str, Any] | None:
    """The JSON config of a folder or beside a file of weights, None without; one of the file's own name goes first.

    Raises:
        ModelLoadError: it is no JSON object.
    """
    folder = path if path.is_dir() else path.parent
    names = ["config.json"] if path.is_dir() else [f"{path.stem}.json", f"{path.stem}_config.json", "config.json"]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        return None
    config = read_json(file, name=f"{file.name} of {str(path)!r}", error=ModelLoadError)
    if not isinstance(config, Mapping):
        raise ModelLoadError(f"{file.name} of {str(path)!r} holds a {type(config).__name__}, not names and values")
    return config


def read_files(path: Path) -> Files:
    """Config and tensors of a folder or a file.

    Raises:
        ModelLoadError: no weights or several sets of them, no config, or files that cannot be read.
    """
    files, config = state_files(path), read_config(path)
    if not files:
        raise ModelLoadError(f"{str(path)!r} has no weights: no {', '.join('*' + s for s in SUFFIXES)} in the folder")
    if files[0].suffix != ".safetensors":
        if len(files) > 1:
            raise ModelLoadError(f"{str(path)!r} has {len(files)} files of weights; give one of them: {files[0].name}")
        own, state = _pickled(files[0])
        config = own or config
    else:
        state: dict[str, Tensor] = {}
        for file in files:
            part = read_safetensors(file)
            if both := state.keys() & part.keys():
                raise ModelLoadError(
                    f"{str(path)!r} has several sets of weights ({min(both)!r} is in two files); give one of the files"
                )
            state |= part
    if config is None:
        raise ModelLoadError(
            f"{str(path)!r} has no config: put config.json beside it, with the options of the HookedTransformerConfig"
        )
    return Files(config, state, tuple(files))


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name.

    Raises:
        ModelLoadError: it is none, or is damaged.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"corrupt weights in {str(file)!r}: {error}") from error


def read_pickle(file: Path, instead: str) -> Any:
    """What a PyTorch file holds, if that is tensors and plain values; `instead` is what to save otherwise.

    Raises:
        ModelLoadError: it holds Python objects, or is damaged.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelLoadError(
            f"{str(file)!r} holds Python objects, which can run code when opened; where it was made, save {instead}"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ModelLoadError(f"corrupt weights in {str(file)!r}: {first_line(error)}") from error


def _pickled(file: Path) -> tuple[Mapping[str, Any] | None, dict[str, Tensor]]:
    """Config, if it is there too, and state dict of a PyTorch file."""
    content = read_pickle(
        file, '{"config": model.cfg.to_dict(), "state_dict": model.state_dict()} or safetensors instead'
    )
    content = content if isinstance(content, Mapping) else {}
    config = next((content[name] for name in CONFIGS if isinstance(content.get(name), Mapping)), None)
    state = next((content[name] for name in STATES if isinstance(content.get(name), Mapping)), content)
    state = {name: x for name, x in state.items() if isinstance(x, Tensor)} if state is not content else dict(state)
    if not state or not all(isinstance(name, str) and isinstance(x, Tensor) for name, x in state.items()):
        raise ModelLoadError(f"{str(file)!r} holds no state dict: names and tensors, alone or under {STATES[0]!r}")
    return config, state
