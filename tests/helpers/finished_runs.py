"""Reads the files of finished runs, and checks that two runs have equal files."""

import json
from pathlib import Path
from typing import Any

import torch

FILES = ("metrics.csv", "focus_vs_pred_train.csv", "focus_vs_pred_test.csv", "focus_vs_pred_held_out.csv")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def check_same(uninterrupted: Path, resumed: Path) -> None:
    """Checks that two runs have equal tables, weights and results."""
    for file in FILES:
        assert (uninterrupted / file).read_text() == (resumed / file).read_text(), file
    one, other = weights(uninterrupted), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    results = [json.loads((folder / "result.json").read_text()) for folder in (uninterrupted, resumed)]
    for key in ("metrics", "epochs", "config_hash", "seed"):
        assert results[0][key] == results[1][key], key
