"""The tokenizer of a bridge's checkpoint: TransformerLens has set the bridge's own to begin every text with a BOS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.batch import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own_tokenizer(bridge: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer as the checkpoint has it, read again from where the bridge's was read (folder or local cache).

    The bridge's, with a `PromptWarning`, where it cannot be read again or has another vocabulary, and begins texts with
    a BOS that TransformerLens asked for.
    """
    ours: Any = bridge.tokenizer
    if ours is None or not getattr(ours, "init_kwargs", {}).get("add_bos_token"):
        return ours
    from transformers import AutoTokenizer

    name = getattr(ours, "name_or_path", "")
    try:
        own: Any = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a name that is none, or a file in another format, leads to
        reason = f"it cannot be read again from {name!r} ({type(error).__name__})"
    else:
        if own.get_vocab() == ours.get_vocab():
            return own
        reason = f"that in {name!r} has another vocabulary"
    warn(
        f"the bridge's tokenizer begins every text with {ours.bos_token!r}, as TransformerLens has set it; whether the "
        f"checkpoint's own does is not known: {reason}. Say it with interp.load(bridge, tokenizer=...), or with bos="
    )
    return ours
