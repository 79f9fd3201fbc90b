"""The grammar of places: what is written is read back, and what cannot be read is refused with the nearest choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import SiteError
from interp.sites import KINDS, PER_HEAD, UNLAYERED, Site

small = st.integers(0, 200)


@st.composite
def sites(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    position = draw(st.none() | st.integers(-50, 50))
    first = None if kind in UNLAYERED else draw(st.none() | small)
    last = None if first is None else draw(st.sampled_from([first, first + 1, first + 7]))
    head = draw(st.none() | small) if kind in PER_HEAD and first is not None else None
    return Site(kind, first, last, head, position)


@given(sites())
def test_written_and_read_back(site):
    assert Site.parse(str(site)) == site


@given(small)
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in UNLAYERED])
def test_one_layer_of_every_kind(kind, layer):
    site = Site.parse(f"L{layer}.{kind}")
    assert site == Site(kind, layer)
    assert list(site.layers) == [layer]
    assert Site(kind).layers is None
    assert Site(kind).at(layer) == site


@pytest.mark.parametrize("kind", PER_HEAD)
def test_a_head_of_every_layer_survives_being_written(kind):
    site = Site(kind, head=3)
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_by_itself(kind):
    assert Site.parse(kind) == Site(kind)
    assert str(Site.parse(kind)) == kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L3.z", Site("z", 3, 3)),
        ("L3H5.z", Site("z", 3, 3, 5)),
        ("L0-5.mlp_out", Site("mlp_out", 0, 5)),
        ("L3.resid_post@-1", Site("resid_post", 3, 3, None, -1)),
        ("L2-4H1.pattern@7", Site("pattern", 2, 4, 1, 7)),
        ("embed@0", Site("embed", position=0)),
    ],
)
def test_short_form(text, expected):
    assert Site.parse(text) == expected
    assert str(expected) == text


LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "attn.hook_q": "q",
    "attn.q.hook_out": "q",
    "attn.hook_k": "k",
    "attn.k.hook_out": "k",
    "attn.hook_v": "v",
    "attn.v.hook_out": "v",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "z",
    "attn.hook_result": "head_out",
    "hook_attn_out": "attn_out",
    "attn.hook_out": "attn_out",
    "attn.hook_attn_scores": "scores",
    "attn.hook_in": "attn_in",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_pre_linear": "mlp_up",
    "ln2.hook_scale": "mlp_norm_scale",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_post",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
    "ln1.hook_scale": "norm_scale",
}


@pytest.mark.parametrize(("name", "kind"), LENS.items())
def test_transformer_lens_names_old_and_new(name, kind):
    assert Site.parse(f"blocks.11.{name}") == Site(kind, 11)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hook_embed", "token_embed"),
        ("hook_pos_embed", "pos_embed"),
        ("ln_final.hook_out", "unembed_in"),
        ("ln_final.hook_scale", "norm_scale"),
        ("unembed.hook_out", "logits"),
    ],
)
def test_transformer_lens_names_outside_the_layers(name, kind):
    assert Site.parse(name) == Site(kind)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blocks.3.hook_mlp_in", "before the norm: resid_mid here"),
        ("blocks.3.hook_q_input", "a copy for each head"),
        ("blocks.3.ln1.hook_normalized", "write attn_in, or the divisor norm_scale"),
        ("blocks.3.attn.hook_zz", "did you mean"),
        ("blocks.hook_in", "cannot read site"),
    ],
)
def test_transformer_lens_names_of_another_tensor_are_refused(name, reason):
    with pytest.raises(SiteError, match=reason):
        Site.parse(name)


def test_a_module_by_its_name():
    site = Site.parse("module:transformer.h.0.mlp:input@-1")
    assert (site.module, site.position, str(site)) == ("transformer.h.0.mlp", -1, "module:transformer.h.0.mlp:input@-1")
    assert Site.parse("module:lm_head:output") == Site("module:lm_head")
    for wrong in (lambda: Site("module:lm_head", 3), lambda: Site("module:lm_head", head=1), lambda: Site("module:")):
        with pytest.raises(SiteError):
            wrong()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L3.zz", "unknown site kind 'zz'"),
        ("L3.resid_pst", "unknown site kind 'resid_pst'; did you mean 'resid_post'"),
        ("blocks.3.hook_resid_psot", "'blocks.3.hook_resid_psot'.*did you mean 'hook_resid_post'"),
        ("blocks.3.attn.hook_pattrn", "did you mean 'attn.hook_pattern'"),
        ("L3.z.q", "cannot read site 'L3.z.q'; write it like"),
        ("", "cannot read site ''"),
        ("L.z", "cannot read site"),
        ("L-1.z", "cannot read site"),
        ("L5-3.z", "layer range 5-3 runs backwards"),
        ("L3.embed", "'embed' belongs to no layer"),
        ("L0.logits", "'logits' belongs to no layer"),
        ("L3H5.mlp_out", "'mlp_out' has no heads; kinds with heads: q, k, v"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(SiteError, match=message):
        Site.parse(text)
