"""Prompts to ask a model with: random token sequences (`synthetic`) and prompt tasks with clean and corrupt twins."""

from interp.tasks._conflict import Conflict, Frame, conflict
from interp.tasks._document_needles import DocumentNeedles, document_needles
from interp.tasks._intent import INTENTS, intents
from interp.tasks._options import option_mass, options
from interp.tasks._pair import pair
from interp.tasks.build import SPLITS, task, task_names
from interp.tasks.modular import Addition, addition, modular_task
from interp.tasks.next_token import next_tokens
from interp.tasks.planted import of as planted_task
from interp.tasks.prompt import PromptTask
from interp.tasks.relations import relation_examples
from interp.tasks.synthetic import (
    BOS_POLICIES,
    Repeats,
    bos_id,
    earlier_equal_pairs,
    fingerprint,
    ordinary_tokens,
    permuted_repeats,
    random_blocks,
    random_prompts,
    repeat_lengths,
    repeated_random,
)

__all__ = [
    "BOS_POLICIES",
    "INTENTS",
    "SPLITS",
    "Addition",
    "Conflict",
    "DocumentNeedles",
    "Frame",
    "PromptTask",
    "Repeats",
    "addition",
    "bos_id",
    "conflict",
    "document_needles",
    "earlier_equal_pairs",
    "fingerprint",
    "intents",
    "modular_task",
    "option_mass",
    "options",
    "next_tokens",
    "ordinary_tokens",
    "pair",
    "permuted_repeats",
    "planted_task",
    "random_blocks",
    "random_prompts",
    "relation_examples",
    "repeat_lengths",
    "repeated_random",
    "task",
    "task_names",
]
