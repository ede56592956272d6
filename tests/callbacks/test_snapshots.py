"""The snapshots of a run equal the networks' predictions, have the worst mosaics, and survive resuming."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.settings import ALL_CHECKPOINTS, SMALL
from helpers.small_runs import build, fit, train_in
from omegaconf import DictConfig

from attnmosaic.callbacks.snapshots import LONGEST, predict, shown_patches, worst_mosaics
from attnmosaic.core.errors import UserError
from attnmosaic.data.pool import Pool
from attnmosaic.runs.snapshots import KINDS, Record, read_record
from attnmosaic.training.checkpointing import read_checkpoint

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
Train = Callable[..., dict[str, float]]

SIX = ("schedule.k=2", "schedule.epochs=6", "lr.what=0.1", "lr.where=0.1", "precision=float64", *ALL_CHECKPOINTS)
QUIET = ("callbacks.progress=null", "callbacks.pictures=null", "logger=none")
DIGITS = ("experiment=stagewise", "data=digits")


def record(folder: Path) -> Record:
    return read_record(folder / "mosaics.npz")


@pytest.mark.parametrize(
    "data", [(), DIGITS, ("data/weights=fixed", "schedule=what_only")], ids=["2-D", "images", "fixed weights"]
)
def test_record_equals_the_networks_predictions(
    config: Config, train: Train, tmp_path: Path, data: tuple[str, ...]
) -> None:
    """Compares with predictions computed from the last checkpoint, patch by patch."""
    data = tuple(f"+{o}" if o.startswith("data/weights") else o for o in data)
    metrics = train(*data, *SIX, *QUIET)
    kept = record(tmp_path / "run")
    module, datamodule = build(config(*data, *SIX, *QUIET))
    module.load_state_dict(read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"])
    pair = module.pair.eval()
    assert kept.classes == datamodule.mosaics["train"].foreground_classes
    assert kept.epochs.tolist() == list(range(7))
    for split, mosaics in datamodule.mosaics.items():
        counts = kept.counts[split]
        assert sum(counts.values()) == len(mosaics)
        for kind in KINDS:
            assert counts[kind] / len(mosaics) == pytest.approx(metrics[f"{split}/{kind}"])
        for recorded in (kept.final[split], *([kept.followed[split].at(-1)] if split in kept.followed else [])):
            assert len(recorded) > 0
            for m, row in enumerate(recorded.rows):
                patches = mosaics.pool.gather(mosaics.index[row], torch.float64)
                if mosaics.weights is not None:
                    alpha = mosaics.weights[row]
                else:
                    alpha = torch.cat([pair.where(patch[None]) for patch in patches]).flatten().softmax(0)
                aggregate = sum(a * x for a, x in zip(alpha, patches, strict=True))
                probabilities = pair.what(aggregate[None]).softmax(1)[0].detach()
                assert recorded.alpha[m] == pytest.approx(alpha.detach().numpy(), abs=1e-6)
                assert recorded.probabilities[m] == pytest.approx(probabilities.numpy(), abs=1e-6)
                assert (recorded.foreground[m], recorded.label[m]) == (
                    int(mosaics.foreground[row]),
                    int(mosaics.label[row]),
                )
                shown = mosaics.pool.patches[mosaics.index[row]].numpy()
                assert np.array_equal(recorded.patches[m], shown.astype(recorded.patches.dtype))
    assert (kept.plane is not None) == (not kept.final["test"].is_image)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train_in(folder, *SMALL, *SIX, *QUIET)
    return folder


def test_training_is_the_same_without_a_record(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    train(*SIX, *QUIET, "callbacks.record=null")
    assert (uninterrupted / "metrics.csv").read_text() == (tmp_path / "run" / "metrics.csv").read_text()
    assert not (tmp_path / "run" / "mosaics.npz").exists()


def test_record_of_a_resumed_run_equals_an_uninterrupted_one(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    """Including the epochs before the checkpoint."""
    train(*SIX, *QUIET, f"ckpt_path={uninterrupted / 'checkpoints' / 'epoch-0004.ckpt'}")
    with np.load(uninterrupted / "mosaics.npz") as first, np.load(tmp_path / "run" / "mosaics.npz") as second:
        assert first.files == second.files
        assert all(np.array_equal(first[name], second[name]) for name in first.files)
    kept = record(uninterrupted)
    assert kept.epochs.tolist() == list(range(7))
    assert len(np.unique(kept.followed["train"].alpha[:, 0], axis=0)) > 2  # Where changed


def test_record_does_not_depend_on_when_predictions_are_joined(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Path
) -> None:
    """Here after every second epoch, and no checkpoint joins them before."""
    monkeypatch.setattr("attnmosaic.callbacks.snapshots.RECENT", 2)
    train(*SIX, *QUIET, "callbacks.last=null", "callbacks.cycle=null")
    with np.load(uninterrupted / "mosaics.npz") as first, np.load(tmp_path / "run" / "mosaics.npz") as second:
        assert all(np.array_equal(first[name], second[name]) for name in first.files)


@pytest.mark.parametrize("other", ["data.patches=5", "callbacks.record.followed=4", "data.seed=7"])
def test_other_mosaics_are_followed_from_the_checkpoint_on(
    train: Train, tmp_path: Path, uninterrupted: Path, other: str
) -> None:
    train(*SIX, *QUIET, f"ckpt_path={uninterrupted / 'checkpoints' / 'epoch-0004.ckpt'}", other)
    kept = record(tmp_path / "run")
    assert kept.epochs.tolist() == [4, 5, 6]
    assert all(len(kept.followed[split].alpha) == 3 for split in ("train", "held_out"))


def test_worst_mosaics_of_each_kind_are_chosen() -> None:
    # Mosaic i has weight w[i] on its foreground, patch 0, and 1 - w[i] on its other patch.
    w = torch.tensor([0.9, 0.1, 0.2, 0.6, 0.3, 0.8, 0.05, 0.55])
    alpha = torch.stack([w, 1 - w], dim=1)
    right = torch.tensor([True, True, True, False, False, True, True, True])
    probabilities = torch.where(right[:, None], torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8]))
    zeros = torch.zeros(8, dtype=torch.int64)
    rows, counts = worst_mosaics(alpha, probabilities, zeros, zeros, chosen=2)
    assert counts == {"ffpt": 3, "ffpf": 1, "ftpf": 1, "ftpt": 3}
    assert rows.tolist() == [6, 1, 4, 3, 7, 5]


def test_predicting_changes_neither_modes_nor_kept_scores(config: Config) -> None:
    module = fit(config(*DIGITS, *SIX, *QUIET, "callbacks.record=null"))
    for name, training in (("where", True), ("what", False)):
        getattr(module.pair, name).train(training)
    scores = dict(module.frozen_where._scores)
    predict(module, module.mosaics["test"], torch.arange(3))
    assert module.pair.where.training
    assert not module.pair.what.training
    assert module.frozen_where._scores.keys() == scores.keys()


def test_large_patches_are_reduced_and_many_channels_averaged() -> None:
    pixels = torch.randint(256, (5, 200, 100, 3), dtype=torch.uint8)
    pool = Pool(pixels, torch.zeros(5, dtype=torch.int64), ("a",))
    kept = shown_patches(pool, torch.tensor([[0, 1], [4, 0]]))
    assert kept.shape == (2, 2, LONGEST, LONGEST // 2, 3)
    assert kept.dtype == np.uint8
    assert kept[1, 0].mean() == pytest.approx(pixels[4].float().mean().item(), abs=1)
    five = Pool(torch.full((1, 4, 4, 5), 7, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("a",))
    assert np.array_equal(shown_patches(five, torch.tensor([[0]])), np.full((1, 1, 4, 4, 1), 7))


def test_run_of_two_outputs_has_no_record(train: Train, tmp_path: Path) -> None:
    train("experiment=mnist_sum", "schedule.epochs=1", *QUIET)
    assert not (tmp_path / "run" / "mosaics.npz").exists()
    assert not (tmp_path / "run" / "gradients.csv").exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 incomplete", "truncated"])
def test_unreadable_record_is_a_user_error(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "mosaics.npz"
    if content == "truncated":
        np.savez(path, classes=np.array(["a"]))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read"):
        read_record(path)
