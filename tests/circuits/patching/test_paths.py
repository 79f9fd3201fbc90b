"""Path patching against its definitions, one forward at a time, on every architecture."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import D_VOCAB, SPANNING, tiny

import interp
from circuits.patching.paths import all_edges_exact, path_patching
from circuits.wiring.case import Case
from circuits.wiring.edges import run_edges
from interp.decompose import attribute
from interp.edits import Add, Replace
from interp.errors import SchemaError, SiteError, TaskError
from interp.tasks import metrics
from interp.tasks.prompt import collate

CLOSE = {"atol": 3e-5, "rtol": 1e-4}


def pairs(lengths=(9, 9, 6), seed=0):
    """Random prompts whose corrupted twins differ at every token but the first, one of them shorter."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in lengths:
        clean = torch.randint(3, D_VOCAB, (n,), generator=generator).tolist()
        found.append((clean, [clean[0], *((7 * x + 3) % D_VOCAB for x in clean[1:])]))
    return collate(
        "pairs",
        found,
        answers=[[5 + i] for i in range(len(lengths))],
        wrong=[[20 + i] for i in range(len(lengths))],
        roles=[{} for _ in lengths],
        templates=["random"] * len(lengths),
        corruption="all",
        metric="logit_diff",
    )


@pytest.fixture(params=SPANNING)
def model(request):
    return tiny(request.param)


@pytest.fixture
def case(model):
    return Case.of(model, pairs())


def without(case, senders, receivers):
    """m with the edges removed, less m(clean): one forward of `run_edges`."""
    layout = case.layout
    keep = torch.ones(layout.exists.shape)
    for sender in senders:
        for receiver in receivers:
            keep[layout.sender_index[sender], layout.slot_index[receiver]] = 0
    logits = run_edges(case.model, case.ports, case.task.clean, keep, case.sent_corrupt).logits
    return (case.value(logits) - case.clean).mean().item()


def slots(layout, layer):
    """A query, a key, a value and an MLP of a layer, as names and as slots."""
    group = "H" if layout.group == 1 else "KV"
    found = [(f"L{layer}H1", "q"), (f"L{layer}{group}1", "k"), (f"L{layer}{group}0", "v"), (f"M{layer}", "in")]
    return {name if port == "in" else f"{name}.{port}": (name, port) for name, port in found}


def test_into_the_logits_is_exact_without_a_forward(case):
    table = path_patching(case.model, case.task, senders="nodes").table
    assert table["component"].tolist() == list(case.layout.senders)
    assert_allclose(table["value"], [without(case, [u], [("logits", "in")]) for u in case.layout.senders], **CLOSE)
    last = case.model.info.n_layers - 1
    for i in (1, len(case.layout.senders) - 2):
        gap = (case.sent_corrupt - case.sent_clean)[i]
        logits = case.model.run(case.task.clean, edits=[Add(f"L{last}.resid_post", gap)]).logits
        assert table["value"][i] == pytest.approx((case.value(logits) - case.clean).mean().item(), abs=3e-5)


def test_all_senders_give_the_other_run(case):
    for mode in ("noising", "denoising"):
        for mlps in ("frozen", "live"):
            table = path_patching(case.model, case.task, senders=[case.layout.senders], mlps=mlps, mode=mode).table
            assert_allclose(table["patched"], table["other"], **CLOSE)
            assert_allclose(table["normalised"], 1.0, **CLOSE)
        base = {"noising": case.clean, "denoising": case.corrupt}[mode]
        assert table["base"][0] == pytest.approx(base.mean().item(), abs=3e-5)


def test_effects_with_a_frozen_norm_are_differences_of_attributions(case):
    """And they add up to the effect of all."""
    table = path_patching(case.model, case.task, senders="nodes", final_norm="frozen").table
    expected = torch.zeros(len(case.layout.senders))
    for row in range(len(case)):  # prompt by prompt: attributions are at the end of the row
        task = case.task.select([row])
        clean, corrupt = (
            attribute(case.model, side, task.answers, wrong=task.wrong, heads=True)
            for side in (task.clean, task.corrupt)
        )
        norm, last = case.ports.final_norm, f"L{case.model.info.n_layers - 1}.resid_post"
        ratio = 1.0
        if norm is not None:
            scales = [norm.divisor(case.model.run(s, capture=[last])[last][0, -1]) for s in (task.clean, task.corrupt)]
            ratio = (scales[1] / scales[0]).item()
        for i, name in enumerate(case.layout.senders):
            expected[i] += (_of(corrupt, name) * ratio - _of(clean, name)) / len(case)
    assert_allclose(table["value"], expected, atol=2e-5, rtol=1e-4)
    whole = path_patching(case.model, case.task, senders=[case.layout.senders], final_norm="frozen").table
    assert table["value"].sum() == pytest.approx(whole["value"][0], abs=3e-5)


