"""Accuracy and focus equal a count in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from attnmosaic.metrics.focus import COUNTS, FocusMetrics

N = 37


def batch() -> dict[str, Tensor]:
    """Random mosaics; some have equal largest weights, a largest weight of exactly 0.5, or weights of 0."""
    generator = torch.Generator().manual_seed(0)
    alpha = (2 * torch.randn(N, 5, generator=generator)).softmax(dim=1)
    alpha[:3] = torch.tensor([0.1, 0.4, 0.1, 0.4, 0.0])
    alpha[3:5] = torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0])
    alpha[5] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    foreground = torch.randint(5, (N,), generator=generator)
    foreground[:6] = torch.tensor([1, 3, 0, 2, 1, 4])
    return {
        "loss": torch.rand(N, generator=generator, dtype=torch.float64),
        "logits": torch.randn(N, 3, generator=generator),
        "alpha": alpha,
        "label": torch.randint(3, (N,), generator=generator),
        "foreground": foreground,
    }


def add(metrics: FocusMetrics, data: dict[str, Tensor], rows: slice) -> None:
    part = {name: values[rows] for name, values in data.items()}
    metrics.update(part.pop("loss").mean(), **part)


def plain_count(data: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, int]]:
    """Returns means and counts, computed mosaic by mosaic in plain Python."""
    counts = dict.fromkeys(("mosaics", "confident", *COUNTS), 0)
    weight = entropy = 0.0
    columns = (data[name].tolist() for name in ("logits", "alpha", "label", "foreground"))
    for logits, alpha, label, foreground in zip(*columns, strict=True):
        focused = alpha.index(max(alpha)) == foreground
        correct = logits.index(max(logits)) == label
        counts["mosaics"] += 1
        counts["confident"] += max(alpha) >= 0.5
        counts[f"f{'t' if focused else 'f'}p{'t' if correct else 'f'}"] += 1
        weight += alpha[foreground]
        entropy -= sum(a * math.log(a) for a in alpha if a > 0)
    n = counts["mosaics"]
    means = {name: counts[name] / n for name in ("confident", *COUNTS)}
    means |= {
        "loss": sum(data["loss"].tolist()) / n,
        "accuracy": (counts["ftpt"] + counts["ffpt"]) / n,
        "focus": (counts["ftpt"] + counts["ftpf"]) / n,
        "foreground_weight": weight / n,
        "entropy": entropy / n,
    }
    return means, counts


def computed(metrics: FocusMetrics) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("batches", [[N], [1] * N, [20, 16, 1], [3, 30, 4]], ids=["one", "single", "uneven", "other"])
def test_metrics_equal_a_plain_count(batches: list[int]) -> None:
    data = batch()
    metrics = FocusMetrics()
    start = 0
    for size in batches:
        add(metrics, data, slice(start, start + size))
        start += size
    assert start == N
    means, counts = plain_count(data)
    assert all(counts.values()), "every count must be tested"
    assert computed(metrics) == pytest.approx(means, abs=1e-6)
    assert metrics.counts() == counts


def test_counts_and_fractions_are_consistent() -> None:
    metrics = FocusMetrics()
    add(metrics, batch(), slice(None))
    counts, means = metrics.counts(), computed(metrics)
    assert all(type(value) is int for value in counts.values())
    assert counts["mosaics"] == N == sum(counts[name] for name in COUNTS)
    assert sum(means[name] for name in COUNTS) == pytest.approx(1, abs=1e-12)
    assert means["accuracy"] == pytest.approx(means["ftpt"] + means["ffpt"], abs=1e-12)
    assert means["focus"] == pytest.approx(means["ftpt"] + means["ftpf"], abs=1e-12)


@pytest.mark.parametrize(
    ("alpha", "foreground", "focused", "confident"),
    [
        ([0.4, 0.4, 0.2], 0, True, False),
        ([0.4, 0.4, 0.2], 1, False, False),
        ([0.2, 0.4, 0.4], 1, True, False),
        ([0.2, 0.4, 0.4], 2, False, False),
        ([1 / 3] * 3, 0, True, False),
        ([0.25, 0.5, 0.25], 1, True, True),
        ([0.25, 0.5, 0.25], 2, False, True),
        ([0.5, 0.5, 0.0], 1, False, True),
        ([0.26, 0.499999, 0.240001], 1, True, False),
    ],
)
def test_equal_largest_weights_and_weights_of_one_half(
    alpha: list[float], foreground: int, focused: bool, confident: bool
) -> None:
    metrics = FocusMetrics()
    metrics.update(
        torch.tensor(0.0), torch.eye(3)[:1], torch.tensor([alpha]), torch.tensor([0]), torch.tensor([foreground])
    )
    counts = metrics.counts()
    assert counts["ftpt"] == focused
    assert counts["ffpt"] == (not focused)
    assert counts["confident"] == confident


def test_many_mosaics_are_counted_exactly() -> None:
    """A float32 sum would not grow beyond 2**24."""
    metrics = FocusMetrics()
    metrics.sums[:] = 2.0**24
    for row in range(3):
        add(metrics, batch(), slice(row, row + 1))
    assert metrics.counts()["mosaics"] == 2**24 + 3


def test_reset_clears_the_sums() -> None:
    data = batch()
    metrics = FocusMetrics()
    add(metrics, data, slice(10, None))
    assert metrics.compute()["accuracy"] >= 0
    metrics.reset()
    assert metrics.counts() == dict.fromkeys(("mosaics", "confident", *COUNTS), 0)
    add(metrics, data, slice(None))
    assert computed(metrics) == pytest.approx(plain_count(data)[0], abs=1e-6)


def test_two_processes_compute_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes have 7 and 30 mosaics; `tests/training/test_distributed.py` uses real processes."""
    parts = [FocusMetrics(), FocusMetrics()]
    add(parts[0], batch(), slice(0, 7))
    add(parts[1], batch(), slice(7, N))
    before = [part.sums.clone() for part in parts]
    means, counts = plain_count(batch())
    monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", lambda *_, **__: [sums.clone() for sums in before])
    for part in parts:
        part.distributed_available_fn = lambda: True
        assert part.counts() == counts
        assert computed(part) == pytest.approx(means, abs=1e-6)
        assert part.counts() == counts
    assert [part.sums.tolist() for part in parts] == [sums.tolist() for sums in before], (
        "each process keeps its own sums"
    )
