"""Accuracy and focus as torchmetrics."""
