"""What the reference says that the code does not: which modules share a page, what columns hold, what families ask."""

from __future__ import annotations

PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "interp": (
        "Load, run, keep",
        "A model of any source, what can be asked of it by name, and the table that every analysis returns.",
        (
            "interp",
            "interp.model",
            "interp.sites",
            "interp.batch",
            "interp.registry",
            "interp.results",
            "interp.errors",
            "interp.backends",
        ),
    ),
    "attention-and-edits": (
        "Attention, edits, gradients",
        "Questions about attention that form no pattern, changes to a run as values, and gradients at sites.",
        ("interp.attention", "interp.edits", "interp.gradients", "interp.storage"),
    ),
    "weights": (
        "Weights and decomposition",
        "What stands in the weights, and the residual stream taken apart.",
        ("interp.weights", "interp.factored", "interp.composition", "interp.embeddings", "interp.decompose"),
    ),
    "tasks": (
        "Tasks, needles, metrics",
        "Prompts with answers, for any tokenizer, and what is measured on them.",
        ("interp.tasks", "interp.needles", "interp.haystacks", "interp.metrics", "interp.data"),
    ),
    "statistics": (
        "Statistics and bookkeeping",
        "Nulls and intervals; stored results; what needs more than one run.",
        (
            "interp.stats",
            "interp.runs",
            "interp.atlas",
            "interp.dynamics",
            "interp.reproduce",
            "interp.scoreboard",
            "interp.bench",
            "interp.environment",
        ),
    ),
    "pictures": (
        "Plots and the report",
        "Every function returns a plotly figure; the report is one HTML file.",
        (
            "interp.report",
            "interp.plots",
            "interp.plots_attention",
            "interp.plots_heads",
            "interp.plots_curves",
            "interp.plots_patching",
        ),
    ),
    "zoo": (
        "The zoo",
        "Models whose mechanisms are known: shipped, or written into the weights.",
        ("interp.zoo", "interp.zoo.factory", "interp.zoo.mechanisms", "interp.zoo.behaviour"),
    ),
    "probes": (
        "Probes",
        "What does one component do? Most of these are analyses, and run by name.",
        ("probes.heads", "probes.attention"),
    ),
    "circuits": (
        "Circuits",
        "How components work together. Names of the package first, then what is called like its module.",
        (
            "circuits",
            "circuits.find",
            "circuits.graph",
            "circuits.case",
            "circuits.layout",
            "circuits.select",
            "circuits.methods",
            "circuits.edge_scores",
            "circuits.nodes",
            "circuits.edges",
            "circuits.ports",
            "circuits.attribution",
            "circuits.acdc",
            "circuits.pruning",
            "circuits.patching",
            "circuits.path_patching",
            "circuits.tracing",
            "circuits.sparse_attention",
            "circuits.cdt",
            "circuits.cost",
        ),
    ),
    "judging-circuits": (
        "Judging circuits",
        "How faithful, minimal and complete a circuit is, beside random ones, published ones and planted ones.",
        (
            "circuits.faithfulness",
            "circuits.curve",
            "circuits.minimality",
            "circuits.controls",
            "circuits.hypotheses",
            "circuits.reuse",
            "circuits.truth",
            "circuits.scoreboard",
            "circuits.export",
            "circuits.drawing",
            "circuits.page",
        ),
    ),
}
"""Pages of the API: title, what they hold, modules in order."""

INTERNAL = {
    "interp.cli": "documented as commands",
    "interp.cli_circuit": "documented as commands",
    "interp.cli_reproduce": "documented as commands",
    "interp.cli_report": "documented as commands",
    "interp.cli_runs": "documented as commands",
    "interp.cli_zoo": "documented as commands",
    "interp.checkpoints": "behind interp.load",
    "interp.described": "what a notebook and the report say of a model",
    "interp.parallel": "cases in processes, for scoreboards",
    "interp.shapes": "names of dimensions for type checkers",
    "interp.backends": "how a model is run; the doors are interp.load and Model",
    "interp.zoo": "how its models are made; read the cards",
}
"""Modules without a page, with those inside them, and why."""

FAMILIES = {
    "copy": "What does the head copy or match: repeats, the token before, text seen before?",
    "sink": "Is it parked on the first token?",
    "roles": "What does it say when it looks: the next ordinal, the same word, an answer, a relation's other side?",
    "retrieval": "Does it fetch facts hidden in a long prompt?",
    "conflict": "Does it follow the prompt or what the model knows?",
    "factual": "Does it carry the time that a prompt names?",
    "importance": "What is lost without it, alone or with others?",
    "attention": "How sharp, how regular, how easily drawn away is its attention?",
}
"""Families of analyses, in the order of the README, as questions."""

COLUMN_MEANINGS = {
    "analysis": "name of the analysis",
    "variant": "which of its quantities; the first of a table is the headline",
    "layer": "layer, from 0",
    "head": "query head, from 0",
    "component": "`L3H5`, `M3`, or what the analysis scores",
    "position": "token position, offset or lag, where the variant has one",
    "value": "the quantity, in `unit`",
    "se": "standard error over prompts",
    "ci_low": "lower end of the 95 % interval",
    "ci_high": "upper end",
    "null": "value expected by chance",
    "p": "one-sided p against the analysis's null",
    "q": "p corrected over the components of the table (Benjamini-Hochberg)",
    "n": "independent units (prompts, tokens) behind the value",
    "unit": "what `value` is in: probability, nats, logit, fraction ...",
}

INTERVENTION_MEANINGS = {
    "analysis": "name of the analysis",
    "set_id": "what was done, and to which set: `mean: L3H6 L3H4`",
    "k": "components in the set",
    "control": "how random sets were matched: same layers, any layers",
    "metric": "what was measured",
    "clean": "the metric with nothing changed",
    "edited": "with the set edited",
    "random_mean": "mean over random sets of the same size",
    "random_sd": "their standard deviation",
    "n_random": "random sets",
}
