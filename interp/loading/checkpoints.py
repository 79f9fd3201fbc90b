"""Checkpoints: a transformers model and its tokenizer from a hub id, folder, zoo name or model; failures say why."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from interp import zoo
from interp.backends import Checkpoint
from interp.environment import without_bars
from interp.errors import ModelLoadError, first_line
from interp.files import read_json
from interp.loading.hooked.decoder import register
from interp.loading.hooked.read import is_hooked, read_hooked
from interp.loading.hub import fetch, snapshot
from interp.loading.memory import adapted, check_device, dtype_of, module_of
from interp.loading.shards import check_dtypes, check_keys, sha256, weight_files
from interp.loading.sizes import check_sizes
from interp.zoo import relu_llama

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForImageClassification")
"""Ends of the names of classes whose logits are not of tokens."""
ADAPTER = "adapter_config.json"
OWN_ATTENTION = (None, "eager", "sdpa")
"""Attention that a configuration may ask for; whatever else it names (a kernel of the hub's) is not loaded."""
log = logging.getLogger("interp")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
TOKENIZER_CLASS = "tokenizer_config.json"
"""Names a class, which may need no vocabulary (bytes), or one in a file of a name of its own."""
BESIDE = (TOKENIZER_CLASS, "special_tokens_map.json", "added_tokens.json", "merges.txt")
"""What a tokenizer may have beside these."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
"""Of files by which a folder is taken for a checkpoint, though it has no config."""
register()
relu_llama.register()


def read(
    source: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    dtype: str | torch.dtype,
    device: str | None,
    device_map: Any,
    tensor_parallel: bool = False,
    strip_prefix: str | None = None,
) -> Checkpoint:
    """Checkpoint from a hub id, folder, `zoo:NAME` or in-memory model; see `interp.load`."""
    model = module_of(source)
    if model is not None:
        name = model.config._name_or_path or type(model).__name__
        return Checkpoint(name, model, tokenizer, getattr(model.config, "_commit_hash", None))
    if not isinstance(source, str | os.PathLike):
        raise ModelLoadError(
            f"cannot load a {type(source).__name__}; give a hub id, a folder, zoo:NAME or a transformers model"
        )
    name, torch_dtype = os.fspath(source), dtype_of(dtype)
    if name.startswith("zoo:"):
        return _of_zoo(name, tokenizer, revision=revision, dtype=torch_dtype, device=device)
    path = Path(name).expanduser()
    if name.strip() and is_hooked(path):
        if device_map is not None or tensor_parallel:
            raise ModelLoadError(f"{name!r} is in a layout of small models, which stay on one device; pass device=")
        hooked = read_hooked(path, dtype=torch_dtype or torch.float32)
        own = hooked.tokenizer or _tokenizer(name, path if path.is_dir() else path.parent, None)
        return Checkpoint(name, check_device(hooked.model, device), tokenizer or own, None, sha256(hooked.weights))
    local = _folder(name)
    folder, commit = _of_hub(name, path, revision) if local is None else (local, None)
    if not (folder / "config.json").is_file():
        return _of_adapter(folder, tokenizer, dtype=dtype, device=device, device_map=device_map)
    config = _config(name, folder)
    more = _tensor_parallel_options(config) if tensor_parallel else {"device_map": device_map}
    if strip_prefix:
        more["key_mapping"] = {f"^{re.escape(strip_prefix)}": ""}
    model = _weights(name, folder, config, dtype=torch_dtype or "auto", **more)
    tokenizer = tokenizer or _tokenizer(
        name, _own_files(name, path, folder, commit) if local is None else local, commit
    )
    sha = None if local is None else sha256(weight_files(local))
    model = model if device_map is not None or tensor_parallel else check_device(model, device)
    return Checkpoint(name, model, tokenizer, commit, sha)


def _of_hub(name: str, path: Path, revision: str | None) -> tuple[Path, str | None]:
    """`snapshot`; where a folder of that name is here as well, which holds no checkpoint, an error says so."""
    try:
        return snapshot(name, revision)
    except ModelLoadError as error:
        if not path.is_dir():
            raise
        raise ModelLoadError(
            f"{name!r} has no config.json: not a Hugging Face checkpoint folder, and no model of the hub: {error}"
        ) from error


def _own_files(name: str, path: Path, folder: Path, commit: str | None) -> Path | None:
    """Where a hub's tokenizer is, if a folder here is called like it: transformers would look in there."""
    if not path.is_dir():
        return None
    for file in (*TOKENIZER_FILES, *BESIDE):
        fetch(name, file, commit)
    return folder


def _of_zoo(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    revision: str | None,
    dtype: torch.dtype | None,
    device: str | None,
) -> Checkpoint:
    bare = name.removeprefix("zoo:")
    model, own_tokenizer = zoo.load(bare, revision=revision)
    folder = zoo.folder(bare) if revision is None else zoo.at_step(bare, revision)
    if dtype is not None:
        model = model.to(dtype=dtype)  # type: ignore[call-arg]  # pyright: wrapped .to
    sha = None if folder is None else sha256(sorted(folder.glob("*.safetensors")))
    return Checkpoint(name, check_device(model, device), tokenizer or own_tokenizer, None, sha)


def _of_adapter(folder: Path, tokenizer: PreTrainedTokenizerBase | None, **options: Any) -> Checkpoint:
    """The base model that an adapter names, with the adapter in it."""
    config = read_json(folder / ADAPTER, name=f"{ADAPTER} in {str(folder)!r}", error=ModelLoadError)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelLoadError(
            f"{ADAPTER} in {str(folder)!r} names no base model; load that one and put the adapter on it"
        )
    checkpoint = read(base, tokenizer=tokenizer or _tokenizer(str(folder), folder, None), revision=None, **options)
    sha = sha256(sorted(folder.glob("adapter_model.safetensors")))
    return replace(checkpoint, model=adapted(folder, checkpoint.model), name=str(folder), weights_sha256=sha)


def _folder(name: str) -> Path | None:
    """The local folder `name` means, None for a hub id, also where a folder called like it holds no weights."""
    if not name.strip():
        raise ModelLoadError("an empty name; give a hub id, a folder or zoo:NAME")
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER)):
            if not looks_local and not any(file.suffix in WEIGHT_SUFFIXES for file in path.iterdir()):
                return None  # a folder of something else, called like a model of the hub
            raise ModelLoadError(f"{name!r} has no config.json: not a Hugging Face checkpoint folder")
        return path
    if path.exists():
        raise ModelLoadError(f"{name!r} is a file; give the folder that holds config.json and the safetensors")
    if looks_local:
        raise ModelLoadError(f"no folder {name!r}")
    return None


