"""Safetensors files of a checkpoint: which they are, and what their headers say before anything is read.

transformers casts whatever a file holds to the dtype asked for, follows an index wherever it points, and leaves out
what the configuration has no place for. Each of these gives a model that runs and is another one.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from interp.errors import ModelLoadError
from interp.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HASHED = 256 * 2**20
"""Bytes of weights up to which a local folder is hashed for provenance."""
READABLE = {"F64", "F32", "F16", "BF16"}
"""Dtypes of weights that are numbers as they stand."""
PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "model.", "transformer.")
"""What wrappers put in front of every key: DataParallel, torch.compile, peft, trainers."""
_NUMBER = re.compile(r"\.(\d+)\.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that transformers reads of a folder: one file, or those that the index names.

    Raises:
        ModelLoadError: none, only pickles, or an index that names pickles, files elsewhere or files that are not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _present(folder, indexed_files(folder / INDEX, str(folder)))
    if list(folder.glob("*.safetensors")):
        names = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))[:3])
        raise ModelLoadError(
            f"{str(folder)!r} has neither {WEIGHTS} nor {INDEX}; its safetensors ({names}) are not read"
        )
    pickles = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth") for p in folder.glob(kind))
    if pickles:
        raise ModelLoadError(
            f"{str(folder)!r} has only pickled weights ({pickles[0]}), which can run code when opened; "
            "convert them: load with transformers and save_pretrained(safe_serialization=True)"
        )
    raise ModelLoadError(f"{str(folder)!r} has no weights: no *.safetensors in the folder")


def indexed_files(index: Path, where: str) -> list[str]:
    """Names of the safetensors beside an index that it lists; `where` it belongs is for the error.

    Raises:
        ModelLoadError: no names, or one of a pickle or of a file elsewhere.
    """
    content = read_json(index, name=f"{INDEX} in {where!r}", error=ModelLoadError)
    try:
        names = sorted(set(content["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"cannot read {INDEX} in {where!r}: {type(error).__name__}: {error}") from error
    if not names:
        raise ModelLoadError(f"{INDEX} in {where!r} names no files")
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise ModelLoadError(f"{INDEX} in {where!r} names {name!r}, which is no safetensors file")
        if Path(name).name != name:
            raise ModelLoadError(f"{INDEX} in {where!r} names {name!r}, which is not inside the folder")
    return names


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    gone = next((name for name in names if not (folder / name).is_file()), None)
    if gone is not None:
        raise ModelLoadError(f"{INDEX} in {str(folder)!r} names {gone!r}, which is not there")
    return [folder / name for name in names]


def header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each tensor in a safetensors file.

    Raises:
        ModelLoadError: not a safetensors file.
    """
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > min(file.stat().st_size, 2**30):
                raise ValueError("a header longer than the file")
            entries = json.loads(stream.read(size))
        return {k: (str(v["dtype"]), tuple(map(int, v["shape"]))) for k, v in entries.items() if k != "__metadata__"}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(f"corrupt weights in {str(file)!r}: {error or type(error).__name__}") from error


def check_dtypes(files: Iterable[Path]) -> None:
    """Refuse weights that are no numbers as they stand: integers, booleans, eight-bit floats without their scales.

    Raises:
        ModelLoadError: names the first such tensor.
    """
    for file in files:
        for name, (dtype, shape) in header(file).items():
            if dtype not in READABLE and name.endswith((".weight", ".bias")) and len(shape) > 0:
                raise ModelLoadError(
                    f"{name} in {file.name} is {dtype}, and the configuration has no quantization_config that says how "
                    "to read it; save the weights dequantised, in float32, bfloat16 or float16"
                )


def check_keys(
    name: str, missing: Sequence[str], unexpected: Sequence[str], architecture: str, family: str
) -> list[str]:
    """What of the file the model has no place for, if that is harmless.

    Raises:
        ModelLoadError: weights of the model that the file lacks, or layers of the file that the configuration leaves
        out.
    """
    if missing:
        prefix = _prefix(missing, unexpected)
        if prefix:
            raise ModelLoadError(
                f"the keys of {name!r} begin with {prefix!r}, which {family} does not expect: load it with "
                f"strip_prefix={prefix!r}"
            )
        raise ModelLoadError(
            f"{name!r} was saved as {architecture} and lacks {len(missing)} weights of {family}, which would be "
            f"random: {missing[0]}"
        )
    layers = [key for key in unexpected if _NUMBER.search(key) and not key.endswith((".inv_freq", ".masked_bias"))]
    if layers:
        raise ModelLoadError(
            f"{name!r} holds {len(layers)} weights of layers that its configuration leaves out ({layers[0]}): the "
            "model would be another one; correct the number of layers in config.json"
        )
    return list(unexpected)


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """What stands in front of every missing key in the file."""
    present = set(unexpected)
    for key in unexpected:
        if key.endswith(missing[0]) and key != missing[0]:
            prefix = key[: -len(missing[0])]
            if sum(prefix + m in present for m in missing) >= len(missing) / 2:
                return prefix
    return None


def sha256(files: Sequence[Path]) -> str | None:
    """Hash of weight files, in the order given; None for more than `HASHED` bytes."""
    if sum(f.stat().st_size for f in files) > HASHED:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
