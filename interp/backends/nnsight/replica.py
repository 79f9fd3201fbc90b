"""Anatomy of a model whose weights are on a server, from a short replica of its configuration.

The replica has the shortest prefix of layers that shows every kind of layer there is (by the configuration's layer
types and by the modules a layer is made of), random weights and few tokens. It is observed as any model is; each layer
of the model takes over the parts of a replica layer that is made of the same modules.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from interp.backends.hf.anatomy import Anatomy, AttentionPart, observe
from interp.backends.hf.embeddings import Embeddings
from interp.backends.hf.read_norms import read_norm
from interp.backends.hf.stream import StreamPart
from interp.backends.nnsight.steps import Taps, execution_order
from interp.errors import BackendError
from interp.numerics import evaluating

Part = TypeVar("Part", AttentionPart, StreamPart)
VOCABULARY = 64  # of the replica: token ids take no part in where things are


@dataclass(frozen=True, eq=False)
class Chart:
    """Chart of a model without its weights.

    Attributes:
        anatomy: of the model's own modules (perhaps without weights).
        paths: of its modules, by id.
        order: when a module's input and output come by, (layer, rank).
        norms: eps and whether the mean is taken off, by path of the norm.
    """

    anatomy: Anatomy
    paths: dict[int, str]
    order: dict[tuple[str, str], tuple[int, int]]
    norms: dict[str, tuple[float, bool]]


def chart(module: Any) -> Chart:
    """The chart of a model: observed on itself where its weights are here, on a replica otherwise.

    Raises:
        BackendError: no replica can be made, it is not a decoder, or its layers are not made as the model's are.
    """
    if not any(p.is_meta for p in module.parameters()):
        return _chart(module, module, tuple(range(_text(module.config).num_hidden_layers)))
    blocks, n_layers = _blocks(module), int(_text(module.config).num_hidden_layers)
    kinds = _kinds(module.config, blocks)
    length = max([kinds.index(kind) + 1 for kind in set(kinds)] + [min(2, n_layers)])
    small = short_replica(module, length)
    theirs = _kinds(small.config, _blocks(small))
    for layer in range(length):
        if theirs[layer] != kinds[layer]:
            raise BackendError(
                f"the weights are not here, and layer {layer} of a replica of the same configuration with {length} "
                f"layers is not made of the same modules: {_first_difference(theirs[layer], kinds[layer])}"
            )
    same = [max(j for j in range(length) if theirs[j] == kind) for kind in kinds]
    return _chart(module, small, tuple(i if i < length else same[i] for i in range(n_layers)))


def short_replica(module: Any, length: int) -> Any:
    """A model of the same class and configuration with fewer layers and tokens, random weights.

    Raises:
        BackendError: the configuration cannot be cut, or the class cannot be made of it.
    """
    config = copy.deepcopy(module.config)
    text = _text(config)
    full = int(text.num_hidden_layers)
    for name, value in list(text.to_dict().items()):
        if isinstance(value, list | tuple) and len(value) == full and hasattr(text, name):
            setattr(text, name, value[:length])  # layer_types and whatever else is told layer by layer
    for each in {id(config): config, id(text): text}.values():
        for name in [n for n in each.to_dict() if n.endswith("_token_id")]:
            setattr(each, name, None)
    text.num_hidden_layers, text.vocab_size = length, min(VOCABULARY, int(text.vocab_size))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            small = type(module)(config).float()
            for parameter in small.parameters():  # none stays at a value (one, zero) that hides what it does
                parameter.add_((0.3 if parameter.ndim == 1 else 0.02) * torch.randn_like(parameter))
    except Exception as error:
        raise BackendError(
            f"the weights are not here, and no replica of {type(module).__name__} with {length} of its {full} layers "
            f"can be made to find its parts on: {type(error).__name__}: {error}"
        ) from error
    return small


def _chart(module: Any, replica: Any, templates: tuple[int, ...]) -> Chart:
    """The chart of `module` from that of `replica`, whose layer `templates[i]` stands for layer i."""
    with evaluating(replica):
        observation = observe(replica)
        ranks = execution_order(replica, Taps(observation))
    theirs = {id(m): path for path, m in replica.named_modules()}
    stem = theirs[id(observation.blocks)]
    by_id = {i: (path, m) for i, path in theirs.items() for m in [replica.get_submodule(path)]}

    def path_at(path: str, layer: int) -> str:
        return re.sub(rf"^{re.escape(stem)}\.{templates[layer]}(?=\.|$)", f"{stem}.{layer}", path)

    order = {}
    for (key, port), rank in ranks.items():
        if key not in by_id:
            continue
        path = by_id[key][0]
        for layer in (i for i, j in enumerate(templates) if f"{path}.".startswith(f"{stem}.{j}.")):
            order[path_at(path, layer), port] = (layer, rank)
    width, norms = int(_text(module.config).hidden_size), {}
    parts, stream = [], []
    for layer, template in enumerate(templates):
        move = _mover(module, theirs, lambda path, layer=layer: path_at(path, layer))
        part, flow = observation.part(template), observation.stream[template]
        around = [flow.mlp_norm, flow.mlp_norm_after]
        if part is not None:
            parts.append(replace(_move_part(part, move), layer=layer))
            around += [part.norm_before, part.norm_after]
        for norm in (norm for norm in around if norm is not None):
            read = read_norm(norm, width)
            norms[path_at(theirs[id(norm)], layer)] = (read.eps, read.centred)
        own = _move_part(flow, move)
        why = {k: re.sub(rf"\blayer {template}\b", f"layer {layer}", v) for k, v in own.missing.items()}
        stream.append(replace(own, missing=why))
    outside = _mover(module, theirs, lambda path: path)
    if observation.final_norm is not None:
        read = read_norm(observation.final_norm, width)
        norms[theirs[id(observation.final_norm)]] = (read.eps, read.centred)
    anatomy = replace(
        observation,
        blocks=outside(observation.blocks),
        attention=tuple(parts),
        unembed=None if observation.unembed is None else outside(observation.unembed),
        final_norm=None if observation.final_norm is None else outside(observation.final_norm),
        stream=tuple(stream),
        embeds=Embeddings(),  # no part of a remote trace
    )
    return Chart(anatomy, {id(m): path for path, m in module.named_modules()}, order, norms)


def _mover(module: nn.Module, theirs: dict[int, str], rename: Callable[[str], str]) -> Callable[[nn.Module], Any]:
    def move(part: nn.Module) -> nn.Module:
        return module.get_submodule(rename(theirs[id(part)]))

    return move


def _move_part(part: Part, move: Callable[[nn.Module], Any]) -> Part:
    """The same part with other modules."""
    new_fields: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, nn.Module):
            new_fields[field.name] = move(value)
        elif isinstance(value, tuple):
            new_fields[field.name] = tuple(move(m) for m in value)
    return replace(part, **new_fields)


def _text(config: Any) -> Any:
    return config.get_text_config()


def _blocks(module: Any) -> nn.ModuleList:
    """The list of layers: the outermost list that has as many as the configuration says."""
    n_layers = int(_text(module.config).num_hidden_layers)
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise BackendError(f"the weights are not here, and no list of {n_layers} layers among the modules")
    return lists[0]


def _kinds(config: Any, blocks: nn.ModuleList) -> list[tuple[Any, ...]]:
    """Kind of each layer: its type in the configuration, with its modules and the sizes of their parameters."""
    types = getattr(_text(config), "layer_types", None) or [None] * len(blocks)
    return [(kind, *_makeup(block)) for kind, block in zip(types, blocks, strict=True)]


def _makeup(block: nn.Module) -> tuple[tuple[Any, ...], ...]:
    sizes_by_path = []
    for path, m in block.named_modules():
        sizes = tuple((name, tuple(p.shape)) for name, p in m.named_parameters(recurse=False))
        sizes_by_path.append((path, type(m).__name__, *sizes))
    return tuple(sizes_by_path)


def _first_difference(theirs: tuple[Any, ...], ours: tuple[Any, ...]) -> str:
    pairs = [(a, b) for a, b in zip(theirs, ours, strict=False) if a != b]
    return f"{pairs[0][0]} against {pairs[0][1]}" if pairs else f"{len(theirs)} modules against {len(ours)}"
