"""Laws of what is captured: shapes, and the sums of the residual stream, which leave no room for a wrong place."""

from __future__ import annotations

from interp.measurement.checks.laws.subject import EXACT, Subject, close, require, run_logits
from interp.model import Reducer
from interp.sites import DIVISORS, KINDS, PER_HEAD, SQUARE, Site


def captures_have_the_declared_shapes(subject: Subject) -> None:
    """A captured site has the shape that `interp.sites.KINDS` states, under the site of each layer as its key."""
    model, (batch, pos) = subject.model, subject.batch.ids.shape
    info, kinds = model.info, subject.kinds()
    require({"resid_pre", "resid_post", "logits"} <= set(kinds), f"too little can be captured: {', '.join(kinds)}")
    heads = dict.fromkeys(PER_HEAD, info.n_heads) | dict.fromkeys(("k", "v"), info.n_kv_heads)
    widths = {
        "q": info.d_head,
        "k": info.d_head,
        "logits": info.n_logits or info.d_vocab,
        **dict.fromkeys(DIVISORS, 1),
        **dict.fromkeys(("v", "z", "mlp_pre", "mlp_up", "mlp_post", "router_logits", "token_embed"), None),
    }
    for kind in kinds:
        run = model.run(subject.batch, capture=[kind])
        keys = [Site(kind) if layer is None else Site(kind, layer) for layer in info.layers_of(Site(kind))]
        require(list(run.acts) == keys, f"{kind}: captured as {list(run.acts)}, not as {keys}")
        form = [batch, heads[kind], pos, pos] if kind in SQUARE else [batch, pos]
        form += [heads[kind]] if kind in PER_HEAD and kind not in SQUARE else []
        form += [] if kind in SQUARE else [widths.get(kind, info.d_model)]
        for site, x in run.acts.items():
            wrong = len(x.shape) != len(form) or any(n not in (None, m) for n, m in zip(form, x.shape, strict=True))
            require(not wrong, f"{site}: shape {tuple(x.shape)}; {KINDS[kind]} is {tuple(form)} here")


def the_residual_is_the_sum_of_what_is_added(subject: Subject) -> None:
    """resid_post = resid_pre + attn_out + mlp_out at each layer, and is the next layer's resid_pre."""
    model, real, kinds = subject.model, subject.real, subject.kinds()
    captures = ["embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "logits"]
    middle = "resid_mid" in kinds
    run = model.run(subject.batch, capture=[*captures, *(["resid_mid"] if middle else [])])
    at = {site: x.detach().cpu()[real] for site, x in run.acts.items()}
    close(at[Site("embed")], at[Site("resid_pre", 0)], "embed, against L0.resid_pre", share=EXACT)
    for i in subject.layers:
        pre, post, attn, mlp = (at[Site(kind, i)] for kind in ("resid_pre", "resid_post", "attn_out", "mlp_out"))
        close(post, pre + attn + mlp, f"L{i}.resid_post, against resid_pre + attn_out + mlp_out")
        if middle:
            close(at[Site("resid_mid", i)], pre + attn, f"L{i}.resid_mid, against resid_pre + attn_out")
        if i:
            close(pre, at[Site("resid_post", i - 1)], f"L{i}.resid_pre, against L{i - 1}.resid_post", share=EXACT)
    close(
        at[Site("logits")],
        run_logits(run).detach().cpu()[real],
        "the site logits, against the run's logits",
        share=EXACT,
    )


def heads_and_a_bias_are_attention(subject: Subject) -> None:
    """attn_out less the writes of the heads is one vector, the same at every token."""
    run = subject.model.run(subject.batch, capture=["head_out", "attn_out"])
    for i in subject.model.info.attention_layers:
        attn, heads = (run[Site(kind, i)].detach().cpu()[subject.real] for kind in ("attn_out", "head_out"))
        rest = attn - heads.sum(1)
        close(rest, rest[:1].expand_as(rest), f"L{i}.attn_out less its heads", scale=float(heads.abs().max()))


def heads_and_positions_are_narrowed(subject: Subject) -> None:
    """`L1H3.z@-1` is head 3 of `L1.z` at each prompt's last real token; a reducer sees what is captured without it."""
    model, batch, last = subject.model, subject.batch, subject.last
    whole = model.run(batch, capture=[f"L{last}.z", f"L{last}.resid_post"])
    z, resid = whole[f"L{last}.z"], whole[f"L{last}.resid_post"]
    captures: dict[Site | str, Reducer | None] = {
        f"L{last}H1.z": None,
        f"L{last}H1.z@-1": None,
        f"L{last}.resid_post@0": None,
        "resid_pre": lambda x: x[0],
    }
    part = model.run(batch, capture=captures)
    rows, ends = range(len(batch.ids)), batch.first + batch.mask.sum(1) - 1
    close(part[f"L{last}H1.z"], z[:, :, 1], "one head of z", share=EXACT)
    close(part[f"L{last}H1.z@-1"], z[list(rows), ends, 1], "one head of z at the end", share=EXACT)
    close(part[f"L{last}.resid_post@0"], resid[list(rows), batch.first], "resid_post at the start", share=EXACT)
    stream = model.run(batch, capture=["resid_pre"])
    close(part["L0.resid_pre"], stream["L0.resid_pre"][0], "a reducer's value", share=EXACT)


LAWS = (
    captures_have_the_declared_shapes,
    the_residual_is_the_sum_of_what_is_added,
    heads_and_a_bias_are_attention,
    heads_and_positions_are_narrowed,
)
