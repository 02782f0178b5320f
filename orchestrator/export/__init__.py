"""The files in which a model runs outside PyTorch, beside its weights."""
