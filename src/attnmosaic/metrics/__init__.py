"""Accuracy and focus as torchmetrics, and the gradient of the loss with respect to the attention weights."""
