"""Laws of attention: patterns mix values, and statistics are of the patterns that a run captures."""

from __future__ import annotations

import torch

from interp.attention import Distance, Entropy, KeyMass, Offset, Rows
from interp.edits import KnockOut
from interp.measurement.checks.laws.subject import EXACT, Subject, close, require
from interp.sites import Site


def a_pattern_mixes_values_into_z(subject: Subject) -> None:
    """z = pattern v for every query head and the key-value head of its group; rows of a softmax sum to one."""
    model, info = subject.model, subject.model.info
    run = model.run(subject.batch, capture=["pattern", "v", "z"])
    for i in info.attention_layers:
        pattern, v, z = (run[Site(kind, i)].detach().cpu() for kind in ("pattern", "v", "z"))
        mixture = torch.einsum("bhqk,bkhd->bqhd", pattern, v.repeat_interleave(info.n_heads // info.n_kv_heads, 2))
        close(mixture[subject.real], z[subject.real], f"L{i}: pattern v, against z")
        sums = pattern.sum(-1).transpose(1, 2)[subject.real]
        if info.sink_logits:
            require(bool((sums < 1).all()), f"L{i}.pattern: a row takes more than the sink leaves")
        elif info.softmax_share == 1.0:
            close(sums, torch.ones_like(sums), f"sums of the rows of L{i}.pattern")


def a_key_that_is_knocked_out_gets_nothing(subject: Subject) -> None:
    """After `KnockOut` the pattern is zero there and the other keys take over; other heads are as they were."""
    model, last = subject.model, subject.last
    site = f"L{last}.pattern"
    plain = model.run(subject.batch, capture=[site])[site].detach().cpu()
    cut = model.run(subject.batch, capture=[site], edits=[KnockOut(f"L{last}H1.pattern", queries=-1, keys=0)])[site]
    cut, rows = cut.detach().cpu(), torch.arange(len(plain))
    first = subject.batch.first.cpu()
    end = first + subject.real.sum(1) - 1
    require(not cut[rows, 1, end, first].any(), f"{site} of a query and a key that were knocked out is not zero")
    close(cut[:, 0], plain[:, 0], f"{site} of another head, after a knock-out", share=EXACT)
    rest = plain[rows, 1, end].clone()
    rest[rows, first] = 0.0
    if not model.info.sink_logits and model.info.softmax_share == 1.0:
        close(cut[rows, 1, end], rest / rest.sum(-1, keepdim=True), f"{site} of the other keys, after a knock-out")


def statistics_are_those_of_the_pattern(subject: Subject) -> None:
    """`Model.attention` answers as the captured pattern does: offsets, masses, distances, entropies, rows."""
    model, batch = subject.model, subject.batch
    n = batch.ids.shape[1]
    keys = torch.nn.functional.one_hot(batch.first, n).bool()
    rows = torch.tensor([[2, n - 1]]).expand(len(batch.ids), -1)
    statistics = {
        "offset": Offset(1),
        "mass": KeyMass(keys),
        "distance": Distance(),
        "entropy": Entropy(),
        "rows": Rows(rows),
    }
    if model.info.softmax_share != 1.0:
        del statistics["entropy"]  # of what does not sum to one there is none
    answers = model.attention(batch, statistics)
    require(answers.layers == model.info.attention_layers, f"answers of layers {answers.layers}")
    pattern = model.run(batch, capture=["pattern"]).stack("pattern").detach().cpu()
    away = (torch.arange(n)[:, None] - torch.arange(n)).to(pattern)
    from_pattern = {
        "offset": torch.nn.functional.pad(pattern.diagonal(-1, -2, -1), (1, 0)),
        "mass": torch.einsum("lbhqk,bk->lbhq", pattern, keys.to(pattern)),
        "distance": (pattern * away).sum(-1),
        "entropy": torch.special.entr(pattern).sum(-1),
    }
    if model.info.sink_logits:  # the sink's slot is an outcome like the others
        from_pattern["entropy"] += torch.special.entr((1 - pattern.sum(-1)).clamp(min=0))
    from_pattern = {name: from_pattern[name] for name in statistics if name in from_pattern}
    real = subject.real[None, :, None].expand(pattern.shape[:-1])
    for name, reference in from_pattern.items():
        finite = torch.isfinite(answers[name]) & real
        require(bool(finite[..., 1:].any()), f"attention statistic {name}: no answer")
        scale = max(1.0, float(reference.abs().max()))
        close(answers[name][finite], reference[finite], f"attention statistic {name}", share=5e-5, scale=scale)
    close(answers["rows"], pattern[:, :, :, [2, n - 1]], "attention statistic rows", scale=1.0)
    last = model.attention(batch, {"offset": Offset(1)}, layers=[subject.last])
    close(last["offset"][0].nan_to_num(), answers["offset"][-1].nan_to_num(), "a statistic of one layer", scale=1.0)


LAWS = (
    a_pattern_mixes_values_into_z,
    a_key_that_is_knocked_out_gets_nothing,
    statistics_are_those_of_the_pattern,
)
