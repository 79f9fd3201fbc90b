"""One of the processes of a tensor-parallel model: python two_processes.py FOLDER..., with torchrun's environment.

Each folder holds a model; it is loaded in parts and, for comparison, whole. Fails where the two differ.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing import assert_close

import interp
from interp.attention import Entropy, Mean, Offset, Received, TopKeys
from interp.batch import Batch
from interp.edits import Ablate, Add, ForcePattern, KnockOut, Noise, Replace, Scale
from interp.errors import BackendError, SiteError
from interp.sites import KINDS, SQUARE
from interp.storage import capture_to

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
BATCH = Batch.of([[5, 9, 3, 40, 17, 22, 9, 3], [7, 61, 30, 7, 61]], side="left")


def available(model: interp.Model) -> list[str]:
    """Kinds that the architecture has."""
    found = []
    for kind in KINDS:
        try:
            model.run(BATCH, capture=[kind])
        except SiteError:
            continue
        found.append(kind)
    return found


def compare_runs(parts: interp.Model, whole: interp.Model) -> float:
    """Every site and the logits; the largest difference."""
    here = available(parts)
    kinds = [kind for kind in available(whole) if kind in here]
    assert not {*available(whole)} - {*kinds, "mlp_pre", "mlp_up"}  # refused there: each process has some of them
    ours, theirs = (m.run(BATCH, capture=kinds) for m in (parts, whole))
    assert ours.acts.keys() == theirs.acts.keys()
    for site, x in theirs.acts.items():
        y = ours[site]
        real = BATCH.mask if site.kind not in SQUARE else slice(None)
        assert_close(y[real], x[real], **TOLERANCE, msg=lambda text, site=site: f"{site}: {text}")
    layer = whole.info.n_layers - 1
    again = parts.run(BATCH, start=(layer, theirs[f"L{layer}.resid_pre"])).logits
    assert_close(again[BATCH.mask], theirs.logits[BATCH.mask], **TOLERANCE)
    return float((ours.logits - theirs.logits)[BATCH.mask].abs().max())


def compare_edits(parts: interp.Model, whole: interp.Model) -> None:
    """Edits of heads and neurons, those of the other process among them."""
    last, plain = whole.info.n_heads - 1, whole.run(BATCH).logits
    d, pattern = whole.info.d_head, whole.run(BATCH, capture=["L0.pattern"])["L0.pattern"]
    edits = [
        *(Ablate(f"L0H{h}.z", rows=1) for h in (0, last)),
        Scale(f"L1H{last}.z", 2.0),
        Scale(f"L1H{last}.head_out", -1.0),
        Add(f"L0H{last}.q", torch.linspace(-1, 1, d)),
        Replace(f"L0H{whole.info.n_kv_heads - 1}.v@2", torch.ones(d)),
        Noise("L0.k", 0.5, seed=3),
        KnockOut(f"L0H{last}.pattern", keys=0),
        ForcePattern("L0.pattern", pattern.roll(1, 1)),
        Add("L1.mlp_post", torch.linspace(-1, 1, 96)),  # a multiple of it would be lost in a norm behind the MLP
        Ablate("L0.resid_post@-1"),
    ]
    for edit in [[e] for e in edits] + [edits]:
        ours, theirs = (m.run(BATCH, edits=edit).logits[BATCH.mask] for m in (parts, whole))
        assert_close(ours, theirs, **TOLERANCE, msg=lambda text, e=edit[0]: f"{e}: {text}")
        assert (theirs - plain[BATCH.mask]).abs().max() > 1e-4, edit[0]
    ours, theirs = (m.generate(BATCH, edits=edits[:4], max_new_tokens=3) for m in (parts, whole))
    assert torch.equal(ours, theirs)


def compare_statistics(parts: interp.Model, whole: interp.Model) -> None:
    """Attention statistics and means, of all heads."""
    rows = torch.tensor([[6], [7]])
    asked = {"previous": Mean(Offset(1)), "entropy": Entropy(), "received": Received(), "top": TopKeys(rows, k=2)}
    ours, theirs = (m.attention(BATCH, asked) for m in (parts, whole))
    for name in asked:
        assert_close(ours[name], theirs[name], **TOLERANCE, equal_nan=True)
    assert_close(parts.mean(BATCH), whole.mean(BATCH), **TOLERANCE)


def compare_stored(parts: interp.Model, whole: interp.Model, folder: Path) -> None:
    """What one process writes, both can read."""
    store = capture_to(parts, [BATCH], ["L1.z"], folder)
    assert_close(store.get("L1.z", 0), whole.run(BATCH, capture=["L1.z"])["L1.z"], **TOLERANCE)


def refusals(parts: interp.Model) -> None:
    """What is not gathered says so."""
    for call in (parts.weights, lambda: parts.run(BATCH, gradients=True)):
        try:
            call()
        except BackendError as error:
            assert "tensor parallelism" in str(error), error
        else:
            raise AssertionError("not refused")


def main() -> None:
    """Compare every model."""
    torch.set_num_threads(1)
    for folder in sys.argv[1:]:
        parts, whole = interp.load(folder, tensor_parallel=True), interp.load(folder)
        assert parts.info == whole.info, (parts.info, whole.info)
        before = {name: id(m.forward) for name, m in parts.torch_module.named_modules() if "forward" in m.__dict__}
        difference = compare_runs(parts, whole)
        compare_edits(parts, whole)
        compare_statistics(parts, whole)
        compare_stored(parts, whole, Path(folder) / "acts")
        refusals(parts)
        after = {name: id(m.forward) for name, m in parts.torch_module.named_modules() if "forward" in m.__dict__}
        assert before == after
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in parts.torch_module.modules())
        sys.stdout.write(f"{whole.info.family}: {dist.get_world_size()} processes, logits within {difference:.1e}\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
