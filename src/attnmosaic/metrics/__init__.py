"""Accuracy and focus as torchmetrics; the loss's gradient with respect to the attention weights."""
