"""Predicts with trained networks on a user's own images."""
