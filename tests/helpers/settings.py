"""The repository's folder, and overrides for short runs."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

SMALL = (
    "data.train_mosaics=60",
    "data.test_mosaics=30",
    "data.held_out_mosaics=30",
    "data.batch_size=25",
    "data.steps_per_block=2",
    "data.eval_batch_size=16",
    "trainer.accelerator=cpu",
)

SMALL_NUMBERS = (
    "data.train_images=60",
    "data.held_out_images=30",
    "data.batch_size=25",
    "data.eval_batch_size=16",
    "trainer.accelerator=cpu",
)
"""Overrides for short runs on digits with a number."""

ALL_CHECKPOINTS = ("callbacks.last.min_seconds=0", "callbacks.cycle.min_seconds=0")
"""Overrides for a checkpoint after every epoch and after every cycle; by default a short run has one at its end."""
