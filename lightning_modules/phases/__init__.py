"""Phases: what happens to a model, each a function. Lightning does the training."""