def _config(name: str, folder: Path) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except OSError as error:
        raise ModelLoadError(f"cannot read the config of {name!r}: {first_line(error)}") from error
    except Exception as error:  # whatever a family's own checks of its fields raise
        raise ModelLoadError(f"cannot understand the config of {name!r}: {first_line(error)}") from error
    for part in (config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))):
        if part is not None and getattr(part, "_attn_implementation_internal", None) not in OWN_ATTENTION:
            part._attn_implementation_internal = "eager"
    architectures = config.architectures or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise ModelLoadError(f"cannot understand the config of {name!r}: architectures is {architectures!r:.60}")
    if architectures and all(a.endswith(OTHER_HEADS) for a in architectures):
        raise ModelLoadError(
            f"{name!r} is {architectures[0]}, which gives no logits of tokens; a ...ForCausalLM or ...ForMaskedLM is "
            "needed"
        )
    return config


def _weights(name: str, folder: Path, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    files = weight_files(folder)
    if getattr(config, "quantization_config", None) is None:
        check_dtypes(files)
    auto_class = _auto_class(config)
    with _quiet():
        check_sizes(name, config, auto_class, files)
    try:
        with _quiet():
            model_and_report: Any = auto_class.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the names
                **options,
            )
    except SafetensorError as error:
        raise ModelLoadError(f"corrupt weights in {name!r}: {first_line(error)}") from error
    except Exception as error:  # whatever a family's own code raises on sizes that do not go together
        raise ModelLoadError(f"cannot load {name!r}: {type(error).__name__}: {first_line(error)}") from error
    model, report = model_and_report
    _check_report(name, model, report, config)
    model.config._name_or_path = name
    return model.eval()


def _auto_class(config: PretrainedConfig) -> Any:
    """transformers' class that gives logits of tokens: that of masked tokens where the checkpoint says so."""
    if getattr(config, "is_encoder_decoder", False):
        return AutoModelForSeq2SeqLM
    masked = any(a.endswith("ForMaskedLM") for a in config.architectures or ())
    return AutoModelForMaskedLM if masked else AutoModelForCausalLM


def _check_report(name: str, model: PreTrainedModel, report: Any, config: PretrainedConfig) -> None:
    """Refuse a model that is another one than the checkpoint's; warn of what was left out."""
    family, architecture = type(model).__name__, (config.architectures or ["a model without a name"])[0]
    for key, in_file, in_model in report["mismatched_keys"]:
        raise ModelLoadError(
            f"{name!r}: {key} has shape {tuple(in_file)} in the file and {tuple(in_model)} by config.json"
        )
    missing, unexpected = (sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys"))
    ignored = check_keys(name, missing, unexpected, architecture, family)
    if ignored:
        log.warning("%s: %d weights have no place in %s and are left out: %s", name, len(ignored), family, ignored[0])


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
        with without_bars():
            yield
    finally:
        hf_logging.set_verbosity(before)


def _tokenizer(name: str, folder: Path | None, revision: str | None) -> PreTrainedTokenizerBase | None:
    has_vocabulary = folder is not None and any((folder / f).is_file() for f in TOKENIZER_FILES)
    if folder is not None and not has_vocabulary and not (folder / TOKENIZER_CLASS).is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder or name, revision=revision, trust_remote_code=False)
    except Exception as error:  # of the tokenizer's own format
        if folder is None:
            return None
        if not has_vocabulary:
            log.warning("%s names a tokenizer that cannot be made of this folder: %s", name, first_line(error))
            return None
        raise ModelLoadError(f"cannot read the tokenizer in {name!r}: {first_line(error)}") from error
