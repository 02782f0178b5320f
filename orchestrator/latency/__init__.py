"""Latency: the time of a forward pass, in the engine that is deployed, beside the dense model."""
