"""Shows where a trained pair looks in one's own images: ``python -m attnmosaic.explain ckpt_path=... images=DIR``."""

import contextlib
import csv
import itertools
import logging
import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from attnmosaic.checks import check_ckpt_path
from attnmosaic.cli import guard, run
from attnmosaic.config import ExplainConfig, conf_dir, register
from attnmosaic.data.decode import UnreadableError, printable
from attnmosaic.data.own_mosaics import MOST_CELLS, OwnMosaic, Source, find_sources, read_mosaic
from attnmosaic.errors import UserError, not_among
from attnmosaic.explained import INDEX, TABLE, Explained, picture_names, table_columns
from attnmosaic.lean import import_lightning
from attnmosaic.nodes import check_keys
from attnmosaic.paths import where_started
from attnmosaic.runs import CONFIG

if TYPE_CHECKING:
    from attnmosaic.training.restored import RestoredPair

log = logging.getLogger(__name__)
register()

DEVICES = ("auto", "cpu", "cuda")

ROWS = 20
"""Of the table on the terminal."""

TOLD_EVERY = 100
"""Mosaics between two lines that say how far it is."""


def explain(
    ckpt_path: str | Path, images: str | Path, grid: int | None = None, *, device: str = "auto", trust: Any = ()
) -> list[Explained]:
    """Asks a trained pair where it looks in one's own images, and what it takes them for.

    Args:
        ckpt_path: a checkpoint of a where/what pair that was trained on images. Its data are not needed.
        images: a folder, or one image. Each image in the folder is cut into a mosaic of grid x grid cells; each
            sub-folder is one mosaic, whose patches, any number of them, are the images in it. All in the order of their
            names. What cannot be read is logged and left out.
        grid: cells along each side of an image that is cut; None for as many patches as the pair was trained on.
        device: "auto" for a GPU if there is one, "cpu" or "cuda".
        trust: what the checkpoint may name beside what comes with this program, ``["my_package"]`` say, or "all".

    Returns:
        What the pair makes of each mosaic.

    Raises:
        UserError: one of the arguments will not do, or none of the images can be read.
    """
    sources = _check(ckpt_path, images, grid, device)
    pair = _restored(ckpt_path, device, trust)
    return [seen for _, seen in _look(pair, sources, _grid(grid, pair, sources))]


def _check(ckpt_path: str | Path, images: str | Path, grid: Any, device: str) -> list[Source]:
    """Checks what can be before torch is imported; returns where the mosaics come from."""
    check_ckpt_path(ckpt_path)
    whole = isinstance(grid, int) and not isinstance(grid, bool)
    if grid is not None and not (whole and 1 <= grid <= MOST_CELLS):
        raise UserError(f"grid: got {grid}, needs a whole number from 1 to {MOST_CELLS}; type for example grid=3")
    if device not in DEVICES:
        raise not_among("device", device, DEVICES)
    return find_sources(Path(images).expanduser())


def _restored(ckpt_path: str | Path, device: str, trust: Any) -> "RestoredPair":
    """Returns the pair on its device."""
    import_lightning()
    import torch

    from attnmosaic.training.restored import restore_pair

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got cuda, but PyTorch finds no GPU on this machine; type device=cpu (or auto)")
    pair = restore_pair(ckpt_path, trust)
    pair.pair.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    return pair


def _grid(grid: int | None, pair: "RestoredPair", sources: Sequence[Source]) -> int:
    """Returns the cells along each side of an image that is cut."""
    root = math.isqrt(pair.patches)
    if grid is None and root**2 != pair.patches and not all(source.files for source in sources):
        raise UserError(
            f"grid: has no value and needs one, as the {pair.patches} patches of training make no square; "
            f"type for example grid={max(2, root)}"
        )
    return grid or root


def _look(
    pair: "RestoredPair", sources: Sequence[Source], grid: int
) -> Generator[tuple[OwnMosaic, Explained], None, None]:
    """Yields one mosaic after the other, and what the pair makes of it; says what cannot be read."""
    import torch

    from attnmosaic.training.globals import job_globals

    device = next(pair.pair.parameters()).device
    unread: list[str] = []
    with job_globals(seed=0, threads=None, matmul_precision=pair.matmul_precision):
        for source in sources:
            try:
                mosaic = read_mosaic(source, grid, pair.patch_shape)
            except UnreadableError as error:
                unread.append(f"'{printable(source.name)}' {error}")
                log.warning("%s; left out", unread[-1])
                continue
            for line in mosaic.unread:
                log.warning("%s; left out", line)
            weights, probabilities = (
                part.double().cpu().numpy() for part in pair.look(torch.from_numpy(mosaic.patches).to(device))
            )
            yield mosaic, Explained(source.name, pair.classes, probabilities, weights)
    if len(unread) == len(sources):
        what = unread[0] if len(unread) == 1 else f"none of {len(unread)} mosaics can be read, the first: {unread[0]}"
        raise UserError(f"images: {what}; give other images, PNG or JPEG files say")


def _explain(config: DictConfig) -> None:
    """Explains as a config says, and writes table and pictures into its ``run_dir`` while it does."""
    check_keys(config, ExplainConfig)
    for key, example in (("ckpt_path", "outputs/.../checkpoints/last.ckpt"), ("images", "DIR")):
        if OmegaConf.is_missing(config, key):
            raise UserError(f"{key}: has no value and needs one; type {key}={example}")
    sources = _check(config.ckpt_path, config.images, config.grid, config.device)
    folder = Path(config.run_dir)
    _check_folder(folder, Path(config.images).expanduser())
    from attnmosaic.drawing.explained import Index, draw_explained

    pair = _restored(config.ckpt_path, config.device, config.trust)
    grid = _grid(config.grid, pair, sources)
    names = dict(zip((source.path for source in sources), picture_names(sources), strict=True))
    smoke = pair.scale == "smoke"
    index, told, done = Index(), [], 0
    with contextlib.closing(_look(pair, sources, grid)) as looks:
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

    from attnmosaic.console import drawn

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
