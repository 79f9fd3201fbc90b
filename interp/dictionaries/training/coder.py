"""`Coders`: the parameters that are trained, and what they compute of activations scaled so that E|x| = sqrt(d)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter

from interp.dictionaries.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.training.settings import Settings, generator
from interp.dictionaries.training.streams import Activations
from interp.sites import Site

MEMORY = 0.99
"""Of the running mean of BatchTopK's threshold, by step."""


class _Jump(torch.autograd.Function):
    """x 1[x > t]; its gradient in t by a rectangle of width w: -(t / w) 1[|x - t| < w / 2] (Rajamanoharan et al.)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x, t)
        ctx.width = width
        return x * (x > t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, t = ctx.saved_tensors
        near = (x - t).abs() < ctx.width / 2
        return grads[0] * (x > t), -(grads[0] * near * t / ctx.width).sum(0), None


class _Step(torch.autograd.Function):
    """1[x > t]; its gradient in t by the same rectangle: -(1 / w) 1[|x - t| < w / 2]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x, t)
        ctx.width = width
        return (x > t).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        x, t = ctx.saved_tensors
        return None, -(grads[0] * ((x - t).abs() < ctx.width / 2) / ctx.width).sum(0), None


@dataclass(frozen=True)
class Codes:
    """What a member makes of its input: (x - c) W_enc before biases, the argument of its gate, its features."""

    a: Float[Tensor, "token feature"]
    before: Float[Tensor, "token feature"]
    f: Float[Tensor, "token feature"]


class Coder(Module):
    """One member. Decoders are used at unit norm over all their sites, so that gradients keep them there."""

    silent: Tensor
    threshold: Tensor
    weight: Tensor
    active: Tensor

    def __init__(self, d_in: int, outs: int, d_out: int, *, tied: bool, settings: Settings, member: int) -> None:
        super().__init__()
        random, n = generator("parameters", settings.seed, member), settings.n_features
        w_dec = torch.randn(n, outs, d_out, generator=random)
        w_dec /= w_dec.norm(dim=(1, 2), keepdim=True)
        w_enc = w_dec[:, 0] if tied else torch.nn.functional.normalize(torch.randn(n, d_in, generator=random), dim=1)
        self.settings, self.tied = settings, tied
        self.w_enc, self.w_dec = Parameter(w_enc.mT.contiguous().clone()), Parameter(w_dec)
        self.b_enc, self.b_dec = Parameter(torch.zeros(n)), Parameter(torch.zeros(d_out))
        self.skip = Parameter(torch.zeros(d_in, d_out)) if settings.skip and not tied else None
        self.gate = Parameter(torch.zeros(n)) if settings.kind == "gated" else None
        self.scale = Parameter(torch.zeros(n)) if settings.kind == "gated" else None
        jump = settings.kind == "jumprelu"
        self.log_threshold = Parameter(torch.full((n,), settings.threshold).log()) if jump else None
        self.register_buffer("threshold", torch.tensor(-1.0))  # of BatchTopK; below 0 before the first batch
        self.register_buffer("silent", torch.zeros(n, dtype=torch.long))  # tokens since a feature was last active
        self.register_buffer("weight", torch.tensor(settings.weight))  # of the sparsity loss
        self.register_buffer("active", torch.tensor(float(settings.k)))  # L0 of the last batch

    @torch.no_grad()
    def centre(self, x: Tensor, y: Tensor) -> None:
        """Begin at the means of what is read and of what is written."""
        self.b_dec.copy_(y.mean(0))
        if not self.tied:
            self.b_enc.copy_(-x.mean(0) @ self.w_enc)

    @property
    def directions(self) -> Float[Tensor, "feature out d_out"]:
        """W_dec at unit norm."""
        return self.w_dec / self.w_dec.norm(dim=(1, 2), keepdim=True)

    @property
    def dead(self) -> Tensor:
        """Whether each feature is."""
        return self.silent >= self.settings.dead_after

    def activation(self, *, training: bool = False) -> Activation:
        """As it stands; BatchTopK without its threshold while training."""
        kind, k = self.settings.kind, self.settings.k
        if kind == "topk":
            return TopK(k)
        if kind == "batchtopk":
            return BatchTopK(k, None if training else self.threshold.detach().clamp(min=0))
        if self.log_threshold is not None:
            return JumpReLU(self.log_threshold.exp())
        if self.gate is not None and self.scale is not None:
            return Gated(self.gate, self.scale)
        return ReLU()

    def encode(self, x: Float[Tensor, "token d_in"]) -> Codes:
        """Features; while training, with gradients to thresholds, and a note of which are active."""
        a = (x - self.b_dec if self.tied else x) @ self.w_enc
        before = a + (self.b_enc if self.gate is None else self.gate)
        if self.log_threshold is not None:
            f = _Jump.apply(before.relu(), self.log_threshold.exp(), self.settings.bandwidth)
        else:
            f = self.activation(training=self.training)(a, self.b_enc)
        assert isinstance(f, Tensor)
        if self.training:
            self._note(f.detach())
        return Codes(a, before, f)

    def decode(self, f: Float[Tensor, "token feature"], x: Float[Tensor, "token d_in"]) -> Tensor:
        """What features write, [token out d_out]; constants and skip at the first site."""
        w = self.directions
        y = (f @ w.flatten(1)).unflatten(1, w.shape[1:])
        constant = self.b_dec if self.skip is None else self.b_dec + x @ self.skip
        return torch.cat([y[:, :1] + constant.view(-1, 1, w.shape[2]), y[:, 1:]], 1)

    def l0(self, codes: Codes) -> Tensor:
        """Mean active features of a token, with a gradient to the thresholds of JumpReLU."""
        if self.log_threshold is None:
            return (codes.f > 0).sum(-1).float().mean()
        steps = _Step.apply(codes.before, self.log_threshold.exp(), self.settings.bandwidth)
        assert isinstance(steps, Tensor)
        return steps.sum(-1).mean()

    @torch.no_grad()
    def _note(self, f: Tensor) -> None:
        self.silent.add_(len(f)).masked_fill_((f > 0).any(0), 0)
        self.active.copy_((f > 0).sum(1).float().mean())
        if self.settings.kind == "batchtopk" and bool((f > 0).any()):
            least = f[f > 0].min()
            self.threshold.copy_(least if self.threshold < 0 else MEMORY * self.threshold + (1 - MEMORY) * least)


