"""Metrics of two outputs equal a count with numpy."""

import numpy as np
import pytest
import torch

from attnmosaic.config.digit_operations import OPERATIONS
from attnmosaic.metrics.two_outputs import TwoOutputMetrics


@pytest.mark.parametrize("name", OPERATIONS)
def test_metrics_equal_a_plain_count(name: str) -> None:
    """With batches of different sizes."""
    rng = np.random.default_rng(0)
    classes = len(OPERATIONS[name].values)
    metrics = TwoOutputMetrics(OPERATIONS[name])
    batches, losses = [], []
    for n, loss in ((50, 2.0), (7, 0.5), (1, 9.0)):
        digits, results = rng.integers(10, size=(2, n)), rng.integers(classes, size=(2, n))
        digits[0, : n // 2] = digits[1, : n // 2]  # half of them are correct
        batch = digits[0], results[0], digits[1], results[1]
        metrics.update(torch.tensor(loss), *map(torch.from_numpy, batch))
        batches.append(batch)
        losses.append(n * loss)
    digit_predicted, result_predicted, digit, result = (np.concatenate(part) for part in zip(*batches, strict=True))
    computed = {key: value.item() for key, value in metrics.compute().items()}
    assert computed == pytest.approx(
        {
            "loss": sum(losses) / 58,
            "digit_accuracy": (digit_predicted == digit).mean(),
            f"{name}_accuracy": (result_predicted == result).mean(),
        }
    )
    confusion = np.zeros((10, 10), dtype=int)
    for true, predicted in zip(digit, digit_predicted, strict=True):
        confusion[true, predicted] += 1
    assert np.array_equal(metrics.digit.numpy(), confusion)
    confusion = np.zeros((classes, classes), dtype=int)
    for true, predicted in zip(result, result_predicted, strict=True):
        confusion[true, predicted] += 1
    assert np.array_equal(metrics.result.numpy(), confusion)
    metrics.reset()
    assert metrics.digit.sum() == metrics.result.sum() == metrics.loss == 0
