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
            "interp.measurement.registry",
            "interp.results.results",
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
        (
            "interp.weights.weights",
            "interp.weights.factored",
            "interp.weights.composition",
            "interp.decompose.embeddings",
            "interp.decompose",
        ),
    ),
    "tasks": (
        "Tasks, needles, metrics",
        "Prompts with answers, for any tokenizer, and what is measured on them.",
        ("interp.tasks", "interp.tasks.needles", "interp.tasks.haystacks", "interp.tasks.metrics", "interp.data"),
    ),
    "statistics": (
        "Statistics and bookkeeping",
        "Nulls and intervals; stored results; what needs more than one run.",
        (
            "interp.results.stats",
            "interp.results.runs",
            "interp.atlas",
            "interp.studies.dynamics",
            "interp.studies.reproduce",
            "interp.studies.scoreboard",
            "interp.studies.bench",
            "interp.environment",
        ),
    ),
    "pictures": (
        "Plots and the report",
        "Every function returns a plotly figure; the report is one HTML file.",
        (
            "interp.report",
            "interp.plots.heads",
            "interp.plots.attention",
            "interp.plots._removal",
            "interp.plots._curves",
            "interp.plots.patching",
        ),
    ),
    "zoo": (
        "The zoo",
        "Models whose mechanisms are known: shipped, or written into the weights.",
        ("interp.zoo", "interp.zoo.planted.factory", "interp.zoo.planted.mechanisms", "interp.zoo.planted.behaviour"),
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
            "circuits.graph.graph",
            "circuits.wiring.case",
            "circuits.graph.layout",
            "circuits.graph.select",
            "circuits.methods",
            "circuits.attribution.edge_scores",
            "interp.patching.nodes",
            "circuits.wiring.edges",
            "circuits.wiring.ports",
            "circuits.attribution.edge_gradients",
            "circuits.search._acdc",
            "circuits.search.pruning",
            "interp.patching.activations",
            "circuits.patching.paths",
            "circuits.patching.tracing",
            "circuits.search.sparse_attention",
            "circuits.search.cdt",
            "circuits.attribution.cost",
        ),
    ),
    "judging-circuits": (
        "Judging circuits",
        "How faithful, minimal and complete a circuit is, beside random ones, published ones and planted ones.",
        (
            "circuits.evaluation._faithfulness",
            "circuits.evaluation._curve",
            "circuits.evaluation._minimality",
            "circuits.graph.controls",
            "circuits.evaluation._hypotheses",
            "circuits.evaluation.reuse",
            "circuits.evaluation.truth",
            "circuits.evaluation.scoreboard",
            "circuits.graph.export",
            "circuits.graph.drawing",
            "circuits.graph.page",
        ),
    ),
}
"""Pages of the API: title, what they hold, modules in order."""

INTERNAL = {
    "interp.cli.main": "documented as commands",
    "interp.cli.circuit": "documented as commands",
    "interp.cli.reproduce": "documented as commands",
    "interp.cli.report": "documented as commands",
    "interp.cli.runs": "documented as commands",
    "interp.cli.zoo": "documented as commands",
    "interp.loading.checkpoints": "behind interp.load",
    "interp.backends.described": "what a notebook and the report say of a model",
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
