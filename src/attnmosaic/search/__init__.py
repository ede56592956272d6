"""Searching for settings by Optuna, behind ``hydra/sweeper=optuna``. Imports no torch; Optuna only when used."""
