"""The torch and Lightning side: the pruning core, tasks, data and phases. Knows no optuna, mlflow or hydra."""
