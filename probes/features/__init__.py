"""What a direction or a unit stands for: linear probes, spectra over cyclic tokens, singular directions, examples.

These ask with labels, tokens or texts of the caller's; so they are functions, not analyses that `detect` could run.
"""

from interp.measurement.examples import Examples, top_examples
from interp.measurement.fourier import Spectrum, fourier_spectrum
from probes.features._linear_probe import LinearProbes, linear_probe
from probes.features._singular import singular_tokens
from probes.features.probe import Probe

__all__ = [
    "Examples",
    "LinearProbes",
    "Probe",
    "Spectrum",
    "fourier_spectrum",
    "linear_probe",
    "singular_tokens",
    "top_examples",
]
