"""Marks: by what a file on disk is known to be an earlier output of this package, format by format."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITER = "interp-toolkit"
"""What pages and tensors say of who wrote them: `<meta name="generator">`, `__metadata__` of safetensors."""
PROVENANCE = b"interp.provenance"
"""Key of a parquet file's metadata that tables of ours have."""
HEADERS = (
    "analysis,variant,layer,head,component",  # Result
    "sender,receiver,port,score",  # edges of a circuit
    "edges,fraction,metric,ablation",  # its faithfulness
    "source,target,weight,share",  # edges of an attribution graph
    "name,kind,layer,position,site",  # its nodes
    "prompt,position,token,",  # active features
    "analysis,setting,architecture,seed",  # scoreboards
    "mechanism,setting,architecture,seed",
    "method,mechanism,architecture,seed",
    "case,kind,seed,recovered",
)
"""How the first line of each table of ours begins."""
KEYS = (
    {"provenance", "rows", "interventions"},  # Result
    {"schema", "layout", "provenance", "edges"},  # circuit
    {"schema_version", "provenance", "sites", "files", "complete"},  # index of stored activations
)
"""Keys of each JSON document of ours."""
MOST_JSON = 256 * 2**20
"""Bytes of JSON that are read to see whose they are; what is larger is taken for somebody else's."""
_HEAD = 4096


def is_ours(path: Path) -> bool:
    """Whether a file is an earlier output of this package, by what stands in it; what cannot be read is not."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        return any(test(path, head) for test in _TESTS)
    except (OSError, ValueError, RecursionError):
        return False


def _page(path: Path, head: bytes) -> bool:
    return head.lstrip()[:9].lower() == b"<!doctype" and f'name="generator" content="{WRITER}"'.encode() in head


def _parquet(path: Path, head: bytes) -> bool:
    """The footer, which the last eight bytes give the length of, holds our key."""
    if not head.startswith(b"PAR1"):
        return False
    with path.open("rb") as stream:
        stream.seek(-8, 2)
        (size,) = struct.unpack("<I", stream.read(4))
        stream.seek(-8 - size, 2)
        return PROVENANCE in stream.read(size)


def _tensors(path: Path, head: bytes) -> bool:
    """Safetensors whose metadata name us."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (size,) = struct.unpack("<Q", head[:8])
    if size > min(path.stat().st_size, MOST_JSON):
        return False
    with path.open("rb") as stream:
        stream.seek(8)
        metadata = json.loads(stream.read(size)).get("__metadata__", {})
    return metadata.get("writer") == WRITER


def _csv(path: Path, head: bytes) -> bool:
    return head.decode("utf-8", errors="replace").startswith(HEADERS)


def _dot(path: Path, head: bytes) -> bool:
    return head.startswith(f"// {WRITER}\n".encode())


def _document(path: Path, head: bytes) -> bool:
    if head.lstrip()[:1] not in (b"{", b"[") or path.stat().st_size > MOST_JSON:
        return False
    content = json.loads(path.read_bytes())
    if isinstance(content, list):
        return bool(content) and isinstance(content[0], dict) and {"prompt", "position", "feature"} <= content[0].keys()
    return any(keys <= content.keys() for keys in KEYS) or WRITER in (_generator(content), content.get("written_by"))


def _generator(content: dict[str, Any]) -> Any:
    """Who wrote an attribution graph, or a dictionary's configuration."""
    metadata: Any = content.get("metadata")
    if not isinstance(metadata, dict):
        return None
    info = metadata.get("info")
    generator = info.get("generator") if isinstance(info, dict) else None
    return metadata.get("written_by") or (generator.get("name") if isinstance(generator, dict) else None)


_TESTS: tuple[Callable[[Path, bytes], bool], ...] = (_page, _parquet, _tensors, _csv, _dot, _document)
