"""The grammar of components, slots and edges: one spelling each, and everything that is written is read again."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.components import (
    Component,
    Edge,
    attn_name,
    head_name,
    head_names,
    is_head,
    kind,
    kv_head_name,
    layer_of,
    mlp_name,
    neuron_name,
    parse_head,
    parse_slot,
    slot_name,
    stream_name,
)
from interp.errors import SiteError

ROOT = Path(__file__).parents[1]
OWN = ("interp/components.py", "interp/sites.py")
"""The two grammars: of components, and of sites."""
BY_HAND = re.compile(
    r"""f["'][LMA]\{[^}"']*\}["']|\}(H|KV|N)\{|(start|end)swith\(\(?["'][LMA]["']|partition\(["']H["']\)|L\(?\\d"""
)
small = st.integers(0, 300)
layered = st.sampled_from(["stream", "attn", "mlp"])
indexed = st.sampled_from(["head", "kv_head", "neuron"])
components = (
    st.sampled_from([Component("embed"), Component("logits")])
    | st.builds(Component, layered, small)
    | st.builds(Component, indexed, small, small)
)


@given(components)
def test_what_is_written_is_read_again(component):
    assert Component.parse(str(component)) == component
    assert Component.parse(str(component)) is Component.parse(str(component))  # parsed once
    assert kind(str(component)) == component.kind
    assert is_head(str(component)) == (component.kind == "head")


@given(components, components)
def test_two_components_never_share_a_name(a, b):
    assert (str(a) == str(b)) == (a == b)


def test_the_forms():
    forms = {
        "embed": Component("embed"),
        "L3": Component("stream", 3),
        "L3H5": Component("head", 3, 5),
        "L3KV1": Component("kv_head", 3, 1),
        "A3": Component("attn", 3),
        "M3": Component("mlp", 3),
        "M3N17": Component("neuron", 3, 17),
        "logits": Component("logits"),
    }
    assert {name: Component.parse(name) for name in forms} == forms
    assert [str(component) for component in forms.values()] == list(forms)
    built = [stream_name(3), head_name(3, 5), kv_head_name(3, 1), attn_name(3), mlp_name(3), neuron_name(3, 17)]
    assert built == list(forms)[1:-1]
    assert head_names([(0, 1), (10, 11)]) == ["L0H1", "L10H11"]
    assert kv_head_name(3, 1, group=1) == "L3H1"  # shared by none: it is that head's own


@pytest.mark.parametrize(
    "text",
    [
        "",
        "H5",
        "L",
        "L3H",
        "L3G1",
        "L03H5",
        "L3H05",
        "l3h5",
        "L3H5 ",
        "L3H5\n",
        "L3H5.z",
        "M",
        "M3.N1",
        "L-1",
        "L\u0663",
    ],
)
def test_what_is_no_component_is_refused_with_the_forms_that_are(text):
    with pytest.raises(SiteError, match=r"cannot read component .* written like embed, L3, L3H1, L3KV1, A3, M3, M3N1"):
        Component.parse(text)
    assert not is_head(text)


@pytest.mark.parametrize("fields", [("head", 3), ("head", 3, -1), ("mlp", None), ("mlp", 3, 1), ("embed", 0)])
def test_fields_that_make_no_component(fields):
    with pytest.raises(SiteError, match="of kind"):
        Component(*fields)


def test_heads_and_layers():
    assert parse_head("L3H5") == (3, 5)
    assert [layer_of(name, 4) for name in ("embed", "L3H5", "L2KV1", "M1", "L0", "logits")] == [-1, 3, 2, 1, 0, 4]
    for name in ("M3", "L3", "L3KV1", "embed"):
        with pytest.raises(SiteError, match=f"'{name}' is no head; heads are written like L3H5"):
            parse_head(name)


@given(components, st.sampled_from(["q", "k", "v", "in"]))
def test_slots_are_read_where_their_component_has_the_port(component, port):
    text = slot_name(str(component), port)
    if port in component.ports:
        assert parse_slot(text) == (str(component), port)
    else:
        with pytest.raises(SiteError, match=f"no slot {text!r}"):
            parse_slot(text)


def test_slots():
    texts = ["L1H7.q", "L1H7.k", "L1KV0.v", "M3", "logits"]
    assert [parse_slot(text) for text in texts] == [
        ("L1H7", "q"),
        ("L1H7", "k"),
        ("L1KV0", "v"),
        ("M3", "in"),
        ("logits", "in"),
    ]
    with pytest.raises(SiteError, match="no slot 'L1H7.z': L1H7 reads at L1H7.q or L1H7.k or L1H7.v"):
        parse_slot("L1H7.z")
    with pytest.raises(SiteError, match="no slot 'embed': embed reads nothing"):
        parse_slot("embed")
    with pytest.raises(SiteError, match="no slot 'M3.'"):
        parse_slot("M3.")


@given(components, components, st.sampled_from(["q", "k", "v", "in"]))
def test_edges_are_read_again(sender, receiver, port):
    edge = Edge(str(sender), str(receiver), port)
    if sender.kind in ("embed", "head", "mlp") and port in receiver.ports:
        assert Edge.parse(str(edge)) == edge
    else:
        with pytest.raises(SiteError, match=r"no slot|writes nothing"):
            Edge.parse(str(edge))


def test_edges():
    assert str(Edge("L0H3", "L1H7", "q")) == "L0H3 -> L1H7.q"
    assert str(Edge("embed", "M0", "in")) == "embed -> M0"
    for text in ("L0H3", "L0H3->M1", ""):
        with pytest.raises(SiteError, match="edges are written like L0H3 -> L1H7.q"):
            Edge.parse(text)


def test_no_other_module_writes_or_reads_names_by_hand():
    for line in ('f"L{layer}H{head}"', 'f"M{layer}"', 'name.startswith("M")', 'name.rpartition("H")'):
        assert BY_HAND.search(line)
    files = [path for package in ("interp", "probes", "circuits") for path in (ROOT / package).rglob("*.py")]
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if str(path.relative_to(ROOT)) not in OWN
        for line in path.read_text(encoding="utf-8").splitlines()
        if BY_HAND.search(line)
    ]
    assert len(files) > 100
    assert not lines
