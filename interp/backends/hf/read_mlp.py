"""W_in and W_gate of an MLP, found by what they do to its neurons; W_out, and the norms around.

A projection is W_in behind a gate when the neurons are multiplied by whatever its outputs are multiplied by, each by
its own; a gate, or W_in without one, when an output changes its own neuron and no other. One module may hold both, half
and half or by turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.attention import StopForward
from interp.errors import BackendError
from interp.numerics import device_of, exactly, input_dtype, wide
from interp.weights.mlp import MLPWeights
from interp.weights.stream import Reads, Writes

Change = tuple[nn.Module, Callable[[Tensor], Tensor]]
NO_MLP = "has no MLP whose neurons one projection takes"


@dataclass(frozen=True, eq=False)
class Probe:
    """One layer of a model, to be run with changes.

    Attributes:
        block: the layer. last: the projection that takes the neurons.
        run: a pass of the model on a few tokens.
        skip: modules that are none of the model's own.
    """

    block: nn.Module
    last: nn.Module
    run: Callable[[], object]
    skip: Callable[[nn.Module], bool] = lambda module: False

    def neurons(self, change: Change | None = None) -> Float[Tensor, "token d_mlp"]:
        """What the last projection takes, with the outputs of a module changed."""
        taken: list[Tensor] = []

        def stop(module: nn.Module, args: tuple) -> None:
            taken.append(args[0].detach())
            raise StopForward

        handles = [self.last.register_forward_pre_hook(stop)]
        if change is not None:
            changed, function = change

            def replace_output(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
                return function(output)

            handles.append(changed.register_forward_hook(replace_output))
        try:
            self.run()
        except StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not taken:
            raise BackendError("a pass of the model did not come by the projection that takes an MLP's neurons")
        return wide(taken[0].flatten(0, -2))

    def candidates(self, width: int, d_model: int) -> Iterator[nn.Module]:
        """Modules from the stream's width to the neurons', or twice as many; what holds others before them."""
        sizes: dict[str, int] = {}
        handles = []
        for path, module in self.block.named_modules():
            if module is not self.block and not self.skip(module):
                handles.append(module.register_forward_hook(_widths(sizes, path)))
        try:
            self.neurons()
        finally:
            for handle in handles:
                handle.remove()
        modules = dict(self.block.named_modules())
        for path in sorted((p for p, out in sizes.items() if out in (width, 2 * width)), key=lambda p: p.count(".")):
            if _affine(modules[path], d_model):
                yield modules[path]


def read_mlp(layer: int, probe: Probe | None, writes: Writes, reads: Reads, d_model: int) -> MLPWeights:
    """Weights of a layer's MLP.

    Raises:
        BackendError: no one set of neurons (a mixture of experts), or no projections that act on them one by one.
    """
    write = writes.mlp
    if write is None or probe is None:
        why = writes.missing.get("mlp_post") or writes.missing.get("mlp_out") or f"layer {layer} {NO_MLP}"
        raise BackendError(f"no W_in and W_out: {why}")
    neurons = probe.neurons()
    width = neurons.shape[-1]
    linear, gates = [], []
    for module in probe.candidates(width, d_model):
        for columns in _slices(_width(module, d_model), width):
            kind = _kind(probe, module, columns, neurons)
            if kind:
                (linear if kind == "linear" else gates).append(_affine_map(module, d_model, columns))
        if gates and (linear or len(gates) > 1):
            break
    if len(gates) + len(linear) > 2 or len(gates) > 1 or not gates + linear:
        raise BackendError(
            f"layer {layer}: no W_in: {len(linear)} projections act on neurons linearly and {len(gates)} otherwise, "
            "each on its own; looked for one of each, or one in all"
        )
    (w_in, b_in), *_ = linear or gates
    gate = gates[0] if linear and gates else linear[1] if len(linear) > 1 else None
    norm = None if write.norm is None else replace(write.norm, gain=write.scale * write.norm.gain)
    norm = None if norm is None else replace(norm, bias=write.scale * norm.bias).to("cpu")
    plain = replace(write, norm=None, scale=write.scale if norm is None else 1.0)
    ones = torch.ones(1, 1, device=device_of(write.projection))
    return MLPWeights(
        layer=layer,
        w_in=w_in,
        w_gate=None if gate is None else gate[0],
        w_out=plain.matrix(width).cpu(),
        b_in=b_in,
        b_gate=None if gate is None else gate[1],
        b_out=plain.bias(width, ones)[0].cpu(),
        norm=None if reads.mlp is None else reads.mlp.to("cpu"),
        norm_after=norm,
    )


def _widths(sizes: dict[str, int], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            sizes[path] = output.shape[-1]

    return hook


def _affine_map(module: nn.Module, d_model: int, columns: slice) -> tuple[Tensor, Tensor]:
    """(W [d_model width], b [width]) of some of a module's outputs."""
    rows = torch.cat([torch.zeros(1, d_model), torch.eye(d_model)])
    x = wide(exactly(module, rows.to(device_of(module), input_dtype(module)))).cpu()[:, columns]
    return x[1:] - x[0], x[0]


def _affine(module: nn.Module, d_model: int) -> bool:
    """Whether a module is an affine map of vectors as wide as the stream."""
    if next(module.parameters(), None) is None:
        return False
    x = torch.randn(2, d_model, generator=torch.Generator().manual_seed(7))
    rows = torch.stack([torch.zeros(d_model), x[0], x[1], x[0] + x[1]])
    try:
        zero, first, second, both = wide(exactly(module, rows.to(device_of(module), input_dtype(module)))).double()
    except (RuntimeError, TypeError, ValueError):  # takes something else
        return False
    return bool((both - first - second + zero).abs().max() <= 1e-2 * both.abs().max())


def _width(module: nn.Module, d_model: int) -> int:
    return exactly(module, torch.zeros(1, d_model).to(device_of(module), input_dtype(module))).shape[-1]


def _slices(size: int, width: int) -> list[slice]:
    """Which outputs may be one for each neuron."""
    if size == width:
        return [slice(None)]
    return [slice(0, width), slice(width, None), slice(0, None, 2), slice(1, None, 2)]


def _kind(probe: Probe, module: nn.Module, columns: slice, neurons: Float[Tensor, "token d_mlp"]) -> str | None:
    """What some outputs of a module are to the neurons: "linear", "gate", or nothing of the kind."""
    width = neurons.shape[-1]
    generator = torch.Generator().manual_seed(8)
    factors = torch.tensor([-1.0, 2.0, -0.5])[torch.randint(3, (width,), generator=generator)]
    some = torch.rand(width, generator=generator) < 0.5

    def times(by: Tensor) -> Callable[[Tensor], Tensor]:
        def change(output: Tensor) -> Tensor:
            output = output.clone()
            output[..., columns] = output[..., columns] * by.to(output)
            return output

        return change

    slack = 1e-3 * float(neurons.abs().max())
    scaled = probe.neurons((module, times(factors)))
    if float((scaled - neurons * factors.to(neurons)).abs().max()) <= slack:
        return "linear"
    partly = probe.neurons((module, times(torch.where(some, factors, 1.0))))
    moved = (partly - neurons).abs().amax(0).cpu()
    own = bool(moved[some].max() > slack) and bool(moved[~some].max() <= slack)
    return "gate" if own else None
