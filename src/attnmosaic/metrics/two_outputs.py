"""Accuracy and confusion of both outputs, accumulated on the device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from attnmosaic.config.digit_operations import Operation


class TwoOutputMetrics(Metric):
    """Sums over examples: right for uneven batches, and summed over processes.

    `compute` gives ``loss``, ``digit_accuracy``, and ``sum_accuracy`` or ``product_accuracy``.

    Args:
        operation: names the second output and its classes.

    Attributes:
        digit: confusion matrix of the digits, raw counts, true in rows, predicted in columns, ``[10, 10]``.
        result: the same for the operation's classes.
    """

    full_state_update = False
    loss: Tensor
    digit: Tensor
    result: Tensor

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation
        self.add_state("loss", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name, classes in (("digit", 10), ("result", len(operation.values))):
            self.add_state(name, torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        loss: Float[Tensor, ""],
        digit_predicted: Int[Tensor, " B"],
        result_predicted: Int[Tensor, " B"],
        digit: Int[Tensor, " B"],
        result: Int[Tensor, " B"],
    ) -> None:
        """Adds examples.

        Args:
            loss: mean objective over these examples.
            digit_predicted: class with the largest digit logit.
            result_predicted: class with the largest result logit.
            digit: the true class.
            result: likewise.
        """
        self.loss += loss * len(digit)
        for counts, predicted, true in (
            (self.digit, digit_predicted, digit),
            (self.result, result_predicted, result),
        ):
            counts += multiclass_confusion_matrix(predicted, true, len(counts), validate_args=False)

    def compute(self) -> dict[str, Tensor]:
        n = self.digit.sum()
        return {
            "loss": self.loss / n,
            "digit_accuracy": self.digit.trace() / n.double(),
            f"{self.operation.name}_accuracy": self.result.trace() / n.double(),
        }
