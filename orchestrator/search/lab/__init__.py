"""The laboratory: the dense network, its structure and costs, and the work on models."""
