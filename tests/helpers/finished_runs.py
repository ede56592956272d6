"""What finished runs have left: their results, and that two of them left the same."""

import json
from pathlib import Path
from typing import Any

import torch

FILES = ("metrics.csv", "focus_vs_pred_train.csv", "focus_vs_pred_test.csv", "focus_vs_pred_held_out.csv")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def check_same(whole: Path, resumed: Path) -> None:
    for file in FILES:
        assert (whole / file).read_text() == (resumed / file).read_text(), file
    one, other = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, resumed)]
    for key in ("metrics", "epochs", "config_hash", "seed"):
        assert results[0][key] == results[1][key], key
