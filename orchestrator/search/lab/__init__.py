"""The laboratory: the dense network, its structure and costs, and the work that is done on
models.
"""
