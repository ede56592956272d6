"""A torchmetric of the accuracies and confusion matrices of two outputs, accumulated on the device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from attnmosaic.config.digit_operations import Operation


class TwoOutputMetrics(Metric):
    """Loss, accuracies and confusion matrices of a network that predicts a digit and a result.

    The state holds sums over examples, so means are correct for batches of different sizes and over several processes.
    `compute` returns ``loss``, ``digit_accuracy``, and ``sum_accuracy`` or ``product_accuracy``.

    Args:
        operation: operation whose result the second output predicts.

    Attributes:
        digit: confusion matrix of the digits, ``[10, 10]``: counts, with true digits in rows and predicted ones in
            columns.
        result: confusion matrix of the operation's results, in the same form.
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
        """Adds the predictions of a batch of examples to the sums.

        Args:
            loss: mean objective of these examples.
            digit_predicted: class with the largest digit logit.
            result_predicted: class with the largest result logit.
            digit: true class of the digit.
            result: true class of the result.
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
