"""Steps of a pass on the server: this file travels as source and needs only torch.

`carry_out` is called in the body of a remote trace. A server has no `interp`: these functions refer to torch and to
each other, their arguments are numbers, strings and tensors (`program.py` writes them), and no type checker wraps them.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch


@no_type_check
def carry_out(model: Any, program: list[dict[str, Any]]) -> dict[Any, Any]:
    """Inside a trace: every step in turn, in execution order; what was kept, by key."""
    store: dict[Any, Any] = {}
    stream: dict[int, Any] = {}
    for step in program:
        if step["port"] == "logits":
            store["logits"] = act(model.output.logits, step, store, stream).detach().clone()
            continue
        envoy = model.get(step["path"])
        if step["port"] == "skip":
            like = next(model._module.parameters())
            resid = step["enter"].to(like.device, like.dtype)
            envoy.skip((resid,) if step["bundled"] else resid)
            continue
        output = envoy.input if step["port"] == "input" else envoy.output
        x = output[0] if isinstance(output, tuple) else output
        result = act(x, step, store, stream)
        if result is x:
            continue
        if step["port"] == "input":
            envoy.input = result
        else:
            envoy.output = (result, *output[1:]) if isinstance(output, tuple) else result
    return store


@no_type_check
def act(x: Any, step: dict[str, Any], store: dict[Any, Any], stream: dict[int, Any]) -> Any:
    """One step on the tensor of its port; the tensor itself where nothing is changed."""
    scale, heads = step["scale"], step["heads"]
    shape = (*step["shape"], -1) if heads is None else (*step["shape"], heads, -1)
    start = x.reshape(shape)
    if step["norm"] is not None:
        eps, centred = step["norm"]
        wide = start.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide - wide.mean(-1, keepdim=True) if centred else wide
        visit((wide.square().mean(-1, keepdim=True) + eps).sqrt(), step["visits"], store)
        return x
    if scale != 1.0:
        start = start * scale
    y = start if step["enter"] is None else step["enter"].to(x)
    y = visit(y, step["visits"], store)
    if step["remember"] is not None:
        stream[step["remember"]] = y
    if step["middle"] is not None:
        layer, visits = step["middle"]
        before = stream[layer] + y
        after = visit(before, visits, store)
        y = y if after is before else y + (after - before)
    if step["finite"]:
        store["finite"] = torch.isfinite(y).all(-1)
    if y is start:
        return x
    return (y / scale if scale != 1.0 else y).reshape(x.shape)


@no_type_check
def visit(x: Any, visits: list[dict[str, Any]], store: dict[Any, Any]) -> Any:
    """Edits, each to its places, and then what is kept, narrowed to a head and to one column per row."""
    for what in visits:
        for verb, where, value in what["edits"]:
            operand = value.to(x)
            if verb == "set":
                x = torch.where(where.to(x.device), operand, x)
            elif verb == "scale":
                x = x * operand
            else:
                x = x + operand
        for key, head, columns in what["keep"]:
            part = x if head is None else x.select(2, head)
            if columns is not None:
                part = part[torch.arange(len(columns), device=x.device), columns.to(x.device)]
            store[key] = part.detach().clone()
    return x
