"""Budgets in time and epochs: how many steps each trial gets."""
