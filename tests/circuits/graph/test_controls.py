"""Random circuits: what each way of drawing them keeps of the circuit they are compared with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from circuits.graph.controls import random_circuits
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from interp.components import layer_of

LAYOUTS = [Layout(3, 4, 4), Layout(3, 4, 2)]


def drawn(layout, **options):
    scores = np.random.default_rng(0).standard_t(2, size=layout.exists.shape)
    graph = Graph.full(layout, scores).top(40, prune=False)
    return graph, random_circuits(graph, n=5, **options)


def profile(graph):
    """How many edges join which layers and kinds, at which ports."""

    def form(name):
        return layer_of(name, graph.layout.n_layers), name.startswith("M")

    return Counter((*form(e.sender), *form(e.receiver), e.port) for e in graph)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matched_circuits_keep_the_depth_profile(layout):
    graph, others = drawn(layout, how="matched")
    assert len(profile(graph)) > 8
    for other in others:
        assert profile(other) == profile(graph)
        assert (other.mask != graph.mask).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["uniform", "connected"])
def test_other_circuits_do_not(layout, how):
    graph, others = drawn(layout, how=how)
    assert all(profile(other) != profile(graph) for other in others)


@pytest.mark.parametrize("how", ["uniform", "matched", "connected"])
def test_a_seed_fixes_the_draws(how):
    first, again, other = ([g.mask.tobytes() for g in drawn(LAYOUTS[0], how=how, seed=s)[1]] for s in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)
