"""Figures: each function takes rows of a tidy table and returns a plotly figure; none shows it."""

from interp.plots._curves import curves
from interp.plots._removal import against, depth_grid, removal
from interp.plots.arrays import pattern_map, token_map
from interp.plots.attention import embedding, pair_map, profile_lines, relevance_bars
from interp.plots.components import component_map, layer_map
from interp.plots.heads import before_and_after, head_map, top_heads
from interp.plots.numbers import head_table
from interp.plots.patching import effect_figure, patch_map
from interp.plots.roles import HeadRole, role_map
from interp.plots.theme import Figure
from interp.plots.titles import titled

__all__ = [
    "Figure",
    "HeadRole",
    "against",
    "before_and_after",
    "component_map",
    "curves",
    "depth_grid",
    "effect_figure",
    "embedding",
    "head_map",
    "head_table",
    "layer_map",
    "pair_map",
    "patch_map",
    "pattern_map",
    "profile_lines",
    "relevance_bars",
    "removal",
    "role_map",
    "titled",
    "token_map",
    "top_heads",
]