@dataclass(frozen=True)
class Passage:
    """A batch gone through: scaled inputs by member, codes by member, scaled targets and what is written by site."""

    x: list[Tensor]
    codes: list[Codes]
    y: list[Tensor]
    y_hat: list[Tensor]


class Coders(Module):
    """All members, and the scales of the sites, by which E|x| = sqrt(d)."""

    def __init__(self, sample: Activations, outs: tuple[tuple[int, ...], ...], settings: Settings) -> None:
        super().__init__()
        self.outs, self.settings = outs, settings
        tied = len(sample.x) == 1 and sample.x[0] is sample.y[0]
        self.members = ModuleList(
            Coder(x.shape[1], len(o), sample.y[o[0]].shape[1], tied=tied, settings=settings, member=i)
            for i, (x, o) in enumerate(zip(sample.x, outs, strict=True))
        )
        for name, parts in (("scale_in", sample.x), ("scale_out", sample.y)):
            scales = [x.shape[1] ** 0.5 / x.norm(dim=1).mean() for x in parts]
            self.register_buffer(name, torch.stack(scales).float())
        self.to(sample.x[0].device)
        for coder, x, o in zip(self.coders, self._scaled(sample.x, "in"), outs, strict=True):
            coder.centre(x, self._scaled(sample.y, "out")[o[0]])

    @property
    def coders(self) -> list[Coder]:
        """The members."""
        return [m for m in self.members if isinstance(m, Coder)]

    def forward(self, batch: Activations) -> Passage:
        """Features of each member, and at each site the sum of what members write there."""
        x, y = self._scaled(batch.x, "in"), self._scaled(batch.y, "out")
        codes = [coder.encode(part) for coder, part in zip(self.coders, x, strict=True)]
        written: list[Tensor | float] = [0.0] * len(y)
        for coder, c, part, outs in zip(self.coders, codes, x, self.outs, strict=True):
            decoded = coder.decode(c.f, part)
            for i, out in enumerate(outs):
                written[out] = written[out] + decoded[:, i]
        return Passage(x, codes, y, [w for w in written if isinstance(w, Tensor)])

    @torch.no_grad()
    def to_unit_norm(self) -> None:
        """Divide every decoder by its length."""
        for coder in self.coders:
            coder.w_dec.copy_(coder.directions)

    @torch.no_grad()
    def dictionary(self, member: int, site_in: Site | None, sites_out: tuple[Site, ...]) -> Dictionary:
        """A member as a value that reads and writes activations as they are.

        With s and t the scales of what is read and first written, features are divided by t, which leaves decoders of
        unit norm: W_enc s / t, b_enc / t, thresholds / t, W_dec, b_dec / t, skip s / t. Decoders of later sites, of
        scale u, are multiplied by t / u.
        """
        coder, outs = self.coders[member], list(self.outs[member])
        scale_in, scale_out = self.get_buffer("scale_in"), self.get_buffer("scale_out")
        s, t = scale_in[member], scale_out[outs[0]]
        w_dec = coder.directions * (t / scale_out[outs])[:, None]
        a = coder.activation()
        scaled = {
            n: (x if n == "scale" else x / t).detach().clone() for n, x in a.tensors.items()
        }  # scale: an exponent
        return Dictionary(
            w_enc=(coder.w_enc * s / t).clone(),
            w_dec=(w_dec if len(outs) > 1 else w_dec[:, 0]).clone(),
            b_enc=(coder.b_enc / t).clone(),
            b_dec=(coder.b_dec / t).clone(),
            activation=type(a)(**{"k": coder.settings.k} | scaled) if hasattr(a, "k") else type(a)(**scaled),
            site_in=site_in,
            sites_out=sites_out,
            centred=coder.tied,
            skip=None if coder.skip is None else (coder.skip * s / t).clone(),
        )

    def _scaled(self, parts: tuple[Tensor, ...], side: str) -> list[Tensor]:
        return [x * s for x, s in zip(parts, getattr(self, f"scale_{side}"), strict=True)]
