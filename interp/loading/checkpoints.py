"""Checkpoints: a transformers model and its tokenizer from a hub id, folder, zoo name or model; failures say why."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from interp import zoo
from interp.backends import Checkpoint
from interp.errors import ModelLoadError
from interp.loading.hooked.decoder import register
from interp.loading.hooked.read import is_hooked, read_hooked

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

HASHED = 256 * 2**20  # bytes of weights up to which a local folder is hashed for provenance
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
register()


def read(
    source: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    dtype: str | torch.dtype,
    device: str | None,
    device_map: Any,
    tensor_parallel: bool = False,
) -> Checkpoint:
    """Checkpoint from a hub id, folder, `zoo:NAME` or in-memory model; see `interp.load`."""
    if isinstance(source, PreTrainedModel):
        if source.config.is_encoder_decoder:
            raise ModelLoadError(f"{type(source).__name__} is an encoder-decoder; only causal decoders can be loaded")
        name = source.config._name_or_path or type(source).__name__
        return Checkpoint(name, source, tokenizer, getattr(source.config, "_commit_hash", None))
    if not isinstance(source, str | os.PathLike):
        raise ModelLoadError(
            f"cannot load a {type(source).__name__}; give a hub id, a folder, zoo:NAME or a transformers model"
        )
    name = os.fspath(source)
    if name.startswith("zoo:"):
        bare = name.removeprefix("zoo:")
        model, own_tokenizer = zoo.load(bare, revision=revision)
        folder = zoo.folder(bare) if revision is None else zoo.at_step(bare, revision)
        model = _to_device(model.to(dtype=_dtype(dtype)), device)  # type: ignore[call-arg]  # pyright: wrapped .to
        return Checkpoint(
            name, model, tokenizer or own_tokenizer, None, None if folder is None else _sha256(_safetensors(folder))
        )
    path = Path(name).expanduser()
    if name.strip() and is_hooked(path):
        if device_map is not None or tensor_parallel:
            raise ModelLoadError(f"{name!r} is in a layout of small models, which stay on one device; pass device=")
        hooked = read_hooked(path, dtype=_dtype(dtype))
        own = hooked.tokenizer or _tokenizer(name, path if path.is_dir() else path.parent, None)
        return Checkpoint(name, _to_device(hooked.model, device), tokenizer or own, None, _sha256(hooked.weights))
    folder = _folder(name)
    config = _config(name, folder, revision)
    more = _tensor_parallel_options(config) if tensor_parallel else {"device_map": device_map}
    model = _weights(name, folder, config, revision=revision, dtype=_dtype(dtype), **more)
    tokenizer = tokenizer or _tokenizer(name, folder, revision)
    sha = None if folder is None else _sha256(_safetensors(folder))
    model = model if device_map is not None or tensor_parallel else _to_device(model, device)
    return Checkpoint(name, model, tokenizer, getattr(config, "_commit_hash", None), sha)


def _folder(name: str) -> Path | None:
    """The local folder `name` means, None for a hub id."""
    if not name.strip():
        raise ModelLoadError("an empty name; give a hub id, a folder or zoo:NAME")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelLoadError(f"{name!r} has no config.json: not a Hugging Face checkpoint folder")
        return path
    if path.exists():
        raise ModelLoadError(f"{name!r} is a file; give the folder that holds config.json and the safetensors")
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if looks_local:
        raise ModelLoadError(f"no folder {name!r}")
    return None


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    torch_dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise ModelLoadError(f"unknown dtype {dtype!r}; use float32, bfloat16, float16 or float64")
    return torch_dtype


def _config(name: str, folder: Path | None, revision: str | None) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder or name, revision=revision, trust_remote_code=False)
    except OSError as error:
        where = "" if folder is not None else "no folder of that name here, and on the hub: "
        raise ModelLoadError(f"cannot read the config of {name!r}: {where}{_first_line(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"cannot understand the config of {name!r}: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(
            f"{name!r} is an encoder-decoder ({config.model_type}); only causal decoders can be loaded"
        )
    architectures = config.architectures or []
    encoder_heads = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    if architectures and all(a.endswith(encoder_heads) for a in architectures):
        raise ModelLoadError(f"{name!r} is {architectures[0]}, not a causal decoder; a ...ForCausalLM is needed")
    return config


def _weights(name: str, folder: Path | None, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    if folder is not None and not list(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        if pickles:
            raise ModelLoadError(
                f"{name!r} has only pickled weights ({pickles[0]}), which can run code when opened; "
                "convert them: load with transformers and save_pretrained(safe_serialization=True)"
            )
        raise ModelLoadError(f"{name!r} has no weights: no *.safetensors in the folder")
    try:
        with _quiet():
            model_and_report: Any = AutoModelForCausalLM.from_pretrained(
                folder or name,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except SafetensorError as error:
        raise ModelLoadError(f"corrupt weights in {name!r}: {_first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelLoadError(f"cannot load {name!r}: {_first_line(error)}") from error
    model, report = model_and_report
    missing = sorted(report["missing_keys"])
    if missing:
        architecture = (config.architectures or ["a model without a name"])[0]
        raise ModelLoadError(
            f"{name!r} was saved as {architecture} and lacks {len(missing)} weights of {type(model).__name__}, "
            f"which would be random: {missing[0]}"
        )
    return model.eval()


def _tensor_parallel_options(config: PretrainedConfig) -> dict[str, Any]:
    """Options that spread a model over the processes of torchrun."""
    from transformers.distributed.configuration_utils import DistributedConfig

    if "RANK" not in os.environ:
        raise ModelLoadError("tensor_parallel needs one process per part: start with torchrun --nproc-per-node N FILE")
    if not getattr(config.get_text_config(), "base_model_tp_plan", None):
        raise ModelLoadError(
            f"transformers has no tensor-parallel plan for {config.model_type!r}; spread its layers with device_map"
        )
    return {"distributed_config": DistributedConfig(tp_plan="auto")}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of what it loaded: what matters in it is raised as an error here."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _tokenizer(name: str, folder: Path | None, revision: str | None) -> PreTrainedTokenizerBase | None:
    if folder is not None and not any((folder / f).is_file() for f in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder or name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if folder is None:
            return None
        raise ModelLoadError(f"cannot read the tokenizer in {name!r}: {_first_line(error)}") from error


def _to_device(model: PreTrainedModel, device: str | None) -> PreTrainedModel:
    if device is None:
        return model
    try:
        return model.to(device)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadError(f"cannot put the model on device {device!r}: {_first_line(error)}") from error


def _safetensors(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _sha256(files: Sequence[Path]) -> str | None:
    if sum(f.stat().st_size for f in files) > HASHED:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
