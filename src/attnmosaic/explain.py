"""Predicts on a user's images with a trained pair: ``python -m attnmosaic.explain ckpt_path=... images=DIR``."""

import contextlib
import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli.command import guard, run
from attnmosaic.config.keys import check_keys
from attnmosaic.config.paths import where_started
from attnmosaic.config.schema import ExplainConfig, conf_dir, register
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.inference.explanation import (
    INDEX,
    TABLE,
    Explanation,
    explain,
    picture_names,
    predictions,
    prepare,
    table_columns,
)
from attnmosaic.inference.user_images import Source
from attnmosaic.plotting.explanation import Index, draw_explained
from attnmosaic.runs.run import CONFIG

if TYPE_CHECKING:
    from attnmosaic.inference.restore import RestoredPair

__all__ = ["explain", "main"]

log = logging.getLogger(__name__)
register()

ROWS = 20
"""Largest number of rows of the table on the terminal."""

LOGGED_EVERY = 100
"""Number of mosaics between two progress lines of the log."""


def _explain(config: DictConfig) -> None:
    """Writes attention weights and predictions for a user's images as a table and pictures into ``run_dir``."""
    check_keys(config, ExplainConfig)
    for key, example in (("ckpt_path", "outputs/.../checkpoints/last.ckpt"), ("images", "DIR")):
        if OmegaConf.is_missing(config, key):
            raise UserError(f"{key}: required; type {key}={example}")
    folder = Path(config.run_dir)
    _check_folder(folder, Path(config.images).expanduser())
    pair, sources, grid = prepare(config.ckpt_path, config.images, config.grid, config.device, config.trust)
    folder.mkdir(parents=True, exist_ok=True)
    smoke = pair.config["scale"] == "smoke"
    log.info("%s", _table(_write(pair, sources, grid, folder, smoke), smoke))
    log.info("attention weights and predictions: %s\npictures: %s", folder / TABLE, folder)


def _write(pair: "RestoredPair", sources: Sequence[Source], grid: int, folder: Path, smoke: bool) -> list[Explanation]:
    """Writes the table and the pictures, one mosaic at a time, and returns the predictions."""
    scale = {"scale": "smoke"} if smoke else {}
    names = dict(zip((source.path for source in sources), picture_names(sources), strict=True))
    columns = table_columns(pair.classes, max(len(source.files) or grid**2 for source in sources))
    index = Index()
    done: list[Explanation] = []
    with (
        (folder / TABLE).open("w", newline="", encoding="utf-8", buffering=1) as file,  # writes each row at once
        contextlib.closing(predictions(pair, sources, grid)) as predicted,
    ):
        table = csv.DictWriter(file, [*columns, *scale])
        table.writeheader()
        for mosaic, explanation in predicted:
            table.writerow(explanation.row() | scale)
            draw_explained(mosaic, explanation, smoke).save(folder / names[mosaic.source.path])
            index.add(mosaic, explanation)
            done.append(explanation)
            if len(done) % LOGGED_EVERY == 0:
                log.info("%d of %d mosaics done", len(done), len(sources))
    if len(done) > 1:
        index.draw(smoke).save(folder / INDEX)
    return done


def _check_folder(folder: Path, images: Path) -> None:
    """Checks that the pictures cannot overwrite input images or files of a run."""
    image_folder = images if images.is_dir() else images.parent
    target = folder.resolve()
    if target == image_folder.resolve() or target.parent == images.resolve():
        raise UserError(
            f"run_dir: '{folder}' is a folder of the images, which could be overwritten; type hydra.run.dir=DIR"
        )
    if (folder / CONFIG).exists():
        raise UserError(
            f"run_dir: '{folder}' is the folder of a training run; type another hydra.run.dir=DIR, or leave it out"
        )


def _table(done: Sequence[Explanation], smoke: bool) -> str:
    """Returns the first mosaics as a table for the terminal."""
    from rich.table import Table

    from attnmosaic.core.console import render_text

    title = "SMOKE RUN: few examples and epochs, no result" if smoke else None
    more = f"{len(done) - ROWS} more mosaics in {TABLE}" if len(done) > ROWS else None
    table = Table(title=title, caption=more)
    table.add_column("image", overflow="fold")
    table.add_column("predicted")
    for name in ("probability", "attends to", "weight"):
        table.add_column(name, justify="right")
    for explanation in done[:ROWS]:
        table.add_row(
            one_line(explanation.name),
            one_line(explanation.predicted),
            f"{explanation.probabilities.max():.4f}",
            f"patch {explanation.attended_patch} of {len(explanation.weights)}",
            f"{explanation.weights.max():.4f}",
        )
    return "\n" + render_text(table).rstrip()


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="explain")
def _job(config: DictConfig) -> None:
    with where_started():
        guard(_explain, config)


def main() -> None:
    """Runs the command line."""
    run(_job)


if __name__ == "__main__":
    main()
