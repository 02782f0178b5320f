"""The search: what to try next, from which parent, for how long, and which results stand on the front."""
