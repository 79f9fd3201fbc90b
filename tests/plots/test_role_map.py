"""One cell for each head; what a head does is drawn before where it looks."""

from __future__ import annotations

import numpy as np

from interp.plots.roles import HeadRole, role_map


def cells(figure):
    """Role of each drawn cell."""
    pale, heat = figure.data[:2]
    names = [trace.name for trace in figure.data[2:]]
    z = np.array(heat.z, dtype=float)
    return {tuple(at): names[int(z[tuple(at)])] for at in np.argwhere(~np.isnan(z))}, np.array(pale.z, dtype=float), z


def test_every_functional_head_among_a_thousand_is_seen():
    """170 sinks, 14 induction heads and 6 previous-token heads of 32 x 32, many of them sinks as well."""
    heads = np.random.default_rng(0).permutation(1024)
    places = {"previous token": heads[165:171], "induction": heads[160:174], "attention sink": heads[:170]}
    roles = [
        HeadRole(int(h) // 32, int(h) % 32, role, role == "attention sink", 0.9)
        for role, own in places.items()
        for h in own
    ]
    figure = role_map(roles, layers=range(32), n_heads=32)
    drawn, pale, z = cells(figure)
    assert z.shape == (32, 32)
    assert len(drawn) == len({(r.layer, r.head) for r in roles})
    for h in heads[165:171]:
        assert "previous token (6)" in drawn[divmod(int(h), 32)]
    for h in [*heads[160:165], *heads[171:174]]:
        assert "induction (14)" in drawn[divmod(int(h), 32)]
    assert sum("attention sink (170)" in name for name in drawn.values()) == 160
    assert np.isnan(pale).sum() == len(drawn)  # the rest is pale, and nothing is drawn twice
    assert figure.layout.height < 900


def test_functions_before_patterns_whatever_their_order_and_all_in_the_hover():
    roles = [HeadRole(5, 1, "attention sink", True, 0.5), HeadRole(5, 1, "mover", False, 2.0)]
    figure = role_map(roles, layers=(2, 5), n_heads=3)
    drawn, *_ = cells(figure)
    assert "mover (1)" in drawn[1, 1]  # layer 5 is the second row
    assert figure.data[1].hovertext[1][1] == "L5H1<br>mover: 2<br>attention sink: 0.5"
    assert figure.data[0].text[0][2] == "L2H2: no role"
    assert list(figure.layout.yaxis.ticktext) == ["2", "5"]


def test_letters_tell_roles_apart_where_colours_come_again():
    roles = [HeadRole(0, i, f"copy {chr(97 + i)}ay", False, 1.0) for i in range(12)]
    figure = role_map(roles, layers=[0], n_heads=12)
    letters = [trace.name.split()[0] for trace in figure.data[2:]]
    assert len(set(letters)) == 12


def test_no_roles_are_a_map_of_pale_cells():
    figure = role_map([], layers=[0, 1], n_heads=2)
    assert len(figure.data) == 1
    assert figure.layout.showlegend is False


def test_a_narrow_page_has_room_for_every_role_of_the_legend():
    """At 400 pixels two entries stand side by side at most: nothing of twenty may lie under the edge."""
    roles = [HeadRole(i % 4, i % 12, f"role number {chr(97 + i)}", i > 10, 0.9) for i in range(20)]
    layout = role_map(roles, layers=range(4), n_heads=12).layout
    assert layout.margin.b >= layout.meta["below"] + 10 * 19
    assert layout.legend.maxheight == 1
    cells = layout.height - layout.margin.b - layout.margin.t
    assert cells == 4 * 34
    assert abs(-layout.legend.y * cells - layout.meta["below"]) < 1
