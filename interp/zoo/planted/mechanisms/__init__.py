"""Mechanisms that `interp.zoo.planted.factory.plant` writes into a model."""

from interp.zoo.planted.mechanisms.backcopy import Backcopy
from interp.zoo.planted.mechanisms.base import Mechanism, Slot
from interp.zoo.planted.mechanisms.copying import AntiCopy, Copy, DuplicateToken, Induction, PreviousToken
from interp.zoo.planted.mechanisms.dated import Dated
from interp.zoo.planted.mechanisms.planted_vocabulary import CUES, Task, Vocabulary
from interp.zoo.planted.mechanisms.recall import Fact, Retrieval, Successor, Told
from interp.zoo.planted.mechanisms.shifted import ShiftedInduction
from interp.zoo.planted.mechanisms.sinks import FirstTokenSink, MassiveActivation, MassiveActivationAt
from interp.zoo.planted.mechanisms.switch import IntentPrompts, Switch
from interp.zoo.planted.mechanisms.two_hop import TwoHop

__all__ = [
    "CUES",
    "AntiCopy",
    "Backcopy",
    "Copy",
    "Dated",
    "DuplicateToken",
    "Fact",
    "FirstTokenSink",
    "Induction",
    "IntentPrompts",
    "MassiveActivation",
    "MassiveActivationAt",
    "Mechanism",
    "PreviousToken",
    "Retrieval",
    "ShiftedInduction",
    "Slot",
    "Successor",
    "Switch",
    "Task",
    "Told",
    "TwoHop",
    "Vocabulary",
]
