"""What is kept of a trial: its plan, its lineage, what it measured."""
