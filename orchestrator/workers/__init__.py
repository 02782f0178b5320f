"""Processes that run trials of a study beside the one that searches it."""
