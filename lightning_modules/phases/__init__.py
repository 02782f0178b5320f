"""Phases: each is a function that changes or measures a model. Lightning does the training."""
