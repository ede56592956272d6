"""Predicting with trained pairs on a user's own images."""
