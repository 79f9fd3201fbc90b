"""Sparse autoencoders and transcoders: read and written in the field's layouts, checked, spliced into a model.

sae = interp.dictionaries.load("folder or hub id", model)
model.run(prompts, edits=[Splice(sae, Clamp(17, 0.0))])
"""

from interp.dictionaries._hygiene import hygiene, stability
from interp.dictionaries._load import load
from interp.dictionaries.activations import BatchTopK, Gated, GroupMax, JumpReLU, Normalisation, ReLU, TopK
from interp.dictionaries.activity import Features, Record, features, top_examples
from interp.dictionaries.dictionary import Dictionaries, Dictionary
from interp.dictionaries.fit import Quality, check, quality
from interp.dictionaries.formats.circuit_tracer import write as write_circuit_tracer
from interp.dictionaries.formats.registry import FORMATS
from interp.dictionaries.formats.saelens import write as write_saelens
from interp.dictionaries.pushes import pushed_logits, random_pushes
from interp.dictionaries.splice import Clamp, FeatureEdit, Scaled, Splice, Steer, ablate_features
from interp.dictionaries.training.run import train

__all__ = [
    "FORMATS",
    "BatchTopK",
    "Clamp",
    "Dictionaries",
    "Dictionary",
    "FeatureEdit",
    "Features",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "Normalisation",
    "Quality",
    "ReLU",
    "Record",
    "Scaled",
    "Splice",
    "Steer",
    "TopK",
    "ablate_features",
    "check",
    "features",
    "hygiene",
    "load",
    "pushed_logits",
    "quality",
    "random_pushes",
    "stability",
    "top_examples",
    "train",
    "write_circuit_tracer",
    "write_saelens",
]
