"""What the checks of the curriculum are written with: transformers' own model, hooks of PyTorch, nothing of ours."""

from __future__ import annotations

import torch
import transformers

import interp.zoo

FOLDER = interp.zoo.folder("default")
hf = (
    transformers.AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager", dtype=torch.float32)
    .eval()
    .requires_grad_(False)
)
tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
blocks = hf.model.layers
HEADS, KV, D = 12, 4, 32


def read(text):
    """Token ids [1 pos] of a text."""
    return tokenizer(text, return_tensors="pt").input_ids


def close(a, b, atol=1e-4, rtol=1e-4):
    """The same numbers to rounding."""
    a, b = (torch.as_tensor(x).detach().double() for x in (a, b))
    torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


def first(x):
    """A module's first tensor."""
    return x[0] if isinstance(x, tuple) else x


def inside(root, part, ids):
    """Input and output of a module during root(ids)."""
    seen = []
    hook = part.register_forward_hook(lambda _, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True)
    with torch.no_grad():
        root(ids)
    hook.remove()
    args, kwargs, out = seen[0]
    return first(args) if args else kwargs["hidden_states"], first(out)


def changed(root, part, ids, *, takes=None, gives=None):
    """Logits of root(ids) with a function of what a module takes, or gives, in its place."""

    def before(_, args):
        return (takes(args[0].clone()), *args[1:])

    def after(_, args, out):
        new = gives(first(out).clone())
        return (new, *out[1:]) if isinstance(out, tuple) else new

    hook = part.register_forward_pre_hook(before) if takes else part.register_forward_hook(after)
    with torch.no_grad():
        logits = root(ids).logits
    hook.remove()
    return logits


def without_head(layer, head, ids, value=0.0):
    """Logits of the zoo's model with one head's z set to a value."""

    def ablate(z):
        z[..., head * D : (head + 1) * D] = value
        return z

    return changed(hf, blocks[layer].self_attn.o_proj, ids, takes=ablate)


def wrote(layer, head, ids):
    """What a head of the zoo's model adds to the stream [batch pos d_model]."""
    z, _ = inside(hf, blocks[layer].self_attn.o_proj, ids)
    here = slice(head * D, (head + 1) * D)
    return z[..., here] @ blocks[layer].self_attn.o_proj.weight[:, here].T


def difference(logits, right="Moxgax", wrong="Skozul"):
    """Logit difference at the last token."""
    one, other = (tokenizer.convert_tokens_to_ids(t) for t in (right, wrong))
    return float((logits[0, -1, one] - logits[0, -1, other]).detach())


def direction(right="Moxgax", wrong="Skozul"):
    """The final norm's gain times the difference of two columns of the unembedding."""
    one, other = (tokenizer.convert_tokens_to_ids(t) for t in (right, wrong))
    return hf.model.norm.weight * (hf.lm_head.weight[one] - hf.lm_head.weight[other])


def direct(x, ids, right="Moxgax", wrong="Skozul"):
    """Direct effect on the logit difference of a vector in the stream at the last token."""
    stream, _ = inside(hf, hf.model.norm, ids)
    last = stream[0, -1]
    return float(
        (x @ direction(right, wrong) / (last.square().mean() + hf.model.norm.variance_epsilon).sqrt()).detach()
    )