def _of(attribution, name):
    """What a component adds to the answer; the embedding in all its parts."""
    found = [i for i, c in enumerate(attribution.terms) if _name(c) == name]
    return float(attribution.values[found].sum())


def _name(component):
    return "embed" if component.kind == "pos" else component.name


def test_into_heads_and_mlps_is_the_edge_alone(case):
    senders = ["embed", "L0H0", "M0", ("L0H1", "M0"), ("embed", "L0H2", "L0H3")]
    for name, slot in slots(case.layout, 1).items():
        table = path_patching(case.model, case.task, senders=senders, receivers=[name], batch_size=7).table
        expected = [without(case, (own,) if isinstance(own, str) else own, [slot]) for own in senders]
        assert_allclose(table["value"], expected, **CLOSE, err_msg=name)


def test_receivers_of_several_layers_hear_it_together(case):
    names = [*slots(case.layout, 0), *slots(case.layout, 1), "logits"]
    of = [*slots(case.layout, 0).values(), *slots(case.layout, 1).values(), ("logits", "in")]
    table = path_patching(case.model, case.task, senders=["embed", ("embed", "L0H1")], receivers=names).table
    assert_allclose(table["value"], [without(case, own, of) for own in (["embed"], ["embed", "L0H1"])], **CLOSE)


def wang(case, heads, receivers):
    """The published procedure in two whole forwards: attention held but for senders, then receivers set."""
    model, task, layout = case.model, case.task, case.layout
    layers = range(model.info.n_layers)
    outs = [f"L{i}.attn_out" for i in layers]
    clean = model.run(task.clean, capture=outs)
    edits = []
    for i, out in enumerate(outs):
        mine = [layout.sender_index[h] for h in heads if h.startswith(f"L{i}H")]
        edits.append(Replace(out, clean[out] + (case.sent_corrupt - case.sent_clean)[mine].sum(0)))
    if receivers == ["logits"]:
        return (case.value(model.run(task.clean, edits=edits).logits) - case.clean).mean().item()
    sites = []
    for name in receivers:
        at, _, port = name.partition(".")
        sites.append(f"L{at[1:]}.mlp_in" if not port else f"{at.replace('KV', 'H')}.{port}")
    noted = model.run(task.clean, edits=edits, capture=sites)
    set_to = [Replace(site, noted[site]) for site in sites]
    return (case.value(model.run(task.clean, edits=set_to).logits) - case.clean).mean().item()


def test_with_live_mlps_it_is_the_published_procedure(case):
    senders = ["L0H0", "L0H3", ("L0H1", "L0H5"), ("L0H2", "L1H2")]
    for receivers in (["logits"], *([name] for name in slots(case.layout, 1)), list(slots(case.layout, 1))):
        own = senders if receivers == ["logits"] else senders[:3]
        table = path_patching(case.model, case.task, senders=own, receivers=receivers, mlps="live", batch_size=7).table
        expected = [wang(case, (s,) if isinstance(s, str) else s, receivers) for s in own]
        assert_allclose(table["value"], expected, **CLOSE, err_msg=str(receivers))


def test_live_senders_may_be_mlps_and_the_embedding(case):
    """An MLP or the embedding that stays as it was changes nothing; with no MLP between, both policies agree."""
    for mlps in ("frozen", "live"):
        table = path_patching(case.model, case.task, senders=["M1"], mlps=mlps).table
        assert_allclose(table["value"], without(case, ["M1"], [("logits", "in")]), **CLOSE)
    receivers = [name for name in slots(case.layout, 0) if not name.startswith("M")]
    frozen, live = (
        path_patching(case.model, case.task, senders=["embed"], receivers=receivers, mlps=mlps).table
        for mlps in ("frozen", "live")
    )
    if not any(case.ports.shared(0, port) for port in ("q", "k")):  # a norm over all heads: not the same edge
        assert_allclose(live["value"], frozen["value"], **CLOSE)


