"""Circuits by way of dictionaries: attribution graphs of a prompt, feature circuits of a task, codes of heads."""
