"""Shows where a trained pair looks in one's own images: ``python -m attnmosaic.explain ckpt_path=... images=DIR``."""

import contextlib
import csv
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from attnmosaic.cli.command import guard, run
from attnmosaic.config.paths import where_started
from attnmosaic.config.schema import ExplainConfig, conf_dir, register
from attnmosaic.config.structure import check_keys
from attnmosaic.core.errors import UserError
from attnmosaic.data.image_files import printable
from attnmosaic.inference.explanation import (
    INDEX,
    TABLE,
    Explained,
    cells_per_side,
    check_arguments,
    explain,
    picture_names,
    predictions,
    restore_on_device,
    table_columns,
)
from attnmosaic.runs.run import CONFIG

__all__ = ["explain", "main"]

log = logging.getLogger(__name__)
register()

ROWS = 20
"""Of the table on the terminal."""

TOLD_EVERY = 100
"""Mosaics between two lines that say how far it is."""


def _explain(config: DictConfig) -> None:
    """Explains as a config says, and writes table and pictures into its ``run_dir`` while it does."""
    check_keys(config, ExplainConfig)
    for key, example in (("ckpt_path", "outputs/.../checkpoints/last.ckpt"), ("images", "DIR")):
        if OmegaConf.is_missing(config, key):
            raise UserError(f"{key}: has no value and needs one; type {key}={example}")
    sources = check_arguments(config.ckpt_path, config.images, config.grid, config.device)
    folder = Path(config.run_dir)
    _check_folder(folder, Path(config.images).expanduser())
    from attnmosaic.plotting.explanation import Index, draw_explained

    pair = restore_on_device(config.ckpt_path, config.device, config.trust)
    grid = cells_per_side(config.grid, pair, sources)
    names = dict(zip((source.path for source in sources), picture_names(sources), strict=True))
    smoke = pair.scale == "smoke"
    index, told, done = Index(), [], 0
    with contextlib.closing(predictions(pair, sources, grid)) as looks:
        first = next(looks)  # nothing is written if nothing can be read
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            most = max(source.patches(grid) for source in sources)
            table = csv.DictWriter(file, table_columns(pair.classes, most, smoke))
            table.writeheader()
            for mosaic, seen in itertools.chain([first], looks):
                table.writerow(seen.row() | ({"scale": "smoke"} if smoke else {}))
                file.flush()
                draw_explained(mosaic, seen, smoke).save(folder / names[mosaic.source.path])
                index.add(mosaic, seen)
                done += 1
                if done <= ROWS:
                    told.append(seen)
                if done % TOLD_EVERY == 0:
                    log.info("%d of %d", done, len(sources))
    if done > 1:
        index.draw(smoke).save(folder / INDEX)
    log.info("%s", _table(told, done, smoke))
    log.info("weights and predictions: %s\npictures: %s", folder / TABLE, folder)


def _check_folder(folder: Path, images: Path) -> None:
    """Checks that what is written can replace no image that is read, and nothing of a run."""
    inside = images if images.is_dir() else images.parent
    here = folder.resolve()
    if here == inside.resolve() or here.parent == images.resolve():
        raise UserError(
            f"run_dir: '{folder}' is among the images, which its pictures could replace; type hydra.run.dir=DIR"
        )
    if (folder / CONFIG).exists():
        raise UserError(f"run_dir: '{folder}' holds a run; type hydra.run.dir=DIR, or leave it out")


def _table(told: Sequence[Explained], done: int, smoke: bool) -> str:
    """Draws the first mosaics as a table."""
    from rich.table import Table

    from attnmosaic.core.console import drawn

    title = "SMOKE: few examples, few epochs, no result" if smoke else None
    more = f"and {done - len(told)} more in {TABLE}" if done > len(told) else None
    table = Table(title=title, caption=more)
    table.add_column("image", overflow="fold")
    table.add_column("predicted")
    for name in ("probability", "looks at", "weight"):
        table.add_column(name, justify="right")
    for seen in told:
        table.add_row(
            printable(seen.name),
            printable(seen.predicted),
            f"{seen.probabilities.max():.4f}",
            f"patch {seen.looks_at} of {len(seen.weights)}",
            f"{seen.weights.max():.4f}",
        )
    return "\n" + drawn(table).rstrip()


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="explain")
def _job(config: DictConfig) -> None:
    with where_started():
        guard(_explain, config)


def main() -> None:
    """Runs the command line."""
    run(_job)


if __name__ == "__main__":
    main()
