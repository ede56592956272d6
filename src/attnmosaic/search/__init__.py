"""Searches for settings by Optuna (``hydra/sweeper=optuna``). Optuna is imported inside functions: it is an extra."""
