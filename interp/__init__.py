"""interp: look inside transformer language models.

    import interp
    model = interp.load("zoo:default")
    interp.detect(model)                  # every head analysis, as one tidy table
    interp.analyze(model, "induction")    # one of them

Names are imported when first used, so that `import interp` costs nothing; so are the packages inside it, `interp.edits`
or `interp.plots`, and the two beside it, `circuits` and `probes`, as `interp.circuits` and `interp.probes`.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "__version__": "interp.environment",
    "load": "interp.loading.load",
    "Model": "interp.model",
    "ModelInfo": "interp.model",
    "Site": "interp.sites",
    "Ablate": "interp.edits",
    "ablate_heads": "interp.edits",
    "Batch": "interp.batch",
    "Result": "interp.results.results",
    "analysis": "interp.measurement.registry",
    "analyses": "interp.measurement.registry",
    "analyze": "interp.measurement.registry",
    "detect": "interp.measurement.registry",
    "atlas": "interp.studies.atlas",
    "attribute": "interp.decompose",
    "logit_lens": "interp.decompose",
    "jacobian_lens": "interp.lenses",
    "tuned_lens": "interp.lenses",
    "attention_view": "interp.reports.viewer",
    "report": "interp.reports",
    "pattern_view": "interp.reports.viewer",
    "PromptTask": "interp.tasks",
    "pair": "interp.tasks",
    "task": "interp.tasks",
    "InterpError": "interp.errors",
}

_ROOMS = (
    "attention",
    "decompose",
    "dictionaries",
    "edits",
    "lenses",
    "measurement",
    "patching",
    "plots",
    "reports",
    "results",
    "studies",
    "tasks",
    "weights",
    "zoo",
)
"""Packages that are imported when they are first asked for."""
_BESIDE = ("circuits", "probes")
"""Packages of their own, reached from here as well."""

# A library that shows a bar warns in every notebook without ipywidgets; its bars are text then, which is what they say.
warnings.filterwarnings("ignore", message="IProgress not found")

if TYPE_CHECKING:
    from interp import attention as attention
    from interp import decompose as decompose
    from interp import dictionaries as dictionaries
    from interp import edits as edits
    from interp import lenses as lenses
    from interp import measurement as measurement
    from interp import patching as patching
    from interp import plots as plots
    from interp import reports as reports
    from interp import results as results
    from interp import studies as studies
    from interp import tasks as tasks
    from interp import weights as weights
    from interp import zoo as zoo
    from interp.batch import Batch as Batch
    from interp.decompose import attribute as attribute
    from interp.decompose import logit_lens as logit_lens
    from interp.edits import Ablate as Ablate
    from interp.edits import ablate_heads as ablate_heads
    from interp.environment import __version__ as __version__
    from interp.errors import InterpError as InterpError
    from interp.lenses import jacobian_lens as jacobian_lens
    from interp.lenses import tuned_lens as tuned_lens
    from interp.loading.load import load as load
    from interp.measurement.registry import analyses as analyses
    from interp.measurement.registry import analysis as analysis
    from interp.measurement.registry import analyze as analyze
    from interp.measurement.registry import detect as detect
    from interp.model import Model as Model
    from interp.model import ModelInfo as ModelInfo
    from interp.reports import report as report
    from interp.reports.viewer import attention_view as attention_view
    from interp.reports.viewer import pattern_view as pattern_view
    from interp.results.results import Result as Result
    from interp.sites import Site as Site
    from interp.studies.atlas import atlas as atlas
    from interp.tasks import PromptTask as PromptTask
    from interp.tasks import pair as pair
    from interp.tasks import task as task

__all__ = [
    "Ablate",
    "Batch",
    "InterpError",
    "Model",
    "ModelInfo",
    "PromptTask",
    "Result",
    "Site",
    "__version__",
    "ablate_heads",
    "analyses",
    "analysis",
    "analyze",
    "atlas",
    "attention_view",
    "attribute",
    "detect",
    "jacobian_lens",
    "load",
    "logit_lens",
    "pair",
    "pattern_view",
    "report",
    "task",
    "tuned_lens",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home, or a package, on first use (PEP 562)."""
    if name in _ROOMS or name in _BESIDE:
        value = import_module(name if name in _BESIDE else f"interp.{name}")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, *_BESIDE]
