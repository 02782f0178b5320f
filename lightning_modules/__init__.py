"""The torch and Lightning side: pruning core, tasks, data and phases. Imports no optuna, mlflow,
hydra.
"""
