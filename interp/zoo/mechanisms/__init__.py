"""Mechanisms that `interp.zoo.factory.plant` writes into a model."""

from interp.zoo.mechanisms.base import Mechanism, Slot
from interp.zoo.mechanisms.copying import AntiCopy, Copy, DuplicateToken, Induction, PreviousToken
from interp.zoo.mechanisms.dated import Dated
from interp.zoo.mechanisms.recall import Fact, Retrieval, Successor, Told
from interp.zoo.mechanisms.shifted import ShiftedInduction
from interp.zoo.mechanisms.sinks import FirstTokenSink, MassiveActivation, MassiveActivationAt
from interp.zoo.mechanisms.two_hop import TwoHop
from interp.zoo.mechanisms.vocabulary import CUES, Task, Vocabulary

__all__ = [
    "CUES",
    "AntiCopy",
    "Copy",
    "Dated",
    "DuplicateToken",
    "Fact",
    "FirstTokenSink",
    "Induction",
    "MassiveActivation",
    "MassiveActivationAt",
    "Mechanism",
    "PreviousToken",
    "Retrieval",
    "ShiftedInduction",
    "Slot",
    "Successor",
    "Task",
    "Told",
    "TwoHop",
    "Vocabulary",
]