@pytest.mark.parametrize("mlps", ["frozen", "live"])
def test_batches_and_padding_change_nothing(model, mlps):
    task = pairs((9, 6))
    for receivers in ("logits", ["L1H1.q", "M1"]):
        options = {"senders": ["embed", "L0H0", "L0H1", "M0"], "receivers": receivers, "mlps": mlps}
        whole = path_patching(model, task, **options).table["value"]
        assert_allclose(path_patching(model, task, batch_size=1, **options).table["value"], whole, **CLOSE)
        alone = [path_patching(model, task.select([i]), **options).table["value"] for i in range(2)]
        assert_allclose(sum(alone) / 2, whole, **CLOSE)


def test_every_edge_by_itself(case):
    graph = all_edges_exact(case.model, case.task.select([0, 2]), batch_size=50)
    few = Case.of(case.model, case.task.select([0, 2]))
    assert graph.n_edges == case.layout.n_edges
    generator = torch.Generator().manual_seed(0)
    for i in torch.randperm(graph.n_edges, generator=generator)[:12].tolist():
        edge = graph.edges[i]
        assert graph.score(edge) == pytest.approx(without(few, [edge.sender], [edge[1:]]), abs=3e-5)
    assert (graph.columns["ci_low"] <= graph.columns["ci_high"])[graph.mask].all()


@pytest.mark.parametrize("metric", ["prob", "kl", "logit_margin"])
def test_metrics_of_all_logits(metric):
    for name in ("gpt2", "gemma2"):
        case = Case.of(tiny(name), pairs(), metric=metric)
        table = path_patching(case.model, case.task, metric=metric).table
        expected = [without(case, [u], [("logits", "in")]) for u in table["component"]]
        assert_allclose(table["value"], expected, **CLOSE)
    assert metric in metrics.METRICS


def test_groups_are_named_by_their_heads_and_unheard_senders_left_out():
    model, task = tiny("llama"), pairs()
    by_head, by_group = (path_patching(model, task, receivers=[name]).table["value"] for name in ("L1H5.k", "L1KV1.k"))
    assert_allclose(by_head, by_group, rtol=0, atol=0)
    assert path_patching(model, task, receivers=["L1H0.q"]).table["layer"].max() == 0
    assert path_patching(model, task, senders="mlps").table["component"].tolist() == ["M0", "M1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"senders": ["L0H99"]}, "no sender 'L0H99'"),
        ({"senders": "head"}, "no sender 'head'"),
        ({"senders": []}, "no senders"),
        ({"senders": ["L1H0"], "receivers": ["L1H1.q"]}, "no receiver is read after L1H0"),
        ({"receivers": ["L1H1.z"]}, "no slot 'L1H1.z': L1H1 reads at L1H1.q"),
        ({"receivers": ["L9H1.q"]}, "no receiver 'L9H1.q'; did you mean"),
        ({"receivers": []}, "no receivers"),
        ({"mlps": "thawed"}, "unknown policy"),
        ({"mode": "clean"}, "unknown mode"),
        ({"final_norm": "off"}, "unknown final_norm"),
        ({"final_norm": "frozen", "receivers": ["M1"]}, "into the logits alone"),
    ],
)
def test_refusals(options, message):
    with pytest.raises((SchemaError, SiteError), match=message):
        path_patching(tiny("gpt2"), pairs(), **options)


def test_a_frozen_norm_needs_a_metric_of_the_answers():
    with pytest.raises(TaskError, match="a frozen norm needs a metric"):
        path_patching(tiny("gpt2"), pairs(), metric="prob", final_norm="frozen")


@pytest.mark.parametrize("backend", ["nnsight", "lens"])
def test_the_backends_agree(backend):
    hf, task = tiny("llama"), pairs((6, 6))
    other = interp.load(hf.torch_module, backend=backend)
    for options in ({}, {"mlps": "live"}, {"receivers": ["L1H1.q", "M1"]}):
        ours, theirs = (path_patching(m, task, **options).table["value"] for m in (hf, other))
        assert_allclose(theirs, ours, **CLOSE)
