"""Searches for settings with Optuna (``hydra/sweeper=optuna``). Optuna is optional, so only functions import it."""
