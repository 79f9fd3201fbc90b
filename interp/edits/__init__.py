"""Changes to a forward pass: ablate, scale, replace, add, noise, apply a function; force, bias, re-weight attention.

    Ablate("L3H5.z"), Scale("L3.mlp_out", 0.5), Replace("L3.resid_post@-1", clean), KnockOut("L3H5.pattern", keys=0)

`values` and `reshape` say what can be changed, `where` which rows and tokens are meant, `scope` whether any are,
`apply` changes activations, `attend` and `columns` attention, `rotary` queries and keys. Pure: backends call them,
nothing here knows a module.
"""

from interp.edits.apply import apply_edits
from interp.edits.attend import Tile, edit_activation_scores, edit_pattern, edit_scores, edits_scores, softmax, whole
from interp.edits.reshape import CalibrateSpans, RotaryBase, RotaryEdit, RotaryPlane, ScaleColumns, SinkWindow
from interp.edits.rotary import RotaryPlanes, read_planes, turn_keys, turn_queries
from interp.edits.scope import of_prompts, of_tokens, plain_edit, refuse_rows
from interp.edits.values import (
    Ablate,
    Add,
    Apply,
    AttentionBias,
    AttentionEdit,
    Edit,
    ForcePattern,
    KnockOut,
    Noise,
    Replace,
    Scale,
    Uniform,
    ablate_heads,
)

__all__ = [
    "Ablate",
    "Add",
    "Apply",
    "AttentionBias",
    "AttentionEdit",
    "CalibrateSpans",
    "Edit",
    "ForcePattern",
    "KnockOut",
    "Noise",
    "Replace",
    "RotaryBase",
    "RotaryEdit",
    "RotaryPlane",
    "RotaryPlanes",
    "Scale",
    "ScaleColumns",
    "SinkWindow",
    "Tile",
    "Uniform",
    "ablate_heads",
    "apply_edits",
    "edit_activation_scores",
    "edit_pattern",
    "edit_scores",
    "edits_scores",
    "of_prompts",
    "of_tokens",
    "plain_edit",
    "read_planes",
    "refuse_rows",
    "softmax",
    "turn_keys",
    "turn_queries",
    "whole",
]
